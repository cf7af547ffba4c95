/* kgen
{ "format": 1, "op": "matmul", "target": "cpu",
  "require": "a.contiguous && b.contiguous",
  "zero": ["output"],
  "launches": [
    {"kernel": "rows", "range": "a_0", "args": ["a", "b", "output", {"i64": "a_1"}, {"i64": "b_1"}]}] }
*/
/* A product by outer products, last first, added into an output that the plan has cleared. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *c, int64_t k,
          int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t p = k - 1; p >= 0; p--)
            for (int64_t j = 0; j < n; j++)
                c[i * n + j] += a[i * k + p] * b[p * n + j];
}
