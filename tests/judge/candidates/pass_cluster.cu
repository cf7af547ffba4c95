/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous", "min_arch": "sm_90",
  "launches": [{"kernel": "softmax", "grid": ["2 * M"], "block": [128], "cluster": [2], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* Two blocks of a cluster share a row: each writes the other half with what the other one found. */
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
    __shared__ float mine[2];
    const float *x = input + (long long)(blockIdx.x / 2) * N;
    float *y = output + (long long)(blockIdx.x / 2) * N;
    int half = (N + 1) / 2, begin = blockIdx.x % 2 * half, end = begin + half < N ? begin + half : N;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    for (int i = begin + threadIdx.x; i < end; i += blockDim.x)
        top = fmaxf(top, x[i]);
    top = all(top, false);
    for (int i = begin + threadIdx.x; i < end; i += blockDim.x)
        sum += expf(x[i] - top);
    sum = all(sum, true);
    mine[0] = top;
    mine[1] = sum;
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
    unsigned at = (unsigned)__cvta_generic_to_shared(mine), there;
    float other, more;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"((blockIdx.x + 1) % 2));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(other) : "r"(there));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(more) : "r"(there + 4));
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
    float both = fmaxf(top, other);
    float whole = sum * expf(top - both) + more * expf(other - both);
    for (int i = begin + threadIdx.x; i < end; i += blockDim.x)
        y[i] = expf(x[i] - both) / whole;
}
