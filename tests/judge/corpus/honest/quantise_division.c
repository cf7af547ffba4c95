/* kgen
{ "format": 1, "op": "quantise_int8", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output0", "output1", {"i64": "x_1"}]}] }
*/
/* Quantisation by division in fp64 of the fp64 scale. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output0 *q, KG_T_output1 *scale,
          int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        double peak = 1e-6;
        for (int64_t k = 0; k < n; k++)
            peak = fmax(peak, fabs((double)x[i * n + k]));
        scale[i] = (float)(peak / 127);
        for (int64_t k = 0; k < n; k++)
            q[i * n + k] = (int8_t)rint(x[i * n + k] / (peak / 127));
    }
}
