/* kgen
{ "format": 1, "op": "linear_gelu", "target": "cpu",
  "require": "x.contiguous && linear_weight.contiguous",
  "launches": [
    {"kernel": "multiply", "range": "x_0 * linear_weight_0", "grain": "16", "args": ["x", "linear_weight", "output", {"i64": "x_1"}, {"i64": "linear_weight_0"}]},
    {"kernel": "finish", "range": "x_0 * linear_weight_0", "grain": "256", "args": ["linear_bias", "output", {"i64": "linear_weight_0"}]}] }
*/
/* A linear layer whose product is parked in the output and read again by a second launch for
 * bias and GELU. */
#include <math.h>
#include <stdint.h>

void multiply(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_linear_weight *w,
              KG_T_output *y, int64_t k, int64_t n) {
    for (int64_t e = begin; e < end; e++) {
        const float *r = x + e / n * k, *c = w + e % n * k;
        float part[8] = {0};
        for (int64_t p = 0; p < k; p++)
            part[p & 7] += r[p] * c[p];
        y[e] = ((part[0] + part[4]) + (part[1] + part[5])) +
               ((part[2] + part[6]) + (part[3] + part[7]));
    }
}

void finish(int64_t begin, int64_t end, const KG_T_linear_bias *b, KG_T_output *y, int64_t n) {
    for (int64_t e = begin; e < end; e++) {
        const double v = (double)y[e] + b[e % n];
        y[e] = (float)(0.5 * v * (1 + erf(v * 0.70710678118654752)));
    }
}
