/* kgen
{ "format": 1, "op": "bits_int32", "target": "cpu",
  "launches": [
    {"kernel": "elements", "range": "a_0", "grain": "128", "args": ["a", "b", "output"]}] }
*/
/* Bitwise arithmetic with an arithmetic shift. */
#include <stdint.h>

void elements(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++)
        y[i] = ((a[i] ^ (a[i] >> 3)) & b[i]) | (~b[i] & 255);
}
