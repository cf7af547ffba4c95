/* kgen
{ "format": 1, "op": "relu_special", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "elements", "range": "x.numel", "grain": "100", "args": ["x", "output"]}] }
*/
/* ReLU by integers, which leaves -0 in place (equal to 0) and hands NaN on whatever its sign and
 * payload. */
#include <stdint.h>
#include <string.h>

void elements(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++) {
        uint32_t bits;
        float v;
        memcpy(&bits, x + i, 4);
        const uint32_t magnitude = bits & 0x7fffffffu;
        if (bits >> 31 && magnitude <= 0x7f800000u)
            bits = 0x80000000u;
        memcpy(&v, &bits, 4);
        y[i] = v * 0.5f;
    }
}
