/* kgen
{ "format": 1, "op": "cumsum", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* Running sums in one fp32 chain a row, where torch's CPU keeps a double. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float sum = 0;
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = sum += x[i * n + k];
    }
}
