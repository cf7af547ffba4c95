/* kgen
{ "format": 1, "op": "var_mean", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "var_mean_outputs", "grid": ["x_0"], "block": [32], "args": ["x", "output0", "output1", {"i32": "x_1"}]}] }
*/
/* Variance and mean, two outputs, two passes. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void var_mean_outputs(const float *input, float *var, float *mean, int n) {
    const float *x = input + blockIdx.x * n;
    float s = 0.0f, q = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        s += x[i];
    s = warp_sum(s) / (float)n;
    for (int i = threadIdx.x; i < n; i += 32)
        q += (x[i] - s) * (x[i] - s);
    q = warp_sum(q);
    if (threadIdx.x == 0) {
        var[blockIdx.x] = q / (float)(n - 1);
        mean[blockIdx.x] = s;
    }
}
