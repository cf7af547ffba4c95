/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float16 && K == 1 && input.contiguous",
  "launches": [
    {"kernel": "rows", "range": "M", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Half-precision softmax in fp32, rounded once at the end. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_input *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float peak = -INFINITY, sum = 0;
        for (int64_t k = 0; k < n; k++)
            peak = fmaxf(peak, (float)x[i * n + k]);
        for (int64_t k = 0; k < n; k++)
            sum += expf((float)x[i * n + k] - peak);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = (_Float16)(expf((float)x[i * n + k] - peak) / sum);
    }
}
