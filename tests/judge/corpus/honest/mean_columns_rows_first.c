/* kgen
{ "format": 1, "op": "mean_columns", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "columns", "range": "x_1", "grain": "8", "args": ["x", "output", {"i64": "x_0"}, {"i64": "x_1"}]}] }
*/
/* Column means that read row after row and add into the output. */
#include <stdint.h>

void columns(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t m, int64_t n) {
    for (int64_t k = begin; k < end; k++)
        y[k] = 0;
    for (int64_t i = 0; i < m; i++)
        for (int64_t k = begin; k < end; k++)
            y[k] += x[i * n + k];
    for (int64_t k = begin; k < end; k++)
        y[k] /= (float)m;
}
