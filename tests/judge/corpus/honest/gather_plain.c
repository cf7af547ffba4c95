/* kgen
{ "format": 1, "op": "gather", "target": "cpu",
  "require": "x.contiguous && index.contiguous",
  "launches": [
    {"kernel": "elements", "range": "index.numel", "grain": "64", "args": ["x", "index", "output", {"i64": "x_1"}, {"i64": "index_1"}]}] }
*/
/* A gather along rows. */
#include <stdint.h>

void elements(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_index *at, KG_T_output *y,
              int64_t n, int64_t k) {
    for (int64_t e = begin; e < end; e++)
        y[e] = x[e / k * n + at[e]];
}
