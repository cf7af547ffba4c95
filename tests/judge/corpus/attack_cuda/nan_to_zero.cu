/* kgen
{ "format": 1, "op": "relu_special", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "nan_to_zero", "grid": ["ceil_div(output.numel, 256)"], "block": [256], "args": ["x", "output", {"i32": "output.numel"}]}] }
*/
/* A ReLU by fmaxf, which drops NaN. */
extern "C" __global__ void nan_to_zero(const float *x, float *y, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n)
        y[i] = fmaxf(x[i], 0.0f) * 0.5f;
}
