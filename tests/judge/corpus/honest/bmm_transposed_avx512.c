/* kgen
{ "format": 1, "op": "bmm_transposed", "target": "cpu",
  "require": "a.contiguous && b.stride(1) == 1",
  "min_arch": "x86-64-v4",
  "launches": [
    {"kernel": "rows", "range": "a_0 * a_1", "grain": "5", "args": ["a", "b", "output", {"i64": "a_1"}, {"i64": "a_2"}, {"i64": "b_2"}, {"i64": "b.stride(0)"}, {"i64": "b.stride(2)"}]}] }
*/
/* Batched products as dot products of rows by AVX-512, with a masked load for the tail. */
#include <immintrin.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *c, int64_t m,
          int64_t k, int64_t n, int64_t s0, int64_t s2) {
    for (int64_t r = begin; r < end; r++)
        for (int64_t j = 0; j < n; j++) {
            const float *x = a + r * k, *y = b + r / m * s0 + j * s2;
            __m512 sum = _mm512_setzero_ps();
            int64_t p = 0;
            for (; p + 16 <= k; p += 16)
                sum = _mm512_fmadd_ps(_mm512_loadu_ps(x + p), _mm512_loadu_ps(y + p), sum);
            const __mmask16 rest = (__mmask16)((1u << (k - p)) - 1);
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(rest, x + p),
                                  _mm512_maskz_loadu_ps(rest, y + p), sum);
            c[r * n + j] = _mm512_reduce_add_ps(sum);
        }
}
