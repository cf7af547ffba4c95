/* kgen
{ "format": 1, "op": "rms_norm", "target": "cpu",
  "require": "x.contiguous",
  "min_arch": "x86-64-v3",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "weight", "output", {"i64": "x_1"}]}] }
*/
/* RMSNorm by the 12-bit reciprocal root of the processor and two steps of Newton, which give all
 * of fp32. */
#include <immintrin.h>
#include <stdint.h>

static float root(float v) {
    float r = _mm_cvtss_f32(_mm_rsqrt_ss(_mm_set_ss(v)));
    r = r * (1.5f - 0.5f * v * r * r);
    return r * (1.5f - 0.5f * v * r * r);
}

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_weight *w, KG_T_output *y,
          int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float square[8] = {0}, sum = 0;
        for (int64_t k = 0; k < n; k++)
            square[k & 7] += x[i * n + k] * x[i * n + k];
        for (int k = 0; k < 8; k++)
            sum += square[k];
        const float scale = root(sum / (float)n + 1e-6f);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = x[i * n + k] * scale * w[k];
    }
}
