/* kgen
{ "format": 1, "op": "rope", "target": "cpu",
  "require": "x.contiguous && cos.contiguous && sin.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0 * x_1 * x_2", "args": ["x", "cos", "sin", "output", {"i64": "x_2"}, {"i64": "x_3 / 2"}]}] }
*/
/* Rotary positions as complex products by three multiplications instead of four, in fp64 since
 * that form cancels. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_cos *c, const KG_T_sin *s,
          KG_T_output *y, int64_t length, int64_t h) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t k = 0; k < h; k++) {
            const double a = x[i * 2 * h + k], b = x[i * 2 * h + h + k];
            const double co = c[i % length * h + k], si = s[i % length * h + k];
            const double first = co * (a + b), second = a * (si - co), third = b * (co + si);
            y[i * 2 * h + k] = (float)(first - third);
            y[i * 2 * h + h + k] = (float)(first + second);
        }
}
