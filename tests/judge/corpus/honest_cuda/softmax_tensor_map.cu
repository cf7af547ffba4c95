/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous && N % 4 == 0 && align(input) >= 16", "min_arch": "sm_90", "tensor_maps": {"rows": {"tensor": "input", "dims": ["N", "M"], "strides": ["4 * N"], "box": [64, 1]}},
  "launches": [
    {"kernel": "softmax_tensor_map", "grid": ["M"], "block": [32], "shared": "ceil_div(N, 64) * 256 + 128", "args": [{"map": "rows"}, "output", {"i32": "N"}]}] }
*/
/* Brings a row into shared memory by the copy engine, through a tensor map and an mbarrier. */
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

struct alignas(64) Map {
    unsigned long long opaque[16];
};

extern "C" __global__ void softmax_tensor_map(const __grid_constant__ Map rows, float *output, int n) {
    extern __shared__ __align__(128) float row[];
    __shared__ alignas(8) unsigned long long bar;
    float *y = output + (long long)blockIdx.x * n;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    unsigned to = (unsigned)__cvta_generic_to_shared(row), at = (unsigned)__cvta_generic_to_shared(&bar), done = 0;
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(at));
        asm volatile("fence.mbarrier_init.release.cluster;");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(at), "r"((n + 63) / 64 * 256) : "memory");
        for (int i = 0; i < n; i += 64)
            asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                         :: "r"(to + 4 * i), "l"(&rows), "r"(i), "r"((int)blockIdx.x), "r"(at) : "memory");
    }
    __syncwarp();
    while (!done)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(at) : "memory");
    for (int i = threadIdx.x; i < n; i += 32)
        top = fmaxf(top, row[i]);
    top = warp_max(top);
    for (int i = threadIdx.x; i < n; i += 32)
        sum += expf(row[i] - top);
    sum = warp_sum(sum);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = expf(row[i] - top) / sum;
}
