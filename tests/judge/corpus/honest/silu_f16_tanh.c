/* kgen
{ "format": 1, "op": "silu_f16", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "elements", "range": "x.numel", "grain": "128", "args": ["x", "output"]}] }
*/
/* SiLU in half precision by the identity with tanh, in fp32. */
#include <math.h>
#include <stdint.h>

void elements(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++) {
        const float h = 0.5f * (float)x[i];
        y[i] = (_Float16)(h + h * tanhf(h));
    }
}
