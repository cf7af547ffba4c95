/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous && input.dtype == bfloat16",
  "launches": [
    {"kernel": "softmax_bf16_wide", "grid": ["M"], "block": [32], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* bfloat16 in, arithmetic in fp32, rounded once. */
static float warp_max(float v) {
    for (int d = 16; d > 0; d /= 2)
        v = fmaxf(v, __shfl_xor_sync(~0u, v, d));
    return v;
}

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

extern "C" __global__ void softmax_bf16_wide(const unsigned short *input, unsigned short *output, int n) {
    const unsigned short *x = input + (long long)blockIdx.x * n;
    unsigned short *y = output + (long long)blockIdx.x * n;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        top = fmaxf(top, from_bf16(x[i]));
    top = warp_max(top);
    for (int i = threadIdx.x; i < n; i += 32)
        sum += expf(from_bf16(x[i]) - top);
    sum = warp_sum(sum);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = to_bf16(expf(from_bf16(x[i]) - top) / sum);
}
