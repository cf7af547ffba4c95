/* kgen
{ "format": 1, "op": "gelu_tanh_bf16", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "elements", "range": "x.numel", "grain": "256", "args": ["x", "output"]}] }
*/
/* The GELU by tanh on bfloat16, computed in fp32 and rounded to nearest even once. */
#include <math.h>
#include <stdint.h>
#include <string.h>

void elements(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++) {
        uint32_t bits = (uint32_t)x[i] << 16;
        float v;
        memcpy(&v, &bits, 4);
        v = 0.5f * v * (1.0f + tanhf(0.79788456f * (v + 0.044715f * v * v * v)));
        memcpy(&bits, &v, 4);
        y[i] = v != v ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}
