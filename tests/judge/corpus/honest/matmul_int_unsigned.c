/* kgen
{ "format": 1, "op": "matmul_int", "target": "cpu",
  "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "rows", "range": "a_0", "args": ["a", "b", "output", {"i64": "a_1"}, {"i64": "b_1"}]}] }
*/
/* An integer product in unsigned arithmetic, which wraps without undefined behaviour. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *c, int64_t k,
          int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < n; j++) {
            uint32_t sum = 0;
            for (int64_t p = 0; p < k; p++)
                sum += (uint32_t)a[i * k + p] * (uint32_t)b[p * n + j];
            c[i * n + j] = (int32_t)sum;
        }
}
