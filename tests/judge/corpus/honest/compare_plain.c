/* kgen
{ "format": 1, "op": "compare", "target": "cpu",
  "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "elements", "range": "a.numel", "grain": "256", "args": ["a", "b", "output"]}] }
*/
/* A comparison into bools. */
#include <stdint.h>

void elements(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++)
        y[i] = a[i] > b[i];
}
