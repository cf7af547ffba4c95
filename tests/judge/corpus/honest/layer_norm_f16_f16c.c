/* kgen
{ "format": 1, "op": "layer_norm_f16", "target": "cpu",
  "require": "x.contiguous && x_1 % 8 == 0",
  "min_arch": "x86-64-v3",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "norm_weight", "norm_bias", "output", {"i64": "x_1"}]}] }
*/
/* Half-precision layer norm that converts eight elements at a time by F16C and keeps the row on
 * the stack as fp32. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_norm_weight *w,
          const KG_T_norm_bias *b, KG_T_output *y, int64_t n) {
    float row[8192];
    for (int64_t i = begin; i < end && n <= 8192; i++) {
        double sum = 0, square = 0;
        for (int64_t k = 0; k < n; k += 8)
            _mm256_storeu_ps(row + k,
                             _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i * n + k))));
        for (int64_t k = 0; k < n; k++)
            sum += row[k];
        const float mean = (float)(sum / (double)n);
        for (int64_t k = 0; k < n; k++)
            square += (row[k] - mean) * (row[k] - mean);
        const __m256 m = _mm256_set1_ps(mean),
                     s = _mm256_set1_ps((float)(1.0 / sqrt(square / (double)n + 1e-5)));
        for (int64_t k = 0; k < n; k += 8) {
            const __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(w + k)));
            const __m256 bias = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(b + k)));
            const __m256 v = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(row + k), m), s);
            _mm_storeu_si128(
                (__m128i *)(y + i * n + k),
                _mm256_cvtps_ph(_mm256_fmadd_ps(v, wide, bias), _MM_FROUND_TO_NEAREST_INT));
        }
    }
}
