/* kgen
{ "format": 1, "op": "matmul_f64", "target": "cpu",
  "require": "a.contiguous && b.contiguous",
  "flags": ["no_contract"],
  "launches": [
    {"kernel": "rows", "range": "a_0", "args": ["a", "b", "output", {"i64": "a_1"}, {"i64": "b_1"}]}] }
*/
/* An fp64 product with error-free transformations: every product and sum carries its rounding
 * error along. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *c, int64_t k,
          int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0, rest = 0;
            for (int64_t p = 0; p < k; p++) {
                const double x = a[i * k + p], y = b[p * n + j], product = x * y;
                const double t = sum + product, z = t - sum;
                rest += fma(x, y, -product) + ((sum - (t - z)) + (product - z));
                sum = t;
            }
            c[i * n + j] = sum + rest;
        }
}
