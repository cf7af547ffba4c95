/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous", "min_arch": "sm_90",
  "launches": [
    {"kernel": "barrier_never_met", "grid": ["M"], "block": [32], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* Waits at an mbarrier for bytes that nobody sends. */
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

extern "C" __global__ void barrier_never_met(const float *input, float *output, int n) {
    const float *x = input + (long long)blockIdx.x * n;
    float *y = output + (long long)blockIdx.x * n;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    __shared__ alignas(8) unsigned long long bar;
    unsigned at = (unsigned)__cvta_generic_to_shared(&bar), done = 0;
    if (threadIdx.x == 0)
        asm volatile("mbarrier.init.shared.b64 [%0], 1;" :: "r"(at));
    __syncwarp();
    while (!done)
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(at) : "memory");
    for (int i = threadIdx.x; i < n; i += 32)
        top = fmaxf(top, x[i]);
    top = warp_max(top);
    for (int i = threadIdx.x; i < n; i += 32)
        sum += expf(x[i] - top);
    sum = warp_sum(sum);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = expf(x[i] - top) / sum;
}
