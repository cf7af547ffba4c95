/* kgen
{ "format": 1, "op": "mean_columns", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "columns", "range": "x_1", "args": ["x", "output", {"i64": "x_0"}, {"i64": "x_1"}]}] }
*/
/* Column means by a running mean, which never holds a sum. */
#include <stdint.h>

void columns(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t m, int64_t n) {
    for (int64_t k = begin; k < end; k++) {
        double mean = 0;
        for (int64_t i = 0; i < m; i++)
            mean += (x[i * n + k] - mean) / (double)(i + 1);
        y[k] = (float)mean;
    }
}
