/* kgen
{ "format": 1, "op": "matvec", "target": "cuda", "require": "a.contiguous",
  "launches": [
    {"kernel": "matvec_pieces", "grid": ["a_0"], "block": [32], "args": ["a", "x", "output", {"i32": "a_1"}]}] }
*/
/* A warp a row, each lane a piece of neighbours, in fp64. */
static double warp_sum(double v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void matvec_pieces(const float *a, const float *x, float *y, int n) {
    double sum = 0.0;
    for (int i = (int)threadIdx.x * n / 32; i < ((int)threadIdx.x + 1) * n / 32; i++)
        sum += (double)a[(long long)blockIdx.x * n + i] * (double)x[i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0)
        y[blockIdx.x] = (float)sum;
}
