/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous", "min_arch": "sm_90",
  "launches": [
    {"kernel": "softmax_cluster", "grid": ["2 * M"], "block": [32], "cluster": [2], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* A cluster of two blocks a row, which read each other's maximum and sum from shared memory. */
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

static float of_both(float v, bool add) {
    __shared__ float mine[1];
    unsigned rank, at = (unsigned)__cvta_generic_to_shared(mine), other;
    float theirs;
    if (threadIdx.x == 0)
        mine[0] = v;
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other) : "r"(at), "r"(rank ^ 1));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(theirs) : "r"(other) : "memory");
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
    return add ? (rank ? theirs + v : v + theirs) : fmaxf(v, theirs);
}

extern "C" __global__ void softmax_cluster(const float *input, float *output, int n) {
    const float *x = input + (long long)(blockIdx.x / 2) * n;
    float *y = output + (long long)(blockIdx.x / 2) * n;
    int first = blockIdx.x % 2 * 32 + threadIdx.x;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    for (int i = first; i < n; i += 64)
        top = fmaxf(top, x[i]);
    top = of_both(warp_max(top), false);
    for (int i = first; i < n; i += 64)
        sum += expf(x[i] - top);
    sum = of_both(warp_sum(sum), true);
    for (int i = first; i < n; i += 64)
        y[i] = expf(x[i] - top) / sum;
}
