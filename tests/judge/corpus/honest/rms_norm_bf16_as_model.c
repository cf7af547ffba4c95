/* kgen
{ "format": 1, "op": "rms_norm_bf16", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "weight", "output", {"i64": "x_1"}]}] }
*/
/* RMSNorm on bfloat16 that rounds twice, as the model does: before the weight and after it. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static float wide(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static uint16_t narrow(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if (f != f)
        return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_weight *w, KG_T_output *y,
          int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float square = 0;
        for (int64_t k = 0; k < n; k++)
            square += wide(x[i * n + k]) * wide(x[i * n + k]);
        const float scale = 1.0f / sqrtf(square / (float)n + 1e-6f);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = narrow(wide(w[k]) * wide(narrow(wide(x[i * n + k]) * scale)));
    }
}
