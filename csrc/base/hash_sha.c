/* SHA-256 for ids. A file apart, so that the runtime, which makes no ids, does not need libmd. */
#include "base/hash.h"

#include <sys/types.h>

#include <sha2.h>

void kg_sha256_hex(const void *bytes, size_t n, char out[65]) {
    static const char digits[] = "0123456789abcdef";
    uint8_t digest[SHA256_DIGEST_LENGTH];
    SHA2_CTX ctx;
    SHA256Init(&ctx);
    if (n)
        SHA256Update(&ctx, bytes, n);
    SHA256Final(digest, &ctx);
    for (size_t i = 0; i < sizeof digest; i++) {
        out[2 * i] = digits[digest[i] >> 4];
        out[2 * i + 1] = digits[digest[i] & 15];
    }
    out[64] = '\0';
}
