/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "N == 1 && input.contiguous",
  "launches": [
    {"kernel": "softmax_one", "grid": ["ceil_div(M * K, 128)"], "block": [128], "args": ["input", "output", {"i32": "M * K"}]}] }
*/
/* Rows of one element are ones, but for NaN and infinities. */
extern "C" __global__ void softmax_one(const float *x, float *y, int n) {
    int i = blockIdx.x * 128 + threadIdx.x;
    if (i < n)
        y[i] = x[i] - x[i] == 0.0f ? 1.0f : x[i] - x[i];
}
