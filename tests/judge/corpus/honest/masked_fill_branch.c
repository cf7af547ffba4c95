/* kgen
{ "format": 1, "op": "masked_fill", "target": "cpu",
  "require": "x.contiguous && mask.contiguous",
  "launches": [
    {"kernel": "elements", "range": "x.numel", "grain": "100", "args": ["x", "mask", "output"]}] }
*/
/* A bool decides what is kept. */
#include <stdint.h>

void elements(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_mask *m, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++)
        y[i] = m[i] ? -1.0f : x[i];
}
