/* kgen
{ "format": 1, "op": "bits_int32", "target": "cpu",
  "launches": [
    {"kernel": "elements", "range": "a_0", "grain": "128", "args": ["a", "b", "output"]}] }
*/
/* The same bits as a selection between two words, and the shift as a floor division. */
#include <stdint.h>

void elements(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++) {
        const int64_t v = a[i], shifted = v >= 0 ? v / 8 : -((7 - v) / 8);
        const uint32_t x = (uint32_t)v ^ (uint32_t)shifted, m = (uint32_t)b[i];
        y[i] = (int32_t)(255u ^ ((255u ^ x) & m));
    }
}
