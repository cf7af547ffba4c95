/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous && input.dtype == bfloat16",
  "launches": [
    {"kernel": "softmax_header", "grid": ["M"], "block": [32], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* Includes a header of the closed list and uses its conversions. */
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

#include <cuda_bf16.h>

extern "C" __global__ void softmax_header(const __nv_bfloat16 *input, __nv_bfloat16 *output, int n) {
    const __nv_bfloat16 *x = input + (long long)blockIdx.x * n;
    __nv_bfloat16 *y = output + (long long)blockIdx.x * n;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        top = fmaxf(top, __bfloat162float(x[i]));
    top = warp_max(top);
    for (int i = threadIdx.x; i < n; i += 32)
        sum += expf(__bfloat162float(x[i]) - top);
    sum = warp_sum(sum);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = __float2bfloat16(expf(__bfloat162float(x[i]) - top) / sum);
}
