/* kgen
{ "format": 1, "op": "histogram", "target": "cuda", "require": "x.contiguous", "zero": ["output"],
  "launches": [
    {"kernel": "histogram_shared", "grid": [4], "block": [128], "args": ["x", "output", {"i32": "x_0"}]}] }
*/
/* Counts in shared memory by integer atomics, then adds the counts to a cleared output by atomics
 * again: no order changes an integer sum. */
extern "C" __global__ void histogram_shared(const long long *x, long long *y, int n) {
    __shared__ int count[32];
    if (threadIdx.x < 32)
        count[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * 128 + threadIdx.x; i < n; i += gridDim.x * 128)
        atomicAdd(&count[x[i]], 1);
    __syncthreads();
    if (threadIdx.x < 32)
        atomicAdd((unsigned long long *)&y[threadIdx.x], (unsigned long long)count[threadIdx.x]);
}
