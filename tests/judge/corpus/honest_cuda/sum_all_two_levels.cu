/* kgen
{ "format": 1, "op": "sum_all", "target": "cuda", "require": "x.contiguous", "workspace": {"parts": {"dtype": "float32", "shape": [64]}},
  "launches": [
    {"kernel": "sum_parts", "grid": [64], "block": [32], "args": ["x", "parts", {"i32": "x.numel"}]},
    {"kernel": "sum_of_parts", "grid": [1], "block": [32], "args": ["parts", "output"]}] }
*/
/* Sums of 64 blocks into a workspace, and their sum by a second launch. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void sum_parts(const float *x, float *parts, int n) {
    float sum = 0.0f;
    for (int i = blockIdx.x * 32 + threadIdx.x; i < n; i += 2048)
        sum += x[i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0)
        parts[blockIdx.x] = sum;
}

extern "C" __global__ void sum_of_parts(const float *parts, float *y) {
    float sum = warp_sum(parts[threadIdx.x] + parts[threadIdx.x + 32]);
    if (threadIdx.x == 0)
        y[0] = sum;
}
