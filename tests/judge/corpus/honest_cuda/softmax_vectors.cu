/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous && N % 4 == 0 && align(input) >= 16",
  "launches": [
    {"kernel": "softmax_vectors", "grid": ["M"], "block": [32], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* Loads and stores of 16 bytes. */
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

extern "C" __global__ void softmax_vectors(const float *input, float *output, int n) {
    const float4 *x = (const float4 *)(input + (long long)blockIdx.x * n);
    float4 *y = (float4 *)(output + (long long)blockIdx.x * n);
    float top = __int_as_float(0xff800000), sum = 0.0f;
    for (int i = threadIdx.x; i < n / 4; i += 32) {
        float4 v = x[i];
        top = fmaxf(fmaxf(top, fmaxf(v.x, v.y)), fmaxf(v.z, v.w));
    }
    top = warp_max(top);
    for (int i = threadIdx.x; i < n / 4; i += 32) {
        float4 v = x[i];
        sum += (expf(v.x - top) + expf(v.y - top)) + (expf(v.z - top) + expf(v.w - top));
    }
    sum = warp_sum(sum);
    for (int i = threadIdx.x; i < n / 4; i += 32) {
        float4 v = x[i];
        y[i] = make_float4(expf(v.x - top) / sum, expf(v.y - top) / sum, expf(v.z - top) / sum, expf(v.w - top) / sum);
    }
}
