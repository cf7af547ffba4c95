/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous",
  "launches": [
    {"kernel": "softmax_online", "grid": ["M"], "block": [32], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* Maximum and sum in one pass: each lane keeps its own, and they are joined at the end. */
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

extern "C" __global__ void softmax_online(const float *input, float *output, int n) {
    const float *x = input + (long long)blockIdx.x * n;
    float *y = output + (long long)blockIdx.x * n;
    float top = -3.0e38f, sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32) {
        float now = fmaxf(top, x[i]);
        sum = sum * expf(top - now) + expf(x[i] - now);
        top = now;
    }
    float all = warp_max(top);
    sum = warp_sum(sum * expf(top - all));
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = expf(x[i] - all) / sum;
}
