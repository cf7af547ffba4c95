/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous", "min_arch": "sm_90",
  "tensor_maps": {"rows": {"tensor": "input", "dims": ["N", "M"], "strides": ["4 * N"], "box": ["N", "1"], "swizzle": 0, "l2": 0}},
  "launches": [{"kernel": "softmax", "grid": ["M"], "block": [128], "args": [{"map": "rows"}, "output", {"i32": "N"}]}] }
*/
/* Loads its row through a tensor map. */
struct alignas(64) Map {
    unsigned long long opaque[16];
};

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

extern "C" __global__ void softmax(const __grid_constant__ Map rows, float *output, int N) {
    __shared__ alignas(128) float x[256];
    __shared__ alignas(8) unsigned long long full;
    unsigned to = (unsigned)__cvta_generic_to_shared(x), bar = (unsigned)__cvta_generic_to_shared(&full);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(bar));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(4 * N) : "memory");
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                     :: "r"(to), "l"(&rows), "r"(bar), "r"(0), "r"(blockIdx.x) : "memory");
    }
    __syncthreads();
    asm volatile("{\n\t.reg .pred p;\nWAIT:\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0;\n\t@!p bra WAIT;\n\t}"
                 :: "r"(bar) : "memory");
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
