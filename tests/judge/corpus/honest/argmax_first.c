/* kgen
{ "format": 1, "op": "argmax", "target": "cpu",
  "require": "x.contiguous && x_1 > 0",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* The place of the largest, forwards, the first of equals, NaN above all. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const float *r = x + i * n;
        int64_t best = 0;
        for (int64_t k = 1; k < n && r[best] == r[best]; k++)
            if (r[k] > r[best] || r[k] != r[k])
                best = k;
        y[i] = best;
    }
}
