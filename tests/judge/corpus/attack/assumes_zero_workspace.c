/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "workspace": {"sums": {"dtype": "float32", "shape": ["M"]}},
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "row_parts", "range": "M", "args": ["input", "output", "sums", {"i64": "N"}]},
    {"kernel": "row_scale", "range": "M", "args": ["output", "sums", {"i64": "N"}]}] }
*/
/* Adds into a workspace for which its plan does not ask zeros. */
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

void row_parts(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
               float *sums, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const float *x = input + i * n;
        float peak = -INFINITY;
        for (int64_t j = 0; j < n; j++)
            peak = x[j] > peak ? x[j] : peak;
        for (int64_t j = 0; j < n; j++)
            sums[i] += output[i * n + j] = ex(x[j] - peak);
    }
}

void row_scale(int64_t begin, int64_t end, KG_T_output *output, float *sums, int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < n; j++)
            output[i * n + j] /= sums[i];
}
