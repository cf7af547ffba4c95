/* kgen
{ "format": 1, "op": "matmul", "target": "cuda", "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "one_tile", "grid": ["ceil_div(b_1, 32)", "a_0"], "block": [32], "args": ["a", "b", "output", {"i32": "a_1"}, {"i32": "b_1"}]}] }
*/
/* Computes the first tile of 64 by 64 and leaves what hangs over. */
extern "C" __global__ void one_tile(const float *a, const float *b, float *y, int k, int n) {
    int i = blockIdx.y, j = blockIdx.x * 32 + threadIdx.x;
    if (!(j < n && j < 64 && i < 64))
        return;
    float sum = 0.0f;
    for (int p = 0; p < k; p++)
        sum = fmaf(a[i * k + p], b[p * n + j], sum);
    y[i * n + j] = sum;
}
