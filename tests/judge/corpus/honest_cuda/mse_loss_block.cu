/* kgen
{ "format": 1, "op": "mse_loss", "target": "cuda", "require": "x.contiguous && y.contiguous",
  "launches": [
    {"kernel": "mse_loss_block", "grid": [1], "block": [128], "args": ["x", "y", "output", {"i32": "x.numel"}]}] }
*/
/* Mean of squared differences by one block. */
/* Of the 128 threads of a block: the sum, or the largest. */
static float block_all(float v, bool add) {
    __shared__ float warps[4];
    for (int d = 16; d > 0; d /= 2) {
        float o = __shfl_xor_sync(~0u, v, d);
        v = add ? v + o : fmaxf(v, o);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = v;
    __syncthreads();
    v = warps[0];
    for (int w = 1; w < 4; w++)
        v = add ? v + warps[w] : fmaxf(v, warps[w]);
    return v;
}

extern "C" __global__ void mse_loss_block(const float *x, const float *t, float *y, int n) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 128)
        sum += (x[i] - t[i]) * (x[i] - t[i]);
    sum = block_all(sum, true);
    if (threadIdx.x == 0)
        y[0] = sum / (float)n;
}
