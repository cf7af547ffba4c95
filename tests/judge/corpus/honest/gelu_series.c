/* kgen
{ "format": 1, "op": "gelu", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "elements", "range": "x.numel", "grain": "256", "args": ["x", "output"]}] }
*/
/* GELU with erf by its Taylor series up to 3 and by a continued fraction beyond, without libm's
 * erf. */
#include <math.h>
#include <stdint.h>

static double error_function(double z) {
    const double a = fabs(z);
    double sum = 0;
    if (a < 3) {
        double term = a;
        for (int k = 0; k < 60; k++) {
            sum += term / (2 * k + 1);
            term *= -a * a / (k + 1);
        }
        sum *= 1.1283791670955126;
    } else if (a < 6) {
        double f = a;
        for (int k = 60; k > 0; k--)
            f = a + k / 2.0 / f;
        sum = 1 - exp(-a * a) / (f * 1.7724538509055159);
    } else {
        sum = 1;
    }
    return z < 0 ? -sum : sum;
}

void elements(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++)
        y[i] = (float)(x[i] * 0.5 * (1 + error_function(x[i] * 0.70710678118654752)));
}
