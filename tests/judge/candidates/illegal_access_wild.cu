/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous",
  "launches": [{"kernel": "softmax", "grid": ["M"], "block": [128], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* Writes 1 GiB behind its output: where no memory is, or shared memory is shown.
 * expects: an address */
/* Of the 128 threads of a block: the sum, or the largest. */
static __device__ float all(float v, bool add) {
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

extern "C" __global__ void softmax(const float *input, float *output, int N) {
    const float *x = input + (long long)blockIdx.x * N;
    float *y = output + (long long)blockIdx.x * N;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    for (int i = threadIdx.x; i < N; i += blockDim.x)
        top = fmaxf(top, x[i]);
    top = all(top, false);
    for (int i = threadIdx.x; i < N; i += blockDim.x)
        sum += expf(x[i] - top);
    sum = all(sum, true);
    for (int i = threadIdx.x; i < N; i += blockDim.x)
        y[i] = expf(x[i] - top) / sum;
    if (blockIdx.x == 3)
        y[1 << 28] = 1.0f;
}
