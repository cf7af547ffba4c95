/* kgen
{ "format": 1, "op": "sum_all", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "all", "range": "1", "args": ["x", "output", {"i64": "x.numel"}]}] }
*/
/* One sum of 100,000 elements in one fp32 chain, the least exact order there is. */
#include <stdint.h>

void all(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t once = begin; once < end; once++) {
        float sum = 0;
        for (int64_t i = 0; i < n; i++)
            sum += x[i];
        y[0] = sum;
    }
}
