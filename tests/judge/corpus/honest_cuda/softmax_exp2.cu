/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous",
  "launches": [
    {"kernel": "softmax_exp2", "grid": ["M"], "block": [32], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* Powers of two by the hardware unit, with the logarithm of e folded into the argument. */
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

static float power(float v) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

extern "C" __global__ void softmax_exp2(const float *input, float *output, int n) {
    const float *x = input + (long long)blockIdx.x * n;
    float *y = output + (long long)blockIdx.x * n;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        top = fmaxf(top, x[i]);
    top = warp_max(top);
    for (int i = threadIdx.x; i < n; i += 32)
        sum += power((x[i] - top) * 1.4426950408889634f);
    sum = warp_sum(sum);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = power((x[i] - top) * 1.4426950408889634f) / sum;
}
