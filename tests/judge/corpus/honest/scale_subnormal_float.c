/* kgen
{ "format": 1, "op": "scale_subnormal", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "scale", "output", {"i64": "x_1"}]}] }
*/
/* A product whose results are subnormal, in fp32 as it is. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_scale *s, KG_T_output *y,
          int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = x[i * n + k] * s[k];
}
