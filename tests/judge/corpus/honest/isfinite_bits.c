/* kgen
{ "format": 1, "op": "isfinite", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "elements", "range": "x.numel", "grain": "100", "args": ["x", "output"]}] }
*/
/* What is finite, by the exponent's bits. */
#include <stdint.h>
#include <string.h>

void elements(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        y[i] = (bits >> 23 & 255) != 255;
    }
}
