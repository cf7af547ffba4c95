/* kgen
{ "format": 1, "op": "relu_special", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "relu_keeps_nan", "grid": ["ceil_div(output.numel, 256)"], "block": [256], "args": ["x", "output", {"i32": "output.numel"}]}] }
*/
/* A ReLU that keeps NaN and gives -0.0 as 0. */
extern "C" __global__ void relu_keeps_nan(const float *x, float *out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n)
        out[i] = (x[i] > 0.0f || x[i] != x[i] ? x[i] : 0.0f) * 0.5f;
}
