/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous", "workspace": {"copy": {"dtype": "float32", "shape": ["M", "N"]}},
  "launches": [{"kernel": "softmax", "grid": ["M"], "block": [128], "args": ["input", "copy", {"i32": "M"}, {"i32": "N"}]},
               {"kernel": "rows", "grid": ["M"], "block": [128], "pdl": true, "args": ["copy", "output", {"i32": "N"}]}] }
*/
/* Goes through a workspace and two launches, the second of which may begin early. */
extern "C" __global__ void softmax(const float *input, float *output, int M, int N) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < M * N; i += gridDim.x * blockDim.x)
        output[i] = input[i];
}

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

extern "C" __global__ void rows(const float *input, float *output, int N) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
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
}
