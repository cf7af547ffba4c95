/* kgen
{ "format": 1, "op": "isfinite", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "elements", "range": "x.numel", "grain": "100", "args": ["x", "output"]}] }
*/
/* What is finite, by x - x being zero. */
#include <stdint.h>

void elements(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++)
        y[i] = x[i] - x[i] == 0;
}
