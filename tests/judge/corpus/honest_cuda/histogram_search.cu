/* kgen
{ "format": 1, "op": "histogram", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "histogram_search", "grid": [32], "block": [32], "args": ["x", "output", {"i32": "x_0"}]}] }
*/
/* Each warp counts one value over the whole input: slow, and without atomics. */
extern "C" __global__ void histogram_search(const long long *x, long long *y, int n) {
    int count = 0;
    for (int i = threadIdx.x; i < n; i += 32)
        count += x[i] == (long long)blockIdx.x;
    for (int d = 16; d > 0; d /= 2)
        count += __shfl_xor_sync(~0u, count, d);
    if (threadIdx.x == 0)
        y[blockIdx.x] = count;
}
