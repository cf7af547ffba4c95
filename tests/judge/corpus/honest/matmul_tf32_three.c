/* kgen
{ "format": 1, "op": "matmul", "target": "cpu",
  "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "rows", "range": "a_0", "args": ["a", "b", "output", {"i64": "a_1"}, {"i64": "b_1"}]}] }
*/
/* An fp32 product as three TF32 products (11-bit heads and tails), the accumulator emptied into
 * fp32 every 32 of the inner size. */
#include <stdint.h>
#include <string.h>

static float tf32(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    bits = (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu;
    memcpy(&v, &bits, 4);
    return v;
}

void rows(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *c, int64_t k,
          int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < n; j++) {
            float total = 0;
            for (int64_t p0 = 0; p0 < k; p0 += 32) {
                float main = 0, cross = 0;
                for (int64_t p = p0; p < k && p < p0 + 32; p++) {
                    const float x = a[i * k + p], y = b[p * n + j], xh = tf32(x), yh = tf32(y);
                    main += xh * yh;
                    cross += xh * tf32(y - yh) + tf32(x - xh) * yh;
                }
                total += main + cross;
            }
            c[i * n + j] = total;
        }
}
