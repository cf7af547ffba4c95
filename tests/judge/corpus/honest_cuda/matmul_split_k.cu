/* kgen
{ "format": 1, "op": "matmul", "target": "cuda", "require": "a.contiguous && b.contiguous && a_1 % 6 == 0", "workspace": {"parts": {"dtype": "float32", "shape": [6, "a_0", "b_1"]}},
  "launches": [
    {"kernel": "split_products", "grid": ["ceil_div(b_1, 32)", "a_0", 6], "block": [32], "args": ["a", "b", "parts", {"i32": "a_1"}, {"i32": "b_1"}]},
    {"kernel": "split_sum", "grid": ["ceil_div(a_0 * b_1, 128)"], "block": [128], "args": ["parts", "output", {"i32": "a_0 * b_1"}]}] }
*/
/* Splits the inner dim over six blocks, whose sums go through a workspace and are added in order. */
extern "C" __global__ void split_products(const float *a, const float *b, float *parts, int k, int n) {
    int i = blockIdx.y, j = blockIdx.x * 32 + threadIdx.x, first = k / 6 * blockIdx.z;
    float sum = 0.0f;
    for (int p = first; j < n && p < first + k / 6; p++)
        sum = fmaf(a[i * k + p], b[p * n + j], sum);
    if (j < n)
        parts[((long long)blockIdx.z * gridDim.y + i) * n + j] = sum;
}

extern "C" __global__ void split_sum(const float *parts, float *y, int n) {
    int i = blockIdx.x * 128 + threadIdx.x;
    float sum = 0.0f;
    for (int e = 0; i < n && e < 6; e++)
        sum += parts[e * n + i];
    if (i < n)
        y[i] = sum;
}
