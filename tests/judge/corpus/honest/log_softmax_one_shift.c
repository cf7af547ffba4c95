/* kgen
{ "format": 1, "op": "log_softmax", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* Log-softmax with one shift for peak and logarithm, kept in fp64 because rounding it would cost
 * the offset's digits. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float peak = -INFINITY;
        double sum = 0;
        for (int64_t k = 0; k < n; k++)
            peak = fmaxf(peak, x[i * n + k]);
        for (int64_t k = 0; k < n; k++)
            sum += (double)expf(x[i * n + k] - peak);
        const double shift = peak + log(sum);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = (float)(x[i * n + k] - shift);
    }
}
