/* kgen
{ "format": 1, "op": "logsumexp", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "logsumexp_rows", "grid": ["x_0"], "block": [32], "args": ["x", "output", {"i32": "x_1"}]}] }
*/
/* Logarithms of sums of exponentials in fp64, infinities as torch has them. */
static double warp_sum(double v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void logsumexp_rows(const double *x, double *y, int n) {
    double top = x[(long long)blockIdx.x * n], sum = 0.0;
    for (int i = 1; i < n; i++)
        top = fmax(top, x[(long long)blockIdx.x * n + i]);
    if (top - top != 0.0)
        top = 0.0;
    for (int i = threadIdx.x; i < n; i += 32)
        sum += exp(x[(long long)blockIdx.x * n + i] - top);
    sum = warp_sum(sum);
    if (threadIdx.x == 0)
        y[blockIdx.x] = top + log(sum);
}
