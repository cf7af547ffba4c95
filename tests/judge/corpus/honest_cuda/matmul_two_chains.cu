/* kgen
{ "format": 1, "op": "matmul", "target": "cuda", "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "matmul_two_chains", "grid": ["ceil_div(b_1, 32)", "a_0"], "block": [32], "args": ["a", "b", "output", {"i32": "a_0"}, {"i32": "a_1"}, {"i32": "b_1"}]}] }
*/
/* Even and odd terms in two chains. */
extern "C" __global__ void matmul_two_chains(const float *a, const float *b, float *y, int m, int k, int n) {
    int i = blockIdx.y, j = blockIdx.x * 32 + threadIdx.x;
    if (i >= m || j >= n)
        return;
    float even = 0.0f, odd = 0.0f;
    for (int p = 0; p < k; p++) {
        float v = a[i * k + p], w = b[p * n + j];
        if (p % 2)
            odd = fmaf(v, w, odd);
        else
            even = fmaf(v, w, even);
    }
    y[i * n + j] = even + odd;
}
