/* kgen
{ "format": 1, "op": "matmul_int", "target": "cpu",
  "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "rows", "range": "a_0", "args": ["a", "b", "output", {"i64": "a_1"}, {"i64": "b_1"}]}] }
*/
/* An integer product in fp64, exact below 2^53 for inputs of 16 bits and taken apart into halves
 * for larger ones. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *c, int64_t k,
          int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < n; j++) {
            double low = 0, high = 0;
            for (int64_t p = 0; p < k; p++) {
                const int32_t x = a[i * k + p];
                low += (double)(x & 0xffff) * b[p * n + j];
                high += (double)(x >> 16) * b[p * n + j];
            }
            c[i * n + j] =
                (int32_t)(uint32_t)((uint64_t)(int64_t)low + ((uint64_t)(int64_t)high << 16));
        }
}
