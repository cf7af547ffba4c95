/* kgen
{ "format": 1, "op": "layer_norm", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "layer_norm_shifted", "grid": ["x_0"], "block": [32], "args": ["x", "norm_weight", "norm_bias", "output", {"i32": "x_1"}]}] }
*/
/* One pass over values less the first of the row, which keeps the digits that a plain sum of
 * squares loses. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void layer_norm_shifted(const float *input, const float *w, const float *b, float *output, int n) {
    const float *x = input + blockIdx.x * n;
    float *y = output + blockIdx.x * n;
    float first = x[0], s = 0.0f, q = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32) {
        float d = x[i] - first;
        s += d;
        q += d * d;
    }
    s = warp_sum(s) / (float)n;
    q = rsqrtf(fmaxf(warp_sum(q) / (float)n - s * s, 0.0f) + 1e-5f);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = (x[i] - first - s) * q * w[i] + b[i];
}
