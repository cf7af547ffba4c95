/* kgen
{ "format": 1, "op": "matmul_f64", "target": "cuda", "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "matmul_f64_chain", "grid": ["ceil_div(b_1, 32)", "a_0"], "block": [32], "args": ["a", "b", "output", {"i32": "a_0"}, {"i32": "a_1"}, {"i32": "b_1"}]}] }
*/
/* float64 in float64. */
extern "C" __global__ void matmul_f64_chain(const double *a, const double *b, double *y, int m, int k, int n) {
    int i = blockIdx.y, j = blockIdx.x * 32 + threadIdx.x;
    if (i >= m || j >= n)
        return;
    double sum = 0.0;
    for (int p = 0; p < k; p++) {
        sum = fma(a[i * k + p], b[p * n + j], sum);
    }
    y[i * n + j] = sum;
}
