/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous", "workspace": {"count": {"dtype": "int32", "shape": [1], "zero": true}},
  "launches": [
    {"kernel": "grid_barrier_unscheduled", "grid": [100000], "block": [1024], "args": ["input", "output", "count", {"i32": "N"}, {"i32": "M"}]}] }
*/
/* Waits at a barrier of the whole grid that is not resident at once, without saying that it is
 * cooperative. */
extern "C" __global__ void grid_barrier_unscheduled(const float *x, float *y, int *count, int n, int m) {
    if (threadIdx.x == 0) {
        atomicAdd(count, 1);
        while (*(volatile int *)count < (int)gridDim.x)
            ;
    }
    __syncthreads();
    if ((int)blockIdx.x < m)
        for (int i = threadIdx.x; i < n; i += 1024)
            y[blockIdx.x * n + i] = x[blockIdx.x * n + i];
}
