/* kgen
{ "format": 1, "op": "gelu_tanh_bf16", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "gelu_tanh_bf16", "grid": ["ceil_div(output.numel, 256)"], "block": [256], "args": ["x", "output", {"i32": "output.numel"}]}] }
*/
/* The GELU by tanh, in fp32, rounded once to bfloat16. */
static float from_bf16(unsigned short h) {
    return __uint_as_float((unsigned)h << 16);
}

static unsigned short to_bf16(float f) {
    unsigned short h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

static float gelu(float v) {
    return 0.5f * v * (1.0f + tanhf(0.79788456f * (v + 0.044715f * v * v * v)));
}

extern "C" __global__ void gelu_tanh_bf16(const unsigned short *x, unsigned short *out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n)
        out[i] = to_bf16(gelu(from_bf16(x[i])));
}
