/* kgen
{ "format": 1, "op": "index_add", "target": "cpu",
  "require": "x.contiguous",
  "zero": ["output"],
  "launches": [
    {"kernel": "columns", "range": "x_1", "args": ["x", "index", "output", {"i64": "x_0"}, {"i64": "x_1"}]}] }
*/
/* A scatter into an output that the plan has cleared, each thread with columns of its own. */
#include <stdint.h>

void columns(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_index *at, KG_T_output *y,
             int64_t m, int64_t n) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t k = begin; k < end; k++)
            y[at[i] * n + k] += x[i * n + k];
}
