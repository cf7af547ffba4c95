/* kgen
{ "format": 1, "op": "batch_norm", "target": "cpu",
  "require": "x.contiguous",
  "workspace": {"folded": {"dtype": "float32", "shape": ["2", "x_1"]}},
  "launches": [
    {"kernel": "fold", "range": "x_1", "args": ["norm_weight", "norm_bias", "norm_running_mean", "norm_running_var", "folded", {"i64": "x_1"}]},
    {"kernel": "apply", "range": "x_0 * x_1", "args": ["x", "folded", "output", {"i64": "x_1"}, {"i64": "x_2 * x_3"}]}] }
*/
/* Batch norm folded ahead into a scale and an offset a channel, as every inference engine does. */
#include <math.h>
#include <stdint.h>

void fold(int64_t begin, int64_t end, const KG_T_norm_weight *w, const KG_T_norm_bias *b,
          const KG_T_norm_running_mean *mean, const KG_T_norm_running_var *var, KG_T_folded *f,
          int64_t c) {
    for (int64_t i = begin; i < end; i++) {
        f[i] = w[i] / sqrtf(var[i] + 1e-5f);
        f[c + i] = b[i] - mean[i] * f[i];
    }
}

void apply(int64_t begin, int64_t end, const KG_T_x *x, KG_T_folded *f, KG_T_output *y, int64_t c,
           int64_t hw) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t k = 0; k < hw; k++)
            y[i * hw + k] = x[i * hw + k] * f[i % c] + f[c + i % c];
}
