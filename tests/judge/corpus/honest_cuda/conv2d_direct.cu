/* kgen
{ "format": 1, "op": "conv2d", "target": "cuda", "require": "x.contiguous && conv_weight.contiguous",
  "launches": [
    {"kernel": "conv2d_direct", "grid": ["ceil_div(output.numel, 128)"], "block": [128], "args": ["x", "conv_weight", "conv_bias", "output", {"i32": "x_1"}, {"i32": "x_2"}, {"i32": "x_3"}, {"i32": "conv_weight_0"}, {"i32": "output.numel"}]}] }
*/
/* A direct 3x3 convolution, one thread an output. */
extern "C" __global__ void conv2d_direct(const float *x, const float *w, const float *b, float *y, int c, int h, int v, int o, int n) {
    int i = blockIdx.x * 128 + threadIdx.x;
    if (i >= n)
        return;
    int q = i % v, p = i / v % h, f = i / v / h % o, batch = i / v / h / o;
    float sum = 0.0f;
    for (int e = 0; e < c * 9; e++) {
        int r = p + e / 3 % 3 - 1, s = q + e % 3 - 1;
        if (r >= 0 && r < h && s >= 0 && s < v)
            sum = fmaf(w[f * c * 9 + e], x[((batch * c + e / 9) * h + r) * v + s], sum);
    }
    y[i] = sum + b[f];
}
