/* kgen
{ "format": 1, "op": "unaligned_scale", "target": "cpu",
  "min_arch": "x86-64-v3",
  "launches": [
    {"kernel": "elements", "range": "x_0", "grain": "32", "args": ["x", "y", "output"]}] }
*/
/* Views that are aligned to nothing but an element, by unaligned vector loads. */
#include <immintrin.h>
#include <stdint.h>

void elements(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_y *y, KG_T_output *out) {
    int64_t i = begin;
    for (; i + 8 <= end; i += 8)
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    for (; i < end; i++)
        out[i] = x[i] * y[i];
}
