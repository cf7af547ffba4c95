/* kgen
{ "format": 1, "op": "layer_norm_f16", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "norm_weight", "norm_bias", "output", {"i64": "x_1"}]}] }
*/
/* Half-precision layer norm whose sums are fp32 and which rounds once, at the end. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_norm_weight *w,
          const KG_T_norm_bias *b, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float sum = 0, square = 0;
        for (int64_t k = 0; k < n; k++)
            sum += (float)x[i * n + k];
        const float mean = sum / (float)n;
        for (int64_t k = 0; k < n; k++)
            square += ((float)x[i * n + k] - mean) * ((float)x[i * n + k] - mean);
        const float scale = 1.0f / sqrtf(square / (float)n + 1e-5f);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] =
                (_Float16)(((float)x[i * n + k] - mean) * scale * (float)w[k] + (float)b[k]);
    }
}
