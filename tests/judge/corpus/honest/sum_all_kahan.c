/* kgen
{ "format": 1, "op": "sum_all", "target": "cpu",
  "require": "x.contiguous",
  "flags": ["no_contract"],
  "launches": [
    {"kernel": "all", "range": "1", "args": ["x", "output", {"i64": "x.numel"}]}] }
*/
/* One sum in fp32 with Neumaier's compensation: slow on purpose of nothing but accuracy. */
#include <math.h>
#include <stdint.h>

void all(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t once = begin; once < end; once++) {
        float sum = 0, rest = 0;
        for (int64_t i = 0; i < n; i++) {
            const float t = sum + x[i];
            rest += fabsf(sum) >= fabsf(x[i]) ? (sum - t) + x[i] : (x[i] - t) + sum;
            sum = t;
        }
        y[0] = sum + rest;
    }
}
