/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous",
  "launches": [
    {"kernel": "rows", "range": "M", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Softmax that propagates NaN through a peak of its own and lets rows of infinities become NaN,
 * as torch does. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_input *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float peak = -INFINITY, sum = 0;
        for (int64_t k = 0; k < n; k++)
            peak = x[i * n + k] > peak ? x[i * n + k] : peak;
        for (int64_t k = 0; k < n; k++)
            sum += y[i * n + k] = expf(x[i * n + k] - peak);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] /= sum;
    }
}
