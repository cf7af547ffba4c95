/* kgen
{ "format": 1, "op": "batch_norm", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "channels", "range": "x_0 * x_1", "args": ["x", "norm_weight", "norm_bias", "norm_running_mean", "norm_running_var", "output", {"i64": "x_1"}, {"i64": "x_2 * x_3"}]}] }
*/
/* Batch norm of inference: subtract, scale, weigh, add, in that order. */
#include <math.h>
#include <stdint.h>

void channels(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_norm_weight *w,
              const KG_T_norm_bias *b, const KG_T_norm_running_mean *mean,
              const KG_T_norm_running_var *var, KG_T_output *y, int64_t c, int64_t hw) {
    for (int64_t i = begin; i < end; i++) {
        const float scale = 1.0f / sqrtf(var[i % c] + 1e-5f);
        for (int64_t k = 0; k < hw; k++)
            y[i * hw + k] = (x[i * hw + k] - mean[i % c]) * scale * w[i % c] + b[i % c];
    }
}
