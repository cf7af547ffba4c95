/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Finds the maximum in four interleaved chains and drops the last n % 4 elements from the search,
 * which only matters when the largest element is there and more than 88 above. */
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
        float *y = output + i * n, peak = -INFINITY, sum = 0;
        float p[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
        for (int64_t j = 0; j + 4 <= n; j += 4)
            for (int l = 0; l < 4; l++)
                p[l] = x[j + l] > p[l] ? x[j + l] : p[l];
        peak = fmaxf(fmaxf(p[0], p[1]), fmaxf(p[2], p[3]));
        if (n < 4)
            peak = x[0];
        for (int64_t j = 0; j < n; j++)
            sum += y[j] = expf(x[j] - peak);
        for (int64_t j = 0; j < n; j++)
            y[j] /= sum;
    }
}
