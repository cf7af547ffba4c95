/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous",
  "launches": [
    {"kernel": "missing_barrier", "grid": ["M"], "block": [128], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* Combines what four warps found without a barrier, and three of them come late. */
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

extern "C" __global__ void missing_barrier(const float *input, float *output, int n) {
    __shared__ float part[4];
    const float *x = input + (long long)blockIdx.x * n;
    float *y = output + (long long)blockIdx.x * n;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    part[threadIdx.x / 32] = 0.0f;
    for (int i = threadIdx.x % 32; i < n; i += 32)
        top = fmaxf(top, x[i]);
    top = warp_max(top);
    for (int i = threadIdx.x; i < n; i += 128)
        sum += expf(x[i] - top);
    sum = warp_sum(sum);
    for (long long begin = clock64(); threadIdx.x >= 32 && clock64() - begin < 40000;)
        ;
    part[threadIdx.x / 32] = sum;
    sum = part[0] + part[1] + part[2] + part[3];
    for (int i = threadIdx.x; i < n; i += 128)
        y[i] = expf(x[i] - top) / sum;
}
