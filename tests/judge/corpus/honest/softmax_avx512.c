/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous",
  "min_arch": "x86-64-v4",
  "launches": [
    {"kernel": "rows", "range": "M", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Softmax by AVX-512 with masks for the tail, the exponential built by scalef. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

static __m512 ex(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-110.0f), x); /* -inf, too; a NaN stays one */
    const __m512 k = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(k, _mm512_set1_ps(0.693147182f), x);
    r = _mm512_fnmadd_ps(k, _mm512_set1_ps(-1.90465421e-9f), r);
    __m512 p = _mm512_set1_ps(0x1.a01a02p-13f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.6c16c2p-10f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.111112p-7f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555556p-5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555556p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, k);
}

static __mmask16 live(int64_t left) {
    return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
}

void rows(int64_t begin, int64_t end, const KG_T_input *x, KG_T_output *y, int64_t n) {
    const __m512 low = _mm512_set1_ps(-INFINITY);
    for (int64_t i = begin; i < end; i++) {
        const float *r = x + i * n;
        __m512 top = low, sum = _mm512_setzero_ps();
        for (int64_t k = 0; k < n; k += 16)
            top = _mm512_max_ps(top, _mm512_mask_loadu_ps(low, live(n - k), r + k));
        const __m512 peak = _mm512_set1_ps(_mm512_reduce_max_ps(top));
        for (int64_t k = 0; k < n; k += 16) {
            const __m512 v = ex(_mm512_sub_ps(_mm512_maskz_loadu_ps(live(n - k), r + k), peak));
            _mm512_mask_storeu_ps(y + i * n + k, live(n - k), v);
            sum = _mm512_mask_add_ps(sum, live(n - k), sum, v);
        }
        const __m512 total = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
        for (int64_t k = 0; k < n; k += 16) {
            const __m512 v = _mm512_maskz_loadu_ps(live(n - k), y + i * n + k);
            _mm512_mask_storeu_ps(y + i * n + k, live(n - k), _mm512_div_ps(v, total));
        }
    }
}
