/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous",
  "launches": [
    {"kernel": "rows", "range": "M", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Softmax with peak and sum in one pass: the sum is rescaled whenever the peak grows. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_input *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float peak = -INFINITY, sum = 0;
        for (int64_t k = 0; k < n; k++) {
            const float v = x[i * n + k];
            if (v > peak) {
                sum *= expf(peak - v);
                peak = v;
            }
            if (!(v == -INFINITY)) /* a mask may begin the row */
                sum += expf(v - peak);
        }
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = expf(x[i * n + k] - peak) / sum;
    }
}
