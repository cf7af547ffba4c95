/* kgen
{ "format": 1, "op": "softmax_f64", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* Softmax of fp64 rows with sum and quotient in long double. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        double peak = -INFINITY;
        long double sum = 0;
        for (int64_t k = 0; k < n; k++)
            peak = x[i * n + k] > peak ? x[i * n + k] : peak;
        for (int64_t k = 0; k < n; k++)
            sum += exp(x[i * n + k] - peak);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = (double)(exp(x[i * n + k] - peak) / sum);
    }
}
