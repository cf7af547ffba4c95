/* kgen
{ "format": 1, "op": "topk", "target": "cpu",
  "require": "x.contiguous && x_1 >= 4",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output0", "output1", {"i64": "x_1"}]}] }
*/
/* The four largest by insertion from the left, so that of equals the first comes first. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output0 *v, KG_T_output1 *p,
          int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        for (int k = 0; k < 4; k++) {
            v[i * 4 + k] = -INFINITY;
            p[i * 4 + k] = k;
        }
        for (int64_t k = 0; k < n; k++) {
            const float own = x[i * n + k];
            int at = 4;
            while (at > 0 && own > v[i * 4 + at - 1])
                at--;
            for (int m = 3; m > at; m--) {
                v[i * 4 + m] = v[i * 4 + m - 1];
                p[i * 4 + m] = p[i * 4 + m - 1];
            }
            if (at < 4) {
                v[i * 4 + at] = own;
                p[i * 4 + at] = k;
            }
        }
    }
}
