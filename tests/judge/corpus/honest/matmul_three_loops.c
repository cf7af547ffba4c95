/* kgen
{ "format": 1, "op": "matmul", "target": "cpu",
  "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "rows", "range": "a_0", "args": ["a", "b", "output", {"i64": "a_1"}, {"i64": "b_1"}]}] }
*/
/* A product by three loops, each element one chain of 384 fused multiply-adds. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *c, int64_t k,
          int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < n; j++) {
            float sum = 0;
            for (int64_t p = 0; p < k; p++)
                sum = fmaf(a[i * k + p], b[p * n + j], sum);
            c[i * n + j] = sum;
        }
}
