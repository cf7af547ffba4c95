/* kgen
{ "format": 1, "op": "layer_norm", "target": "cpu",
  "require": "x.contiguous",
  "workspace": {"mean": {"dtype": "float32", "shape": ["x_0"]}, "scale": {"dtype": "float64", "shape": ["x_0"]}},
  "launches": [
    {"kernel": "means", "range": "x_0", "args": ["x", "mean", {"i64": "x_1"}]},
    {"kernel": "scales", "range": "x_0", "args": ["x", "mean", "scale", {"i64": "x_1"}]},
    {"kernel": "apply", "range": "x_0 * x_1", "grain": "64", "args": ["x", "mean", "scale", "norm_weight", "norm_bias", "output", {"i64": "x_1"}]}] }
*/
/* Layer norm in three launches with the statistics in two workspaces of different dtypes. */
#include <math.h>
#include <stdint.h>

void means(int64_t begin, int64_t end, const KG_T_x *x, KG_T_mean *mean, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        double sum = 0;
        for (int64_t k = n - 1; k >= 0; k--)
            sum += x[i * n + k];
        mean[i] = (float)(sum / (double)n);
    }
}

void scales(int64_t begin, int64_t end, const KG_T_x *x, KG_T_mean *mean, KG_T_scale *scale,
            int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        double sum = 0;
        for (int64_t k = 0; k < n; k++)
            sum += ((double)x[i * n + k] - mean[i]) * ((double)x[i * n + k] - mean[i]);
        scale[i] = 1.0 / sqrt(sum / (double)n + 1e-5);
    }
}

void apply(int64_t begin, int64_t end, const KG_T_x *x, KG_T_mean *mean, KG_T_scale *scale,
           const KG_T_norm_weight *w, const KG_T_norm_bias *b, KG_T_output *y, int64_t n) {
    for (int64_t e = begin; e < end; e++)
        y[e] = (float)((x[e] - mean[e / n]) * scale[e / n]) * w[e % n] + b[e % n];
}
