/* kgen
{ "format": 1, "op": "compare", "target": "cpu",
  "require": "a.contiguous && b.contiguous",
  "min_arch": "x86-64-v4",
  "launches": [
    {"kernel": "elements", "range": "a.numel", "grain": "64", "args": ["a", "b", "output"]}] }
*/
/* A comparison by AVX-512 masks that are spread into bytes. */
#include <immintrin.h>
#include <stdint.h>

void elements(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *y) {
    const __m128i one = _mm_set1_epi8(1);
    for (int64_t i = begin; i < end; i += 16) {
        const __mmask16 live = end - i >= 16 ? 0xffff : (__mmask16)((1u << (end - i)) - 1);
        const __mmask16 more = _mm512_cmp_ps_mask(_mm512_maskz_loadu_ps(live, a + i),
                                                  _mm512_maskz_loadu_ps(live, b + i), _CMP_GT_OQ);
        _mm_mask_storeu_epi8(y + i, live, _mm_maskz_mov_epi8(more, one));
    }
}
