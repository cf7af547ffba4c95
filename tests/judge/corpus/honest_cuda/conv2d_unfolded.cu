/* kgen
{ "format": 1, "op": "conv2d", "target": "cuda", "require": "x.contiguous && conv_weight.contiguous", "workspace": {"patches": {"dtype": "float32", "shape": ["x_1", 9, "x_0", "x_2", "x_3"]}},
  "launches": [
    {"kernel": "unfold", "grid": ["ceil_div(x_0 * x_2 * x_3, 128)", "x_1 * 9"], "block": [128], "args": ["x", "patches", {"i32": "x_1"}, {"i32": "x_2"}, {"i32": "x_3"}, {"i32": "x_0 * x_2 * x_3"}]},
    {"kernel": "unfolded_product", "grid": ["ceil_div(x_0 * x_2 * x_3, 128)", "conv_weight_0"], "block": [128], "args": ["patches", "conv_weight", "conv_bias", "output", {"i32": "x_1 * 9"}, {"i32": "x_2 * x_3"}, {"i32": "x_0 * x_2 * x_3"}]}] }
*/
/* A convolution as a product over unfolded patches, which lie in a workspace. */
extern "C" __global__ void unfold(const float *x, float *patches, int c, int h, int v, int n) {
    int i = blockIdx.x * 128 + threadIdx.x, e = blockIdx.y;
    if (i >= n)
        return;
    int r = i / v % h + e / 3 % 3 - 1, s = i % v + e % 3 - 1, batch = i / v / h;
    bool inside = r >= 0 && r < h && s >= 0 && s < v;
    patches[(long long)e * n + i] = inside ? x[((batch * c + e / 9) * h + r) * v + s] : 0.0f;
}

extern "C" __global__ void unfolded_product(const float *patches, const float *w, const float *b, float *y, int k, int hw, int n) {
    int i = blockIdx.x * 128 + threadIdx.x, f = blockIdx.y;
    float sum = b[f];
    if (i >= n)
        return;
    for (int e = 0; e < k; e++)
        sum = fmaf(w[f * k + e], patches[(long long)e * n + i], sum);
    y[((long long)(i / hw) * gridDim.y + f) * hw + i % hw] = sum;
}
