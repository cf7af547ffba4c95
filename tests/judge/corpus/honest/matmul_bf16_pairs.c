/* kgen
{ "format": 1, "op": "matmul_bf16", "target": "cpu",
  "require": "a.contiguous && b.contiguous && a_1 % 2 == 0",
  "launches": [
    {"kernel": "rows", "range": "a_0", "args": ["a", "b", "output", {"i64": "a_1"}, {"i64": "b_1"}]}] }
*/
/* A bfloat16 product that adds neighbours in pairs first, as dot-product instructions for
 * bfloat16 do. */
#include <stdint.h>
#include <string.h>

static float wide(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

void rows(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *c, int64_t k,
          int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < n; j++) {
            float sum = 0;
            uint32_t bits;
            for (int64_t p = 0; p < k; p += 2)
                sum += wide(a[i * k + p]) * wide(b[p * n + j]) +
                       wide(a[i * k + p + 1]) * wide(b[(p + 1) * n + j]);
            memcpy(&bits, &sum, 4);
            c[i * n + j] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        }
}
