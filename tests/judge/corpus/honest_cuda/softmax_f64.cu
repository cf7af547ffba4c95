/* kgen
{ "format": 1, "op": "softmax_f64", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "softmax_f64", "grid": ["x_0"], "block": [32], "args": ["x", "output", {"i32": "x_1"}]}] }
*/
/* A float64 softmax in float64. */
static double warp_sum(double v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void softmax_f64(const double *input, double *output, int n) {
    const double *x = input + blockIdx.x * n;
    double *y = output + blockIdx.x * n, top = x[0], sum = 0.0;
    for (int i = 1; i < n; i++)
        top = fmax(top, x[i]);
    for (int i = threadIdx.x; i < n; i += 32)
        sum += exp(x[i] - top);
    sum = warp_sum(sum);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = exp(x[i] - top) / sum;
}
