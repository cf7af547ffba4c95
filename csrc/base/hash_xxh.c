/* XXH3, inlined from its header so that the runtime needs no library for it. Refuses nothing: it
 * guards against torn files and serves look-ups; it does not withstand a forger (hash_sha.c does).
 */
#include "base/hash.h"

#define XXH_INLINE_ALL
#define XXH_STATIC_LINKING_ONLY
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#endif
#include <xxhash.h>
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

uint64_t kg_xxh64(const void *bytes, size_t n) {
    return XXH3_64bits(bytes, n);
}

kg_hash128 kg_xxh128(const void *bytes, size_t n) {
    XXH128_hash_t h = XXH3_128bits(bytes, n);
    return (kg_hash128){.lo = h.low64, .hi = h.high64};
}

/* High half first, as xxhsum prints it. */
void kg_hash128_hex(kg_hash128 h, char out[33]) {
    static const char digits[] = "0123456789abcdef";
    for (unsigned i = 0; i < 16; i++) {
        out[i] = digits[(h.hi >> (60 - 4 * i)) & 15];
        out[16 + i] = digits[(h.lo >> (60 - 4 * i)) & 15];
    }
    out[32] = '\0';
}
