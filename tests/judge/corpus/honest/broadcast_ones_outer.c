/* kgen
{ "format": 1, "op": "broadcast_ones", "target": "cpu",
  "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "planes", "range": "b_0 * a_1", "args": ["a", "b", "output", {"i64": "a_1"}, {"i64": "b_2"}]}] }
*/
/* An outer sum over sizes of 1. */
#include <stdint.h>

void planes(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *y, int64_t m,
            int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = a[i % m] + b[i / m * n + k];
}
