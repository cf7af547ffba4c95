/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous && N % 4 == 0 && align(input) >= 16",
  "launches": [
    {"kernel": "softmax_async_copy", "grid": ["M"], "block": [32], "shared": "4 * N", "args": ["input", "output", {"i32": "N"}]}] }
*/
/* Brings a row into shared memory by cp.async, 16 bytes a thread. */
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

extern "C" __global__ void softmax_async_copy(const float *input, float *output, int n) {
    extern __shared__ float row[];
    const float *x = input + (long long)blockIdx.x * n;
    float *y = output + (long long)blockIdx.x * n;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    unsigned to = (unsigned)__cvta_generic_to_shared(row);
    for (int i = threadIdx.x * 4; i < n; i += 128)
        asm volatile("cp.async.cg.shared.global [%0], [%1], %2, %3;" :: "r"(to + 4 * i), "l"(x + i), "n"(16), "r"(16));
    asm volatile("cp.async.wait_all;");
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += 32)
        top = fmaxf(top, row[i]);
    top = warp_max(top);
    for (int i = threadIdx.x; i < n; i += 32)
        sum += row[i] = expf(row[i] - top);
    sum = warp_sum(sum);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = row[i] / sum;
}
