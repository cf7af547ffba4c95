/* kgen
{ "format": 1, "op": "sort_rows", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* Small rows sorted by insertion, in the output. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t k = 0; k < n; k++) {
            int64_t at = k;
            for (; at > 0 && y[i * n + at - 1] > x[i * n + k]; at--)
                y[i * n + at] = y[i * n + at - 1];
            y[i * n + at] = x[i * n + k];
        }
}
