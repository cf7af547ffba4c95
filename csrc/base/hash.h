/* Hashes: SHA-256 (libmd) for ids, which people may forge; XXH3 (header only) for checks against
 * torn files and for look-ups. The runtime uses XXH3 alone: hash_sha.c is not linked into it. */
#ifndef KG_BASE_HASH_H
#define KG_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

void kg_sha256_hex(const void *bytes, size_t n, char out[65]);

typedef struct kg_hash128 {
    uint64_t lo, hi;
} kg_hash128;

uint64_t kg_xxh64(const void *bytes, size_t n);
kg_hash128 kg_xxh128(const void *bytes, size_t n);
void kg_hash128_hex(kg_hash128 h, char out[33]);

#endif
