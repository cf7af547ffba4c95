/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous", "workspace": {"parts": {"dtype": "float32", "shape": ["M", 2]}, "count": {"dtype": "int32", "shape": [1], "zero": true}},
  "launches": [
    {"kernel": "softmax_cooperative", "grid": ["min(M, 8)"], "block": [32], "cooperative": true, "args": ["input", "output", "parts", "count", {"i32": "M"}, {"i32": "N"}]}] }
*/
/* A cooperative grid with a barrier of its own: maxima and sums of rows by all blocks, then all
 * blocks scale. */
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

/* All blocks of the grid: the first of each tells that it is here, and waits for the others. */
static void grid_barrier(unsigned *count, unsigned wanted) {
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned seen = 0;
        __threadfence();
        asm volatile("red.release.gpu.global.add.u32 [%0], %1;" :: "l"(count), "r"(1u) : "memory");
        while (seen < wanted)
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(count) : "memory");
    }
    __syncthreads();
}

extern "C" __global__ void softmax_cooperative(const float *x, float *y, float *parts, int *count, int m, int n) {
    for (int row = blockIdx.x; row < m; row += gridDim.x) {
        float top = __int_as_float(0xff800000), sum = 0.0f;
        for (int i = threadIdx.x; i < n; i += 32)
            top = fmaxf(top, x[row * n + i]);
        top = warp_max(top);
        for (int i = threadIdx.x; i < n; i += 32)
            sum += expf(x[row * n + i] - top);
        sum = warp_sum(sum);
        if (threadIdx.x == 0) {
            parts[row * 2] = top;
            parts[row * 2 + 1] = sum;
        }
    }
    grid_barrier((unsigned *)count, gridDim.x);
    for (int i = blockIdx.x * 32 + threadIdx.x; i < m * n; i += gridDim.x * 32)
        y[i] = expf(x[i] - parts[i / n * 2]) / parts[i / n * 2 + 1];
}
