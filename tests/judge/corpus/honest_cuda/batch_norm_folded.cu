/* kgen
{ "format": 1, "op": "batch_norm", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "batch_norm_folded", "grid": ["x_0", "x_1"], "block": [64], "args": ["x", "norm_weight", "norm_bias", "norm_running_mean", "norm_running_var", "output", {"i32": "x_2 * x_3"}]}] }
*/
/* Batch norm of inference with scale and offset of each channel folded ahead. */
extern "C" __global__ void batch_norm_folded(const float *x, const float *w, const float *b, const float *mean, const float *var, float *y, int n) {
    int c = blockIdx.y;
    float scale = w[c] / sqrtf(var[c] + 1e-5f), offset = b[c] - mean[c] * scale;
    long long at = ((long long)blockIdx.x * gridDim.y + c) * n;
    for (int i = threadIdx.x; i < n; i += 64)
        y[at + i] = fmaf(x[at + i], scale, offset);
}
