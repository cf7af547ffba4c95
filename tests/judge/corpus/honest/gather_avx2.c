/* kgen
{ "format": 1, "op": "gather", "target": "cpu",
  "require": "x.contiguous && index.contiguous && x.numel < 2147483648",
  "min_arch": "x86-64-v3",
  "launches": [
    {"kernel": "rows", "range": "index_0", "args": ["x", "index", "output", {"i64": "x_1"}, {"i64": "index_1"}]}] }
*/
/* A gather by the processor's own instruction, four 64-bit places at a time. */
#include <immintrin.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_index *at, KG_T_output *y,
          int64_t n, int64_t k) {
    for (int64_t i = begin; i < end; i++) {
        int64_t j = 0;
        for (; j + 4 <= k; j += 4) {
            const __m256i places = _mm256_loadu_si256((const __m256i *)(at + i * k + j));
            _mm_storeu_ps(y + i * k + j, _mm256_i64gather_ps(x + i * n, places, 4));
        }
        for (; j < k; j++)
            y[i * k + j] = x[i * n + at[i * k + j]];
    }
}
