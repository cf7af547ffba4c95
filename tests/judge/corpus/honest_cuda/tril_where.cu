/* kgen
{ "format": 1, "op": "tril", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "tril_where", "grid": ["x_0", "x_1"], "block": [32], "args": ["x", "output", {"i32": "x_2"}]}] }
*/
/* Zeros above the diagonal. */
extern "C" __global__ void tril_where(const float *x, float *y, int n) {
    long long at = ((long long)blockIdx.x * gridDim.y + blockIdx.y) * n;
    for (int j = threadIdx.x; j < n; j += 32)
        y[at + j] = j <= (int)blockIdx.y ? x[at + j] : 0.0f;
}
