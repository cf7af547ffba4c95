/* kgen
{ "format": 1, "op": "silu_f16", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "silu_f16_wide", "grid": ["ceil_div(output.numel, 256)"], "block": [256], "args": ["x", "output", {"i32": "output.numel"}]}] }
*/
/* x times its logistic function, in fp32, rounded once to float16. */
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

extern "C" __global__ void silu_f16_wide(const unsigned short *x, unsigned short *out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n)
        out[i] = to_f16(from_f16(x[i]) / (1.0f + expf(-from_f16(x[i]))));
}
