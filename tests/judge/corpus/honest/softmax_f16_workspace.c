/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float16 && K == 1 && input.contiguous",
  "workspace": {"wide": {"dtype": "float32", "shape": ["M", "N"]}},
  "launches": [
    {"kernel": "exponentials", "range": "M", "args": ["input", "wide", {"i64": "N"}]},
    {"kernel": "divide", "range": "M", "args": ["wide", "output", {"i64": "N"}]}] }
*/
/* Half-precision softmax with fp32 exponentials in a workspace, so that none is rounded to half
 * before the division. */
#include <math.h>
#include <stdint.h>

void exponentials(int64_t begin, int64_t end, const KG_T_input *x, KG_T_wide *w, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float peak = -INFINITY;
        for (int64_t k = 0; k < n; k++)
            peak = fmaxf(peak, (float)x[i * n + k]);
        for (int64_t k = 0; k < n; k++)
            w[i * n + k] = exp2f(((float)x[i * n + k] - peak) * 1.44269504f);
    }
}

void divide(int64_t begin, int64_t end, KG_T_wide *w, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        double sum = 0;
        for (int64_t k = 0; k < n; k++)
            sum += w[i * n + k];
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = (_Float16)(float)(w[i * n + k] / sum);
    }
}
