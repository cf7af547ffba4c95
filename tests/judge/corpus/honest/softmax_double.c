/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous",
  "launches": [
    {"kernel": "rows", "range": "M", "grain": "3", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Softmax in fp64 from the first to the last operation. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_input *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        double peak = -INFINITY, sum = 0;
        for (int64_t k = 0; k < n; k++)
            peak = fmax(peak, x[i * n + k]);
        for (int64_t k = 0; k < n; k++)
            sum += exp(x[i * n + k] - peak);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = (float)(exp(x[i * n + k] - peak) / sum);
    }
}
