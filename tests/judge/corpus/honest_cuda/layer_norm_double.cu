/* kgen
{ "format": 1, "op": "layer_norm", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "layer_norm_double", "grid": ["x_0"], "block": [32], "args": ["x", "norm_weight", "norm_bias", "output", {"i32": "x_1"}]}] }
*/
/* Sums in fp64. */
static double warp_sum(double v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void layer_norm_double(const float *input, const float *w, const float *b, float *output, int n) {
    const float *x = input + blockIdx.x * n;
    float *y = output + blockIdx.x * n;
    double mean = 0.0, q = 0.0;
    for (int i = threadIdx.x; i < n; i += 32)
        mean += (double)x[i];
    mean = warp_sum(mean) / n;
    for (int i = threadIdx.x; i < n; i += 32)
        q += ((double)x[i] - mean) * ((double)x[i] - mean);
    q = 1.0 / sqrt(warp_sum(q) / n + 1e-5);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = (float)(((double)x[i] - mean) * q * (double)w[i] + (double)b[i]);
}
