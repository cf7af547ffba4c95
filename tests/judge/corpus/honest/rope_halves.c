/* kgen
{ "format": 1, "op": "rope", "target": "cpu",
  "require": "x.contiguous && cos.contiguous && sin.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0 * x_1 * x_2", "args": ["x", "cos", "sin", "output", {"i64": "x_2"}, {"i64": "x_3 / 2"}]}] }
*/
/* Rotary positions, both halves of a row at once. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_cos *c, const KG_T_sin *s,
          KG_T_output *y, int64_t length, int64_t h) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t k = 0; k < h; k++) {
            const float a = x[i * 2 * h + k], b = x[i * 2 * h + h + k];
            const float co = c[i % length * h + k], si = s[i % length * h + k];
            y[i * 2 * h + k] = a * co - b * si;
            y[i * 2 * h + h + k] = b * co + a * si;
        }
}
