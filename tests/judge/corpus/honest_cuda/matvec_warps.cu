/* kgen
{ "format": 1, "op": "matvec", "target": "cuda", "require": "a.contiguous",
  "launches": [
    {"kernel": "matvec_warps", "grid": ["a_0"], "block": [32], "args": ["a", "x", "output", {"i32": "a_1"}]}] }
*/
/* A warp a row, lanes in steps of 32. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void matvec_warps(const float *a, const float *x, float *y, int n) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        sum = fmaf(a[(long long)blockIdx.x * n + i], x[i], sum);
    sum = warp_sum(sum);
    if (threadIdx.x == 0)
        y[blockIdx.x] = sum;
}
