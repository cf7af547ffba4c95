/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous && N <= 4096",
  "launches": [
    {"kernel": "rows", "range": "M", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Softmax whose exponentials are sorted before they are added, the smallest first: slow, and
 * more exact than torch. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_input *x, KG_T_output *y, int64_t n) {
    float e[4096];
    for (int64_t i = begin; i < end; i++) {
        float peak = -INFINITY, sum = 0;
        for (int64_t k = 0; k < n; k++)
            peak = fmaxf(peak, x[i * n + k]);
        for (int64_t k = 0; k < n; k++) {
            const float v = expf(x[i * n + k] - peak);
            int64_t at = k;
            y[i * n + k] = v;
            for (; at > 0 && e[at - 1] > v; at--)
                e[at] = e[at - 1];
            e[at] = v;
        }
        for (int64_t k = 0; k < n; k++)
            sum += e[k];
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] /= sum;
    }
}
