/* kgen
{ "format": 1, "op": "mean_columns", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "mean_columns_threads", "grid": ["ceil_div(x_1, 32)"], "block": [32], "args": ["x", "output", {"i32": "x_0"}, {"i32": "x_1"}]}] }
*/
/* A thread a column, down the rows. */
extern "C" __global__ void mean_columns_threads(const float *x, float *y, int m, int n) {
    int j = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    for (int i = 0; j < n && i < m; i++)
        sum += x[i * n + j];
    if (j < n)
        y[j] = sum / (float)m;
}
