/* kgen
{ "format": 1, "op": "permute_int8", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "pixels", "range": "x_0 * x_2 * x_3", "grain": "16", "args": ["x", "output", {"i64": "x_1"}, {"i64": "x_2 * x_3"}]}] }
*/
/* Channels last, byte by byte. */
#include <stdint.h>

void pixels(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t c, int64_t hw) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t k = 0; k < c; k++)
            y[i * c + k] = x[(i / hw * c + k) * hw + i % hw];
}
