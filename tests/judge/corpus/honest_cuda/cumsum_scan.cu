/* kgen
{ "format": 1, "op": "cumsum", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "cumsum_scan", "grid": ["x_0"], "block": [32], "args": ["x", "output", {"i32": "x_1"}]}] }
*/
/* A scan by shuffles, 32 elements a step, carried along the row. */
extern "C" __global__ void cumsum_scan(const float *x, float *y, int n) {
    float carry = 0.0f;
    for (int first = 0; first < n; first += 32) {
        int i = first + threadIdx.x;
        float v = i < n ? x[blockIdx.x * n + i] : 0.0f;
        for (int d = 1; d < 32; d *= 2) {
            float o = __shfl_sync(~0u, v, (int)threadIdx.x - d & 31);
            v += (int)threadIdx.x >= d ? o : 0.0f;
        }
        if (i < n)
            y[blockIdx.x * n + i] = carry + v;
        carry += __shfl_sync(~0u, v, 31);
    }
}
