/* kgen
{ "format": 1, "op": "matmul_int", "target": "cuda", "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "matmul_int_wraps", "grid": ["ceil_div(b_1, 32)", "a_0"], "block": [32], "args": ["a", "b", "output", {"i32": "a_0"}, {"i32": "a_1"}, {"i32": "b_1"}]}] }
*/
/* int32 products by unsigned arithmetic, which wraps as torch does. */
extern "C" __global__ void matmul_int_wraps(const int *a, const int *b, int *y, int m, int k, int n) {
    int i = blockIdx.y, j = blockIdx.x * 32 + threadIdx.x;
    if (i >= m || j >= n)
        return;
    unsigned sum = 0;
    for (int p = 0; p < k; p++) {
        sum += (unsigned)a[i * k + p] * (unsigned)b[p * n + j];
    }
    y[i * n + j] = (int)sum;
}
