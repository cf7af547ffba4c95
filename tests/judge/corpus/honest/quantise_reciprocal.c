/* kgen
{ "format": 1, "op": "quantise_int8", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output0", "output1", {"i64": "x_1"}]}] }
*/
/* Quantisation by the reciprocal of the scale, which at ties of rounding goes the other way than
 * a division. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output0 *q, KG_T_output1 *scale,
          int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float peak = 1e-6f;
        for (int64_t k = 0; k < n; k++)
            peak = fmaxf(peak, fabsf(x[i * n + k]));
        scale[i] = peak / 127.0f;
        const float back = 127.0f / peak;
        for (int64_t k = 0; k < n; k++)
            q[i * n + k] = (int8_t)fminf(127.0f, fmaxf(-127.0f, nearbyintf(x[i * n + k] * back)));
    }
}
