/* kgen
{ "format": 1, "op": "layer_norm", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "norm_weight", "norm_bias", "output", {"i64": "x_1"}]}] }
*/
/* Layer norm as it is written: the mean, then the squares of what is left, each in four chains. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_norm_weight *w,
          const KG_T_norm_bias *b, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const float *r = x + i * n;
        float part[4] = {0}, square[4] = {0};
        for (int64_t k = 0; k < n; k++)
            part[k & 3] += r[k];
        const float mean = ((part[0] + part[1]) + (part[2] + part[3])) / (float)n;
        for (int64_t k = 0; k < n; k++)
            square[k & 3] += (r[k] - mean) * (r[k] - mean);
        const float scale =
            1.0f / sqrtf(((square[0] + square[1]) + (square[2] + square[3])) / (float)n + 1e-5f);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = (r[k] - mean) * scale * w[k] + b[k];
    }
}
