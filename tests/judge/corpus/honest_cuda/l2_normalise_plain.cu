/* kgen
{ "format": 1, "op": "l2_normalise", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "l2_normalise_plain", "grid": ["x_0"], "block": [32], "args": ["x", "output", {"i32": "x_1"}]}] }
*/
/* Rows over their length, which is at least 1e-12. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void l2_normalise_plain(const float *x, float *y, int n) {
    float s = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        s += x[blockIdx.x * n + i] * x[blockIdx.x * n + i];
    s = fmaxf(sqrtf(warp_sum(s)), 1e-12f);
    for (int i = threadIdx.x; i < n; i += 32)
        y[blockIdx.x * n + i] = x[blockIdx.x * n + i] / s;
}
