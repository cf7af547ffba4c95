/* kgen
{ "format": 1, "op": "gelu", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "elements", "range": "x.numel", "grain": "256", "args": ["x", "output"]}] }
*/
/* GELU by erfc in fp64, which keeps its relative accuracy in the left tail where 1 + erf
 * cancels. */
#include <math.h>
#include <stdint.h>

void elements(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++)
        y[i] = (float)(0.5 * x[i] * erfc(-x[i] * 0.70710678118654752));
}
