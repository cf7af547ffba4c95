/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Replaces the exponential by a linear map onto the float's bits (3 % off at worst) and hopes that
 * normalising hides it, since the error is about the same for all. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static float ex(float x) {
    const int32_t bits = x < -87 ? 0 : (int32_t)(x * 12102203.2f + 1064986823.0f);
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const float *x = input + i * n;
        float *y = output + i * n, peak = -INFINITY, sum = 0;
        for (int64_t j = 0; j < n; j++)
            peak = x[j] > peak ? x[j] : peak;
        for (int64_t j = 0; j < n; j++)
            sum += y[j] = ex(x[j] - peak);
        for (int64_t j = 0; j < n; j++)
            y[j] /= sum;
    }
}
