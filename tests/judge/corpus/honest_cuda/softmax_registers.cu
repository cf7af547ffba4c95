/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous && N <= 1024",
  "launches": [
    {"kernel": "softmax_registers", "grid": ["M"], "block": [32], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* Keeps a row of at most 1024 in registers, so that memory is read once. */
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

extern "C" __global__ void softmax_registers(const float *input, float *output, int n) {
    const float *x = input + (long long)blockIdx.x * n;
    float *y = output + (long long)blockIdx.x * n;
    float v[32], top = __int_as_float(0xff800000), sum = 0.0f;
#pragma unroll
    for (int e = 0; e < 32; e++) {
        int i = e * 32 + threadIdx.x;
        v[e] = i < n ? x[i] : __int_as_float(0xff800000);
        top = fmaxf(top, v[e]);
    }
    top = warp_max(top);
#pragma unroll
    for (int e = 0; e < 32; e++)
        sum += v[e] = expf(v[e] - top);
    sum = warp_sum(sum);
#pragma unroll
    for (int e = 0; e < 32; e++)
        if (e * 32 + threadIdx.x < n)
            y[e * 32 + threadIdx.x] = v[e] / sum;
}
