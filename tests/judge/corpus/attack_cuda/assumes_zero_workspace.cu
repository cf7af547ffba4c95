/* kgen
{ "format": 1, "op": "sum_all", "target": "cuda", "require": "x.contiguous", "workspace": {"part": {"dtype": "float32", "shape": [32]}},
  "launches": [
    {"kernel": "assumes_zero_workspace", "grid": [1], "block": [32], "args": ["x", "part", "output", {"i32": "x.numel"}]}] }
*/
/* Adds onto a workspace that nobody cleared. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void assumes_zero_workspace(const float *x, float *part, float *y, int n) {
    for (int i = threadIdx.x; i < n; i += 32)
        part[threadIdx.x] += x[i];
    float sum = warp_sum(part[threadIdx.x]);
    if (threadIdx.x == 0)
        y[0] = sum;
}
