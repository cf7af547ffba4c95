/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && input.contiguous",
  "launches": [
    {"kernel": "columns", "range": "M * K", "args": ["input", "output", {"i64": "N"}, {"i64": "K"}]}] }
*/
/* Softmax along a middle dim, one column at a time with a stride: slow for its caches. */
#include <math.h>
#include <stdint.h>

void columns(int64_t begin, int64_t end, const KG_T_input *x, KG_T_output *y, int64_t n,
             int64_t k) {
    for (int64_t t = begin; t < end; t++) {
        const int64_t at = t / k * n * k + t % k;
        float peak = -INFINITY, sum = 0;
        for (int64_t r = 0; r < n; r++)
            peak = fmaxf(peak, x[at + r * k]);
        for (int64_t r = 0; r < n; r++)
            sum += expf(x[at + r * k] - peak);
        for (int64_t r = 0; r < n; r++)
            y[at + r * k] = expf(x[at + r * k] - peak) / sum;
    }
}
