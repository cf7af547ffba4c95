/* kgen
{ "format": 1, "op": "index_add", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "index_add_owner", "grid": [16], "block": [32], "args": ["x", "index", "output", {"i32": "x_0"}, {"i32": "x_1"}]}] }
*/
/* Each bucket looks for its rows, in order. */
extern "C" __global__ void index_add_owner(const float *x, const long long *at, float *y, int m, int n) {
    for (int j = threadIdx.x; j < n; j += 32) {
        float sum = 0.0f;
        for (int i = 0; i < m; i++)
            sum += at[i] == (long long)blockIdx.x ? x[i * n + j] : 0.0f;
        y[blockIdx.x * n + j] = sum;
    }
}
