/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous",
  "launches": [
    {"kernel": "rows", "range": "M", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Softmax with the exponential from a table of 256 powers of two in read-only data and a cubic
 * between its entries. */
#include <math.h>
#include <stdint.h>

#define T4(a) a, a * 1.00271127505020249, a * 1.00542990111280283, a * 1.00815589811841752
#define T16(a)                                                                                     \
    T4(a), T4(a * 1.01088928605170046), T4(a * 1.02189714865411668), T4(a * 1.03302487902122841)
#define T64(a)                                                                                     \
    T16(a), T16(a * 1.04427378242741385), T16(a * 1.09050773266525766), T16(a * 1.13878863475669166)

static const double TABLE[256] = {T64(1.0), T64(1.18920711500272107), T64(1.41421356237309505),
                                  T64(1.68179283050742909)};

static double ex(double x) {
    const double k = floor(x * 369.32993046757463 + 0.5), r = x - k * 0.0027076061740622863;
    const int64_t n = (int64_t)k;
    return x < -200 ? 0 : ldexp(TABLE[n & 255] * (1 + r * (1 + r * (0.5 + r / 6))), (int)(n >> 8));
}

void rows(int64_t begin, int64_t end, const KG_T_input *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        double peak = -INFINITY, sum = 0;
        for (int64_t k = 0; k < n; k++)
            peak = fmax(peak, x[i * n + k]);
        for (int64_t k = 0; k < n; k++)
            sum += ex(x[i * n + k] - peak);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = (float)(ex(x[i * n + k] - peak) / sum);
    }
}
