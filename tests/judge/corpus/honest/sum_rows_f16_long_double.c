/* kgen
{ "format": 1, "op": "sum_rows_f16", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* Half-precision row sums in long double from the right: exact, and rounded once. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        long double sum = 0;
        for (int64_t k = n; k-- > 0;)
            sum += (long double)x[i * n + k];
        y[i] = (_Float16)sum;
    }
}
