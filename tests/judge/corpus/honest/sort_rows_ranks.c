/* kgen
{ "format": 1, "op": "sort_rows", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0 * x_1", "grain": "8", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* Each element goes where as many others are smaller, whoever of its row is placed elsewhere at
 * the same time. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t e = begin; e < end; e++) {
        const float *r = x + e / n * n, own = x[e];
        int64_t rank = 0;
        for (int64_t k = 0; k < n; k++)
            rank += r[k] < own || (r[k] == own && k < e % n);
        y[e / n * n + rank] = own;
    }
}
