/* kgen
{ "format": 1, "op": "matmul", "target": "cuda", "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "matmul_double", "grid": ["ceil_div(b_1, 32)", "a_0"], "block": [32], "args": ["a", "b", "output", {"i32": "a_0"}, {"i32": "a_1"}, {"i32": "b_1"}]}] }
*/
/* Sums in fp64, rounded at the end. */
extern "C" __global__ void matmul_double(const float *a, const float *b, float *y, int m, int k, int n) {
    int i = blockIdx.y, j = blockIdx.x * 32 + threadIdx.x;
    if (i >= m || j >= n)
        return;
    double sum = 0.0;
    for (int p = 0; p < k; p++) {
        sum += (double)a[i * k + p] * (double)b[p * n + j];
    }
    y[i * n + j] = (float)sum;
}
