/* kgen
{ "format": 1, "op": "matvec", "target": "cpu",
  "require": "a.contiguous",
  "launches": [
    {"kernel": "rows", "range": "a_0", "args": ["a", "x", "output", {"i64": "a_1"}]}] }
*/
/* A matrix times a vector, each row one chain of 3000 fused multiply-adds: the slowest and least
 * exact order that is honest. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_x *x, KG_T_output *y, int64_t k) {
    for (int64_t i = begin; i < end; i++) {
        float sum = 0;
        for (int64_t p = 0; p < k; p++)
            sum = fmaf(a[i * k + p], x[p], sum);
        y[i] = sum;
    }
}
