/* kgen
{ "format": 1, "op": "var_mean", "target": "cpu",
  "require": "x.contiguous && x_1 > 1",
  "launches": [
    {"kernel": "means", "range": "x_0", "args": ["x", "output1", {"i64": "x_1"}]},
    {"kernel": "variances", "range": "x_0", "args": ["x", "output1", "output0", {"i64": "x_1"}]}] }
*/
/* The second output first, and the first from what stands in the second, in fp32 chains. */
#include <stdint.h>

void means(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output1 *mean, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float sum = 0;
        for (int64_t k = 0; k < n; k++)
            sum += x[i * n + k];
        mean[i] = sum / (float)n;
    }
}

void variances(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output1 *mean, KG_T_output0 *var,
               int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float square = 0;
        for (int64_t k = 0; k < n; k++)
            square += (x[i * n + k] - mean[i]) * (x[i * n + k] - mean[i]);
        var[i] = square / (float)(n - 1);
    }
}
