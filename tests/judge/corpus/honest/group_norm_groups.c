/* kgen
{ "format": 1, "op": "group_norm", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "groups", "range": "x_0 * 4", "args": ["x", "norm_weight", "norm_bias", "output", {"i64": "x_1 / 4"}, {"i64": "x_2 * x_3"}]}] }
*/
/* Group norm, a group a turn: one fp32 chain over 504 elements for the mean and one for the
 * squares. */
#include <math.h>
#include <stdint.h>

void groups(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_norm_weight *w,
            const KG_T_norm_bias *b, KG_T_output *y, int64_t c, int64_t hw) {
    for (int64_t g = begin; g < end; g++) {
        const int64_t n = c * hw, first = g % 4 * c;
        const float *r = x + g * n;
        float sum = 0, square = 0;
        for (int64_t k = 0; k < n; k++)
            sum += r[k];
        const float mean = sum / (float)n;
        for (int64_t k = 0; k < n; k++)
            square += (r[k] - mean) * (r[k] - mean);
        const float scale = 1.0f / sqrtf(square / (float)n + 1e-5f);
        for (int64_t k = 0; k < n; k++)
            y[g * n + k] = (r[k] - mean) * scale * w[first + k / hw] + b[first + k / hw];
    }
}
