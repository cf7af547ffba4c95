/* kgen
{ "format": 1, "op": "rms_norm", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "rms_norm_newton", "grid": ["ceil_div(x_0, 8)"], "block": [32, 8], "args": ["x", "weight", "output", {"i32": "x_0"}, {"i32": "x_1"}]}] }
*/
/* The root by one step of Newton over the hardware's approximation, eight warps a block, rows of a
 * block in turn. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void rms_norm_newton(const float *input, const float *w, float *output, int m, int n) {
    int row = blockIdx.x * 8 + threadIdx.y;
    const float *x = input + (long long)row * n;
    float s = 0.0f;
    for (int i = threadIdx.x; row < m && i < n; i += 32)
        s = fmaf(x[i], x[i], s);
    s = warp_sum(s) / (float)n + 1e-6f;
    float r = rsqrtf(s);
    r = r * (1.5f - 0.5f * s * r * r);
    for (int i = threadIdx.x; row < m && i < n; i += 32)
        output[(long long)row * n + i] = w[i] * (x[i] * r);
}
