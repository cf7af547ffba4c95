/* kgen
{ "format": 1, "op": "topk", "target": "cpu",
  "require": "x.contiguous && x_1 >= 4",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output0", "output1", {"i64": "x_1"}]}] }
*/
/* The four largest by four sweeps from the right, so that of equals, whose order torch leaves
 * open, the last comes first. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output0 *v, KG_T_output1 *p,
          int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t k = 0; k < 4; k++) {
            int64_t best = -1;
            for (int64_t m = n - 1; m >= 0; m--) {
                int taken = 0;
                for (int64_t q = 0; q < k; q++)
                    taken |= p[i * 4 + q] == m;
                if (!taken && (best < 0 || x[i * n + m] > x[i * n + best]))
                    best = m;
            }
            p[i * 4 + k] = best;
            v[i * 4 + k] = x[i * n + best];
        }
}
