/* kgen
{ "format": 1, "op": "rms_norm", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "one_size", "grid": ["min(x_0, 19)"], "block": [32], "args": ["x", "weight", "output", {"i32": "x_1"}]}] }
*/
/* Right for the number of rows of the first Case alone, on an Op whose rows are dynamic. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void one_size(const float *x, const float *w, float *y, int n) {
    float s = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        s += x[blockIdx.x * n + i] * x[blockIdx.x * n + i];
    s = rsqrtf(warp_sum(s) / (float)n + 1e-6f);
    for (int i = threadIdx.x; i < n; i += 32)
        y[blockIdx.x * n + i] = x[blockIdx.x * n + i] * s * w[i];
}
