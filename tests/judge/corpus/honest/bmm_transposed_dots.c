/* kgen
{ "format": 1, "op": "bmm_transposed", "target": "cpu",
  "require": "a.contiguous",
  "launches": [
    {"kernel": "rows", "range": "a_0 * a_1", "args": ["a", "b", "output", {"i64": "a_1"}, {"i64": "a_2"}, {"i64": "b_2"}, {"i64": "b.stride(0)"}, {"i64": "b.stride(1)"}, {"i64": "b.stride(2)"}]}] }
*/
/* Batched products that take the second matrix by whatever strides it has. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *c, int64_t m,
          int64_t k, int64_t n, int64_t s0, int64_t s1, int64_t s2) {
    for (int64_t r = begin; r < end; r++)
        for (int64_t j = 0; j < n; j++) {
            const float *column = b + r / m * s0 + j * s2;
            float even = 0, odd = 0;
            for (int64_t p = 0; p + 1 < k; p += 2) {
                even += a[r * k + p] * column[p * s1];
                odd += a[r * k + p + 1] * column[(p + 1) * s1];
            }
            if (k % 2)
                even += a[r * k + k - 1] * column[(k - 1) * s1];
            c[r * n + j] = even + odd;
        }
}
