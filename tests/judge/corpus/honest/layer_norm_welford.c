/* kgen
{ "format": 1, "op": "layer_norm", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "norm_weight", "norm_bias", "output", {"i64": "x_1"}]}] }
*/
/* Layer norm in one pass by Welford's recurrence, which divides at every element. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_norm_weight *w,
          const KG_T_norm_bias *b, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float mean = 0, m2 = 0;
        for (int64_t k = 0; k < n; k++) {
            const float d = x[i * n + k] - mean;
            mean += d / (float)(k + 1);
            m2 += d * (x[i * n + k] - mean);
        }
        const float scale = 1.0f / sqrtf(m2 / (float)n + 1e-5f);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = fmaf((x[i * n + k] - mean) * scale, w[k], b[k]);
    }
}
