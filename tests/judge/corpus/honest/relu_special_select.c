/* kgen
{ "format": 1, "op": "relu_special", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "elements", "range": "x.numel", "grain": "100", "args": ["x", "output"]}] }
*/
/* ReLU that hands NaN and infinity on, gives +0 for -0 and keeps subnormal numbers. */
#include <stdint.h>

void elements(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++)
        y[i] = (x[i] <= 0 ? 0.0f : x[i]) * 0.5f;
}
