/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous",
  "launches": [
    {"kernel": "softmax_block", "grid": ["M"], "block": [128], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* A block of 128 a row, with a reduction through shared memory. */
/* Of the 128 threads of a block: the sum, or the largest. */
static float block_all(float v, bool add) {
    __shared__ float warps[4];
    for (int d = 16; d > 0; d /= 2) {
        float o = __shfl_xor_sync(~0u, v, d);
        v = add ? v + o : fmaxf(v, o);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = v;
    __syncthreads();
    v = warps[0];
    for (int w = 1; w < 4; w++)
        v = add ? v + warps[w] : fmaxf(v, warps[w]);
    return v;
}

extern "C" __global__ void softmax_block(const float *input, float *output, int n) {
    const float *x = input + (long long)blockIdx.x * n;
    float *y = output + (long long)blockIdx.x * n;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 128)
        top = fmaxf(top, x[i]);
    top = block_all(top, false);
    for (int i = threadIdx.x; i < n; i += 128)
        sum += expf(x[i] - top);
    sum = block_all(sum, true);
    for (int i = threadIdx.x; i < n; i += 128)
        y[i] = expf(x[i] - top) / sum;
}
