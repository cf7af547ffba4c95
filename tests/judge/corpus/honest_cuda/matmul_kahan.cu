/* kgen
{ "format": 1, "op": "matmul", "target": "cuda", "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "matmul_kahan", "grid": ["ceil_div(b_1, 32)", "a_0"], "block": [32], "args": ["a", "b", "output", {"i32": "a_0"}, {"i32": "a_1"}, {"i32": "b_1"}]}] }
*/
/* Sums with Kahan's compensation. */
extern "C" __global__ void matmul_kahan(const float *a, const float *b, float *y, int m, int k, int n) {
    int i = blockIdx.y, j = blockIdx.x * 32 + threadIdx.x;
    if (i >= m || j >= n)
        return;
    float sum = 0.0f, lost = 0.0f;
    for (int p = 0; p < k; p++) {
        float t = fmaf(a[i * k + p], b[p * n + j], -lost), now = sum + t;
        lost = now - sum - t;
        sum = now;
    }
    y[i * n + j] = sum;
}
