/* kgen
{ "format": 1, "op": "gather", "target": "cuda", "require": "x.contiguous && index.contiguous",
  "launches": [
    {"kernel": "gather_rows", "grid": ["index_0"], "block": [32], "args": ["x", "index", "output", {"i32": "x_1"}, {"i32": "index_1"}]}] }
*/
/* One element of each row at a place that is given. */
extern "C" __global__ void gather_rows(const float *x, const long long *at, float *y, int n, int m) {
    for (int j = threadIdx.x; j < m; j += 32)
        y[blockIdx.x * m + j] = x[blockIdx.x * n + at[blockIdx.x * m + j]];
}
