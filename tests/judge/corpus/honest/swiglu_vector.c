/* kgen
{ "format": 1, "op": "swiglu", "target": "cpu",
  "require": "gate.contiguous && up.contiguous",
  "launches": [
    {"kernel": "elements", "range": "gate.numel", "grain": "172", "args": ["gate", "up", "output"]}] }
*/
/* silu(a) * b by vector extensions: a polynomial exponential in 8 lanes, the tail padded with
 * zeros. */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float v8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));

static v8 ex(v8 x) {
    x = (v8)(((i8)x & ~(x > 87.0f)) | ((i8)(x * 0.0f + 87.0f) & (x > 87.0f)));
    x = (v8)(((i8)x & ~(x < -87.0f)) | ((i8)(x * 0.0f - 87.0f) & (x < -87.0f)));
    const v8 k = (x * 1.44269504f + 0x1.8p23f) - 0x1.8p23f;
    const v8 r = (x - k * 0.693145752f) - k * 1.42860677e-6f;
    v8 p = r * 0x1.a01a02p-13f + 0x1.6c16c2p-10f;
    p = p * r + 0x1.111112p-7f;
    p = p * r + 0x1.555556p-5f;
    p = p * r + 0x1.555556p-3f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const i8 bits = (__builtin_convertvector(k, i8) + 127) << 23;
    return p * (v8)bits;
}

void elements(int64_t begin, int64_t end, const KG_T_gate *a, const KG_T_up *b, KG_T_output *y) {
    for (int64_t i = begin; i < end; i += 8) {
        const size_t bytes = (size_t)(end - i < 8 ? end - i : 8) * 4;
        v8 g = {0}, u = {0};
        memcpy(&g, a + i, bytes);
        memcpy(&u, b + i, bytes);
        g = g / (1.0f + ex(-g)) * u;
        memcpy(y + i, &g, bytes);
    }
}
