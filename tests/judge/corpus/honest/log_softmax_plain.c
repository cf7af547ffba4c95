/* kgen
{ "format": 1, "op": "log_softmax", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* Log-softmax in fp32: peak, sum of exponentials, and one subtraction at the end. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float peak = -INFINITY, sum = 0;
        for (int64_t k = 0; k < n; k++)
            peak = x[i * n + k] > peak ? x[i * n + k] : peak;
        for (int64_t k = 0; k < n; k++)
            sum += expf(x[i * n + k] - peak);
        const float log_sum = logf(sum);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = (x[i * n + k] - peak) - log_sum;
    }
}
