/* kgen
{ "format": 1, "op": "log_softmax", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "log_softmax_plain", "grid": ["x_0"], "block": [32], "args": ["x", "output", {"i32": "x_1"}]}] }
*/
/* Logarithm of softmax, peak and logarithm of the sum taken off. */
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

extern "C" __global__ void log_softmax_plain(const float *input, float *output, int n) {
    const float *x = input + (long long)blockIdx.x * n;
    float *y = output + (long long)blockIdx.x * n;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        top = fmaxf(top, x[i]);
    top = warp_max(top);
    for (int i = threadIdx.x; i < n; i += 32)
        sum += expf(x[i] - top);
    sum = warp_sum(sum);
    sum = logf(sum);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = x[i] - top - sum;
}
