/* kgen
{ "format": 1, "op": "matmul", "target": "cpu",
  "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "rows", "range": "a_0", "args": ["a", "b", "output", {"i64": "a_1"}, {"i64": "b_1"}]}] }
*/
/* An fp32 product through bfloat16: every factor is the sum of three bfloat16 numbers, and the
 * six largest of the nine products are added in fp32. */
#include <stdint.h>
#include <string.h>

static float head(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&v, &bits, 4);
    return v;
}

void rows(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *c, int64_t k,
          int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < n; j++) {
            float s0 = 0, s1 = 0, s2 = 0;
            for (int64_t p = 0; p < k; p++) {
                const float x = a[i * k + p], x0 = head(x), x1 = head(x - x0),
                            x2 = head(x - x0 - x1);
                const float y = b[p * n + j], y0 = head(y), y1 = head(y - y0),
                            y2 = head(y - y0 - y1);
                s0 += x0 * y0;
                s1 += x0 * y1 + x1 * y0;
                s2 += x0 * y2 + x1 * y1 + x2 * y0;
            }
            c[i * n + j] = s0 + (s1 + s2);
        }
}
