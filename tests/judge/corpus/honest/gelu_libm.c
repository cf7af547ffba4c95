/* kgen
{ "format": 1, "op": "gelu", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "elements", "range": "x.numel", "grain": "256", "args": ["x", "output"]}] }
*/
/* GELU by libm's erff. */
#include <math.h>
#include <stdint.h>

void elements(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++)
        y[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
}
