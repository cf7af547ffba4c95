/* kgen
{ "format": 1, "op": "aminmax", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output0", "output1", {"i64": "x_1"}]}] }
*/
/* Least and largest of a row in one pass, with NaN passed on. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output0 *low, KG_T_output1 *high,
          int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float a = INFINITY, b = -INFINITY, nan = 0;
        for (int64_t k = 0; k < n; k++) {
            const float v = x[i * n + k];
            a = v < a ? v : a;
            b = v > b ? v : b;
            nan = v != v ? v : nan;
        }
        low[i] = nan != nan ? nan : a;
        high[i] = nan != nan ? nan : b;
    }
}
