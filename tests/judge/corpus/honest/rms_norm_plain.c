/* kgen
{ "format": 1, "op": "rms_norm", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "weight", "output", {"i64": "x_1"}]}] }
*/
/* RMSNorm for any number of rows, squares summed in one fp32 chain. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_weight *w, KG_T_output *y,
          int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float square = 0;
        for (int64_t k = 0; k < n; k++)
            square += x[i * n + k] * x[i * n + k];
        const float scale = 1.0f / sqrtf(square / (float)n + 1e-6f);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = w[k] * (x[i * n + k] * scale);
    }
}
