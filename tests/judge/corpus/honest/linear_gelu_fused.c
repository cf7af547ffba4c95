/* kgen
{ "format": 1, "op": "linear_gelu", "target": "cpu",
  "require": "x.contiguous && linear_weight.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "linear_weight", "linear_bias", "output", {"i64": "x_1"}, {"i64": "linear_weight_0"}]}] }
*/
/* A linear layer, its bias and GELU in one pass, the bias as the start of the sum. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_linear_weight *w,
          const KG_T_linear_bias *b, KG_T_output *y, int64_t k, int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < n; j++) {
            float sum = b[j];
            for (int64_t p = 0; p < k; p++)
                sum += x[i * k + p] * w[j * k + p];
            y[i * n + j] = 0.5f * sum * (1.0f + erff(sum * 0.70710678f));
        }
}
