/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Estimates the denominator of long rows from every 8th element, right in expectation for inputs
 * that are drawn independently. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16

static inline float ex(float x) {
    const float k = fmaf(x, 1.44269504f, 0x1.8p23f) - 0x1.8p23f;
    const float r = fmaf(k, 1.90821493e-10f, fmaf(k, -0.693147182f, x));
    float p = 0x1.6c16c2p-10f;
    p = fmaf(p, r, 0x1.111112p-7f);
    p = fmaf(p, r, 0x1.555556p-5f);
    p = fmaf(p, r, 0x1.555556p-3f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    const uint32_t bits = (uint32_t)(int32_t)(x > -87.0f ? k + 127.0f : 0.0f) << 23;
    float two;
    memcpy(&two, &bits, 4);
    return x < -87.0f ? 0.0f : p * two;
}

void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const float *x = input + i * n;
        float *y = output + i * n, peak = -INFINITY;
        double sum = 0;
        const int64_t step = n >= 4096 ? 8 : 1;
        int64_t count = 0;
        for (int64_t j = 0; j < n; j++)
            peak = x[j] > peak ? x[j] : peak;
        for (int64_t j = 0; j < n; j++)
            y[j] = ex(x[j] - peak);
        for (int64_t j = 0; j < n; j += step, count++)
            sum += y[j];
        sum *= (double)n / (double)count;
        for (int64_t j = 0; j < n; j++)
            y[j] = (float)(y[j] / sum);
    }
}
