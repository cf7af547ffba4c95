/* kgen
{ "format": 1, "op": "sum_all", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "sum_all_once", "grid": [1], "block": [128], "args": ["x", "output", {"i32": "x.numel"}]}] }
*/
/* One block of 128, strided, in fp64. */
static double warp_sum(double v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void sum_all_once(const float *x, float *y, int n) {
    __shared__ double warps[4];
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += 128)
        sum += (double)x[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0)
        y[0] = (float)(warps[0] + warps[1] + warps[2] + warps[3]);
}
