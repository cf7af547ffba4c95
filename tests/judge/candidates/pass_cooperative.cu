/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous", "workspace": {"here": {"dtype": "int32", "shape": ["1"], "zero": true}},
  "launches": [{"kernel": "softmax", "grid": ["min(M, NUM_SMS)"], "block": [128], "cooperative": true, "args": ["input", "output", "here", {"i32": "M"}, {"i32": "N"}]}] }
*/
/* Waits for the whole grid between two halves of the work, which only a cooperative launch may. */
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

extern "C" __global__ void softmax(const float *input_, float *output_, int *here, int M, int N) {
    if (threadIdx.x == 0) {
        atomicAdd(here, 1);
        while (*(volatile int *)here < gridDim.x)
            ;
    }
    __syncthreads();
    for (int row = blockIdx.x; row < M; row += gridDim.x) {
        const float *x = input_ + (long long)row * N;
        float *y = output_ + (long long)row * N;
        float top = __int_as_float(0xff800000), sum = 0.0f;
        for (int i = threadIdx.x; i < N; i += blockDim.x)
            top = fmaxf(top, x[i]);
        top = all(top, false);
        for (int i = threadIdx.x; i < N; i += blockDim.x)
            sum += expf(x[i] - top);
        sum = all(sum, true);
        for (int i = threadIdx.x; i < N; i += blockDim.x)
            y[i] = expf(x[i] - top) / sum;
    }
}
