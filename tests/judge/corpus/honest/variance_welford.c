/* kgen
{ "format": 1, "op": "variance", "target": "cpu",
  "require": "x.contiguous && x_1 > 1",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* Unbiased variances by Welford in fp32. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float mean = 0, m2 = 0;
        for (int64_t k = 0; k < n; k++) {
            const float d = x[i * n + k] - mean;
            mean += d / (float)(k + 1);
            m2 += d * (x[i * n + k] - mean);
        }
        y[i] = m2 / (float)(n - 1);
    }
}
