/* kgen
{ "format": 1, "op": "layer_norm", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "norm_weight", "norm_bias", "output", {"i64": "x_1"}]}] }
*/
/* Layer norm in one pass over sums and squares of the distance from the row's first element, so
 * that an offset does not cancel. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_norm_weight *w,
          const KG_T_norm_bias *b, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const float *r = x + i * n, first = r[0];
        double sum = 0, square = 0;
        for (int64_t k = 0; k < n; k++) {
            const double d = (double)r[k] - first;
            sum += d;
            square += d * d;
        }
        const double mean = sum / (double)n, var = square / (double)n - mean * mean;
        const float scale = (float)(1.0 / sqrt((var > 0 ? var : 0) + 1e-5)),
                    middle = (float)(mean + first);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = (r[k] - middle) * scale * w[k] + b[k];
    }
}
