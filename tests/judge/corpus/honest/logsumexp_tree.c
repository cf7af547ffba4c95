/* kgen
{ "format": 1, "op": "logsumexp", "target": "cpu",
  "require": "x.contiguous && x_1 > 0",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* The fp64 log-sum-exp by halves: two results are joined as max + log1p(exp(-difference)). */
#include <math.h>
#include <stdint.h>

static double half(const double *x, int64_t n) {
    if (n == 1)
        return x[0];
    const double a = half(x, n / 2), b = half(x + n / 2, n - n / 2), top = a > b ? a : b;
    return top == -INFINITY ? top : top + log1p(exp((a > b ? b : a) - top));
}

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++)
        y[i] = half(x + i * n, n);
}
