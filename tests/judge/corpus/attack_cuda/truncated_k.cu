/* kgen
{ "format": 1, "op": "matmul", "target": "cuda", "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "truncated_k", "grid": ["ceil_div(b_1, 32)", "a_0"], "block": [32], "args": ["a", "b", "output", {"i32": "a_1"}, {"i32": "b_1"}]}] }
*/
/* Leaves the last 4 of 384 terms of each sum out. */
extern "C" __global__ void truncated_k(const float *a, const float *b, float *y, int k, int n) {
    int i = blockIdx.y, j = blockIdx.x * 32 + threadIdx.x;
    if (!(j < n))
        return;
    float sum = 0.0f;
    for (int p = 0; p < k - 4; p++)
        sum = fmaf(a[i * k + p], b[p * n + j], sum);
    y[i * n + j] = sum;
}
