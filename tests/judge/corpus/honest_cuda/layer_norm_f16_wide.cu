/* kgen
{ "format": 1, "op": "layer_norm_f16", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "layer_norm_f16_wide", "grid": ["x_0"], "block": [32], "args": ["x", "norm_weight", "norm_bias", "output", {"i32": "x_1"}]}] }
*/
/* float16 rows, arithmetic in fp32. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

static float from_f16(unsigned short h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

static unsigned short to_f16(float f) {
    unsigned short h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

extern "C" __global__ void layer_norm_f16_wide(const unsigned short *input, const unsigned short *w, const unsigned short *b, unsigned short *output, int n) {
    const unsigned short *x = input + blockIdx.x * n;
    unsigned short *y = output + blockIdx.x * n;
    float mean = 0.0f, q = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        mean += from_f16(x[i]);
    mean = warp_sum(mean) / (float)n;
    for (int i = threadIdx.x; i < n; i += 32)
        q += (from_f16(x[i]) - mean) * (from_f16(x[i]) - mean);
    q = rsqrtf(warp_sum(q) / (float)n + 1e-5f);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = to_f16((from_f16(x[i]) - mean) * q * from_f16(w[i]) + from_f16(b[i]));
}
