/* kgen
{ "format": 1, "op": "variance", "target": "cpu",
  "require": "x.contiguous && x_1 > 1",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* Unbiased variances in two passes with the correction for a mean that was rounded. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float sum = 0, square = 0, rest = 0;
        for (int64_t k = 0; k < n; k++)
            sum += x[i * n + k];
        const float mean = sum / (float)n;
        for (int64_t k = 0; k < n; k++) {
            const float d = x[i * n + k] - mean;
            square += d * d;
            rest += d;
        }
        y[i] = (square - rest * rest / (float)n) / (float)(n - 1);
    }
}
