/* kgen
{ "format": 1, "op": "var_mean", "target": "cpu",
  "require": "x.contiguous && x_1 > 1",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output0", "output1", {"i64": "x_1"}]}] }
*/
/* Variance and mean at once, in fp64. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output0 *var, KG_T_output1 *mean,
          int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        double sum = 0, square = 0;
        for (int64_t k = 0; k < n; k++)
            sum += x[i * n + k];
        for (int64_t k = 0; k < n; k++)
            square += (x[i * n + k] - sum / (double)n) * (x[i * n + k] - sum / (double)n);
        mean[i] = (float)(sum / (double)n);
        var[i] = (float)(square / (double)(n - 1));
    }
}
