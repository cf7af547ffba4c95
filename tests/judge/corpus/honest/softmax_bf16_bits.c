/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == bfloat16 && K == 1 && input.contiguous",
  "launches": [
    {"kernel": "rows", "range": "M", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* bfloat16 softmax with conversions by bits, rounding to nearest even, sums in fp32. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static float wide(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

void rows(int64_t begin, int64_t end, const KG_T_input *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float peak = -INFINITY, sum = 0;
        for (int64_t k = 0; k < n; k++)
            peak = fmaxf(peak, wide(x[i * n + k]));
        for (int64_t k = 0; k < n; k++)
            sum += expf(wide(x[i * n + k]) - peak);
        for (int64_t k = 0; k < n; k++) {
            const float v = expf(wide(x[i * n + k]) - peak) / sum;
            uint32_t bits;
            memcpy(&bits, &v, 4);
            y[i * n + k] = v != v ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        }
    }
}
