/* kgen
{ "format": 1, "op": "tril", "target": "cpu",
  "require": "x.contiguous",
  "zero": ["output"],
  "launches": [
    {"kernel": "rows", "range": "x_0 * x_1", "args": ["x", "output", {"i64": "x_1"}, {"i64": "x_2"}]}] }
*/
/* The lower triangle copied into an output that the plan has cleared: above it nothing is
 * written. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t m, int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t k = 0; k < n && k <= i % m; k++)
            y[i * n + k] = x[i * n + k];
}
