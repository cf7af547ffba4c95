/* kgen
{ "format": 1, "op": "l2_normalise", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* Rows divided by their length, in fp32. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float square = 0;
        for (int64_t k = 0; k < n; k++)
            square += x[i * n + k] * x[i * n + k];
        const float length = fmaxf(sqrtf(square), 1e-12f);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = x[i * n + k] / length;
    }
}
