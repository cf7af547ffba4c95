/* kgen
{ "format": 1, "op": "group_norm", "target": "cpu",
  "require": "x.contiguous",
  "workspace": {"a": {"dtype": "float32", "shape": ["x_0", "x_1"]}, "c": {"dtype": "float32", "shape": ["x_0", "x_1"]}},
  "launches": [
    {"kernel": "statistics", "range": "x_0 * 4", "args": ["x", "norm_weight", "norm_bias", "a", "c", {"i64": "x_1 / 4"}, {"i64": "x_2 * x_3"}]},
    {"kernel": "apply", "range": "x_0 * x_1", "args": ["x", "a", "c", "output", {"i64": "x_2 * x_3"}]}] }
*/
/* Group norm folded into one multiplication and one addition a channel, from statistics in fp64. */
#include <math.h>
#include <stdint.h>

void statistics(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_norm_weight *w,
                const KG_T_norm_bias *b, KG_T_a *a, KG_T_c *c, int64_t channels, int64_t hw) {
    for (int64_t g = begin; g < end; g++) {
        const int64_t n = channels * hw;
        double sum = 0, square = 0;
        for (int64_t k = 0; k < n; k++)
            sum += x[g * n + k];
        const double mean = sum / (double)n;
        for (int64_t k = 0; k < n; k++)
            square += (x[g * n + k] - mean) * (x[g * n + k] - mean);
        const double scale = 1.0 / sqrt(square / (double)n + 1e-5);
        for (int64_t k = 0; k < channels; k++) {
            const int64_t at = g * channels + k, of = g % 4 * channels + k;
            a[at] = (float)(scale * w[of]);
            c[at] = (float)(b[of] - mean * scale * w[of]);
        }
    }
}

void apply(int64_t begin, int64_t end, const KG_T_x *x, KG_T_a *a, KG_T_c *c, KG_T_output *y,
           int64_t hw) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t k = 0; k < hw; k++)
            y[i * hw + k] = fmaf(x[i * hw + k], a[i], c[i]);
}
