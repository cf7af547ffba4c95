/* kgen
{ "format": 1, "op": "conv1d_depthwise", "target": "cuda", "require": "x.contiguous && conv_weight_2 == 4",
  "launches": [
    {"kernel": "conv1d_taps", "grid": ["x_0 * x_1"], "block": [64], "args": ["x", "conv_weight", "conv_bias", "output", {"i32": "x_1"}, {"i32": "x_2"}]}] }
*/
/* The causal depthwise convolution, newest tap first. */
extern "C" __global__ void conv1d_taps(const float *x, const float *w, const float *b, float *y, int c, int n) {
    int f = blockIdx.x % c;
    for (int i = threadIdx.x; i < n; i += 64) {
        float sum = 0.0f;
        for (int e = 3; e >= 0; e--)
            if (i + e - 3 >= 0)
                sum = fmaf(w[f * 4 + e], x[blockIdx.x * n + i + e - 3], sum);
        y[blockIdx.x * n + i] = sum + b[f];
    }
}
