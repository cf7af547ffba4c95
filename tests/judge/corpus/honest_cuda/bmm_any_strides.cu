/* kgen
{ "format": 1, "op": "bmm_transposed", "target": "cuda", "require": "a.contiguous && b_2 <= 32",
  "launches": [
    {"kernel": "bmm_any_strides", "grid": ["a_0", "a_1"], "block": [32], "args": ["a", "b", "output", {"i32": "a_2"}, {"i32": "b_2"}, {"i64": "b.stride(0)"}, {"i64": "b.stride(1)"}, {"i64": "b.stride(2)"}]}] }
*/
/* Batched products that take the second matrix by whatever strides it has. */
extern "C" __global__ void bmm_any_strides(const float *a, const float *b, float *y, int k, int n, long long s0, long long s1, long long s2) {
    long long row = (long long)blockIdx.x * gridDim.y + blockIdx.y;
    float sum = 0.0f;
    if ((int)threadIdx.x >= n)
        return;
    for (int p = 0; p < k; p++)
        sum = fmaf(a[row * k + p], b[blockIdx.x * s0 + p * s1 + threadIdx.x * s2], sum);
    y[row * n + threadIdx.x] = sum;
}
