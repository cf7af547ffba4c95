/* kgen
{ "format": 1, "op": "layer_norm", "target": "cpu",
  "require": "x.contiguous",
  "min_arch": "x86-64-v3",
  "launches": [
    {"kernel": "rows", "range": "x_0", "grain": "4", "args": ["x", "norm_weight", "norm_bias", "output", {"i64": "x_1"}]}] }
*/
/* Layer norm by AVX2 intrinsics, eight lanes and a scalar tail. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

static float total(__m256 v) {
    const __m128 h = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 q = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_norm_weight *w,
          const KG_T_norm_bias *b, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const float *r = x + i * n;
        __m256 s = _mm256_setzero_ps(), q = _mm256_setzero_ps();
        int64_t k = 0;
        for (; k + 8 <= n; k += 8)
            s = _mm256_add_ps(s, _mm256_loadu_ps(r + k));
        float sum = total(s);
        for (; k < n; k++)
            sum += r[k];
        const float mean = sum / (float)n;
        const __m256 m = _mm256_set1_ps(mean);
        for (k = 0; k + 8 <= n; k += 8) {
            const __m256 d = _mm256_sub_ps(_mm256_loadu_ps(r + k), m);
            q = _mm256_fmadd_ps(d, d, q);
        }
        float square = total(q);
        for (; k < n; k++)
            square += (r[k] - mean) * (r[k] - mean);
        const float scale = 1.0f / sqrtf(square / (float)n + 1e-5f);
        for (k = 0; k < n; k++)
            y[i * n + k] = (r[k] - mean) * scale * w[k] + b[k];
    }
}
