/* kgen
{ "format": 1, "op": "layer_norm", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "layer_norm_two_pass", "grid": ["x_0"], "block": [32], "args": ["x", "norm_weight", "norm_bias", "output", {"i32": "x_1"}]}] }
*/
/* Mean, then variance, then the result. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void layer_norm_two_pass(const float *input, const float *w, const float *b, float *output, int n) {
    const float *x = input + blockIdx.x * n;
    float *y = output + blockIdx.x * n;
    float mean = 0.0f, q = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        mean += x[i];
    mean = warp_sum(mean) / (float)n;
    for (int i = threadIdx.x; i < n; i += 32)
        q += (x[i] - mean) * (x[i] - mean);
    q = rsqrtf(warp_sum(q) / (float)n + 1e-5f);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = (x[i] - mean) * q * w[i] + b[i];
}
