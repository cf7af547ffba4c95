/* kgen
{ "format": 1, "op": "variance", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "variance_corrected", "grid": ["x_0"], "block": [32], "args": ["x", "output", {"i32": "x_1"}]}] }
*/
/* Two passes with the correction for what the rounded mean is off. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void variance_corrected(const float *input, float *y, int n) {
    const float *x = input + blockIdx.x * n;
    float s = 0.0f, q = 0.0f, off = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        s += x[i];
    s = warp_sum(s) / (float)n;
    for (int i = threadIdx.x; i < n; i += 32) {
        float d = x[i] - s;
        q += d * d;
        off += d;
    }
    q = warp_sum(q);
    off = warp_sum(off);
    if (threadIdx.x == 0)
        y[blockIdx.x] = (q - off * off / (float)n) / (float)(n - 1);
}
