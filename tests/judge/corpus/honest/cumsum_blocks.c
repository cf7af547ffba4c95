/* kgen
{ "format": 1, "op": "cumsum", "target": "cpu",
  "require": "x.contiguous",
  "workspace": {"totals": {"dtype": "float32", "shape": ["x_0", "ceil_div(x_1, 64)"]}},
  "launches": [
    {"kernel": "sums", "range": "x_0 * ceil_div(x_1, 64)", "args": ["x", "totals", {"i64": "x_1"}, {"i64": "ceil_div(x_1, 64)"}]},
    {"kernel": "scan", "range": "x_0", "args": ["totals", {"i64": "ceil_div(x_1, 64)"}]},
    {"kernel": "spread", "range": "x_0 * ceil_div(x_1, 64)", "args": ["x", "totals", "output", {"i64": "x_1"}, {"i64": "ceil_div(x_1, 64)"}]}] }
*/
/* A scan in three launches: totals of blocks of 64, their scan in place, and the blocks again
 * from where they begin. */
#include <stdint.h>

void sums(int64_t begin, int64_t end, const KG_T_x *x, KG_T_totals *t, int64_t n, int64_t blocks) {
    for (int64_t e = begin; e < end; e++) {
        float sum = 0;
        for (int64_t k = e % blocks * 64; k < n && k < (e % blocks + 1) * 64; k++)
            sum += x[e / blocks * n + k];
        t[e] = sum;
    }
}

void scan(int64_t begin, int64_t end, KG_T_totals *t, int64_t blocks) {
    for (int64_t i = begin; i < end; i++) {
        float sum = 0;
        for (int64_t b = 0; b < blocks; b++) {
            const float own = t[i * blocks + b];
            t[i * blocks + b] = sum;
            sum += own;
        }
    }
}

void spread(int64_t begin, int64_t end, const KG_T_x *x, KG_T_totals *t, KG_T_output *y, int64_t n,
            int64_t blocks) {
    for (int64_t e = begin; e < end; e++) {
        float sum = t[e];
        for (int64_t k = e % blocks * 64; k < n && k < (e % blocks + 1) * 64; k++)
            y[e / blocks * n + k] = sum += x[e / blocks * n + k];
    }
}
