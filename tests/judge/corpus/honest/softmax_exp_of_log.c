/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous",
  "launches": [
    {"kernel": "rows", "range": "M", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Softmax without a division: exp(x - peak - log(sum)), the logarithm kept in fp64. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_input *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float peak = -INFINITY;
        double sum = 0;
        for (int64_t k = 0; k < n; k++)
            peak = fmaxf(peak, x[i * n + k]);
        for (int64_t k = 0; k < n; k++)
            sum += (double)expf(x[i * n + k] - peak);
        const double scale = log(sum);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = (float)exp((double)x[i * n + k] - (double)peak - scale);
    }
}
