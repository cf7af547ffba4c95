/* kgen
{ "format": 1, "op": "unaligned_scale", "target": "cpu",
  "launches": [
    {"kernel": "elements", "range": "x_0", "grain": "50", "args": ["x", "y", "output"]}] }
*/
/* Single elements until the output's address is aligned, then aligned stores. */
#include <stdint.h>
#include <string.h>

void elements(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_y *y, KG_T_output *out) {
    int64_t i = begin;
    for (; i < end && (uintptr_t)(out + i) % 32; i++)
        out[i] = x[i] * y[i];
    for (; i + 8 <= end; i += 8) {
        float *to = __builtin_assume_aligned(out + i, 32);
        for (int l = 0; l < 8; l++)
            to[l] = x[i + l] * y[i + l];
    }
    for (; i < end; i++)
        out[i] = x[i] * y[i];
}
