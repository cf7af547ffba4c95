/* kgen
{ "format": 1, "op": "cumsum", "target": "cpu",
  "require": "x.contiguous",
  "flags": ["no_contract"],
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* Running sums in fp32 with Kahan's compensation. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float sum = 0, lost = 0;
        for (int64_t k = 0; k < n; k++) {
            const float v = x[i * n + k] - lost, next = sum + v;
            lost = (next - sum) - v;
            y[i * n + k] = sum = next;
        }
    }
}
