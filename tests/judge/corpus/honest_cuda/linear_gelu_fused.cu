/* kgen
{ "format": 1, "op": "linear_gelu", "target": "cuda", "require": "x.contiguous && linear_weight.contiguous",
  "launches": [
    {"kernel": "linear_gelu_fused", "grid": ["x_0"], "block": [128], "args": ["x", "linear_weight", "linear_bias", "output", {"i32": "x_1"}, {"i32": "linear_weight_0"}]}] }
*/
/* The product, the bias and the GELU in one launch. */
extern "C" __global__ void linear_gelu_fused(const float *x, const float *w, const float *b, float *y, int k, int n) {
    for (int j = threadIdx.x; j < n; j += 128) {
        float sum = 0.0f;
        for (int p = 0; p < k; p++)
            sum = fmaf(x[blockIdx.x * k + p], w[j * k + p], sum);
        sum += b[j];
        y[blockIdx.x * n + j] = 0.5f * sum * (1.0f + erff(sum * 0.70710678f));
    }
}
