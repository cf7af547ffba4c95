/* kgen
{ "format": 1, "op": "broadcast_ones", "target": "cuda", "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "broadcast_outer", "grid": ["b_0", "a_1"], "block": [32], "args": ["a", "b", "output", {"i32": "b_2"}]}] }
*/
/* An outer sum over sizes of 1. */
extern "C" __global__ void broadcast_outer(const float *a, const float *b, float *y, int n) {
    for (int j = threadIdx.x; j < n; j += 32)
        y[(blockIdx.x * gridDim.y + blockIdx.y) * n + j] = a[blockIdx.y] + b[blockIdx.x * n + j];
}
