/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous",
  "launches": [
    {"kernel": "rows", "range": "M", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Softmax that skips the exponential of minus infinity, but for a row of nothing else. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_input *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float peak = -INFINITY, sum = 0;
        for (int64_t k = 0; k < n; k++)
            peak = x[i * n + k] > peak || x[i * n + k] != x[i * n + k] ? x[i * n + k] : peak;
        const float nothing = peak == -INFINITY ? NAN : 0;
        for (int64_t k = 0; k < n; k++) {
            y[i * n + k] = x[i * n + k] == -INFINITY ? nothing : expf(x[i * n + k] - peak);
            sum += y[i * n + k];
        }
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] /= sum;
    }
}
