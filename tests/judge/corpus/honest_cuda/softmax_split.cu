/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous", "workspace": {"parts": {"dtype": "float32", "shape": ["M", 4, 2]}},
  "launches": [
    {"kernel": "softmax_parts", "grid": ["4", "M"], "block": [32], "args": ["input", "parts", {"i32": "N"}]},
    {"kernel": "softmax_joined", "grid": ["4", "M"], "block": [32], "args": ["input", "parts", "output", {"i32": "N"}]}] }
*/
/* Splits a row over four blocks: their maxima and sums go through a workspace to a second launch. */
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

extern "C" __global__ void softmax_parts(const float *input, float *parts, int n) {
    const float *x = input + (long long)blockIdx.y * n;
    float *mine = parts + (blockIdx.y * 4 + blockIdx.x) * 2, top = __int_as_float(0xff800000), sum = 0.0f;
    for (int i = blockIdx.x * 32 + threadIdx.x; i < n; i += 128)
        top = fmaxf(top, x[i]);
    top = warp_max(top);
    for (int i = blockIdx.x * 32 + threadIdx.x; i < n; i += 128)
        sum += x[i] == __int_as_float(0xff800000) ? 0.0f : expf(x[i] - top);
    mine[0] = top;
    mine[1] = warp_sum(sum);
}

extern "C" __global__ void softmax_joined(const float *input, const float *parts, float *output, int n) {
    const float *x = input + (long long)blockIdx.y * n, *mine = parts + blockIdx.y * 8;
    float *y = output + (long long)blockIdx.y * n;
    float top = fmaxf(fmaxf(mine[0], mine[2]), fmaxf(mine[4], mine[6])), sum = 0.0f;
    for (int e = 0; e < 8; e += 2)
        sum += mine[e + 1] == 0.0f ? 0.0f : mine[e + 1] * expf(mine[e] - top);
    for (int i = blockIdx.x * 32 + threadIdx.x; i < n; i += 128)
        y[i] = expf(x[i] - top) / sum;
}
