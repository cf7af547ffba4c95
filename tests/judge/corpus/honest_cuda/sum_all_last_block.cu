/* kgen
{ "format": 1, "op": "sum_all", "target": "cuda", "require": "x.contiguous", "workspace": {"parts": {"dtype": "float32", "shape": [16]}, "count": {"dtype": "int32", "shape": [1], "zero": true}},
  "launches": [
    {"kernel": "sum_all_last_block", "grid": [16], "block": [32], "args": ["x", "parts", "count", "output", {"i32": "x.numel"}]}] }
*/
/* Partial sums of 16 blocks; the last to finish, told by a counter, adds them in their order. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void sum_all_last_block(const float *x, float *parts, int *count, float *y, int n) {
    __shared__ int before[1];
    float sum = 0.0f;
    for (int i = blockIdx.x * 32 + threadIdx.x; i < n; i += 512)
        sum += x[i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = sum;
        __threadfence();
        before[0] = atomicAdd(count, 1);
    }
    __syncwarp();
    if (before[0] != (int)gridDim.x - 1)
        return;
    __threadfence();
    volatile float *found = parts;
    sum = warp_sum(threadIdx.x < 16 ? found[threadIdx.x] : 0.0f);
    if (threadIdx.x == 0)
        y[0] = sum;
}
