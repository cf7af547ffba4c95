/* kgen
{ "format": 1, "op": "mse_loss", "target": "cpu",
  "require": "x.contiguous && y.contiguous",
  "launches": [
    {"kernel": "all", "range": "1", "args": ["x", "y", "output", {"i64": "x.numel"}]}] }
*/
/* The mean squared difference in one fp32 chain of 6,400 elements. */
#include <math.h>
#include <stdint.h>

void all(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_y *y, KG_T_output *out,
         int64_t n) {
    for (int64_t once = begin; once < end; once++) {
        float sum = 0;
        for (int64_t i = 0; i < n; i++) {
            const float d = x[i] - y[i];
            sum = fmaf(d, d, sum);
        }
        out[0] = sum / (float)n;
    }
}
