/* kgen
{ "format": 1, "op": "rms_norm_bf16", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "rms_norm_bf16_once", "grid": ["x_0"], "block": [32], "args": ["x", "weight", "output", {"i32": "x_1"}]}] }
*/
/* bfloat16 rows, rounded once at the end. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

static float from_bf16(unsigned short h) {
    return __uint_as_float((unsigned)h << 16);
}

static unsigned short to_bf16(float f) {
    unsigned short h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

extern "C" __global__ void rms_norm_bf16_once(const unsigned short *input, const unsigned short *w, unsigned short *output, int n) {
    const unsigned short *x = input + (long long)blockIdx.x * n;
    unsigned short *y = output + (long long)blockIdx.x * n;
    float s = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        s += from_bf16(x[i]) * from_bf16(x[i]);
    s = rsqrtf(warp_sum(s) / (float)n + 1e-6f);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = to_bf16(from_bf16(x[i]) * s * from_bf16(w[i]));
}
