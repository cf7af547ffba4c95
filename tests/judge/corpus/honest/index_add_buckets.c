/* kgen
{ "format": 1, "op": "index_add", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "buckets", "range": "output.size(0)", "args": ["x", "index", "output", {"i64": "x_0"}, {"i64": "x_1"}]}] }
*/
/* Each bucket looks for its own rows, so that no two threads write one place. */
#include <stdint.h>

void buckets(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_index *at, KG_T_output *y,
             int64_t m, int64_t n) {
    for (int64_t b = begin; b < end; b++) {
        for (int64_t k = 0; k < n; k++)
            y[b * n + k] = 0;
        for (int64_t i = m - 1; i >= 0; i--)
            for (int64_t k = 0; at[i] == b && k < n; k++)
                y[b * n + k] += x[i * n + k];
    }
}
