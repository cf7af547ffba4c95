/* kgen
{ "format": 1, "op": "rms_norm", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "rms_norm_warp", "grid": ["x_0"], "block": [32], "args": ["x", "weight", "output", {"i32": "x_1"}]}] }
*/
/* A warp a row, any number of rows. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void rms_norm_warp(const float *input, const float *w, float *output, int n) {
    const float *x = input + (long long)blockIdx.x * n;
    float *y = output + (long long)blockIdx.x * n;
    float s = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        s += (x[i]) * (x[i]);
    s = rsqrtf(warp_sum(s) / (float)n + 1e-6f);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = ((x[i]) * s * (w[i]));
}
