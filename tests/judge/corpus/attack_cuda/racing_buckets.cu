/* kgen
{ "format": 1, "op": "index_add", "target": "cuda", "zero": ["output"], "require": "x.contiguous",
  "launches": [
    {"kernel": "racing_buckets", "grid": ["x_0"], "block": [32], "args": ["x", "index", "output", {"i32": "x_1"}]}] }
*/
/* Adds into buckets from many blocks without atomics, so that sums get lost. */
extern "C" __global__ void racing_buckets(const float *x, const long long *at, float *y, int n) {
    for (int j = threadIdx.x; j < n; j += 32) {
        volatile float *to = y + at[blockIdx.x] * n + j;
        float held = *to;
        for (long long begin = clock64(); clock64() - begin < 2000;)
            ;
        *to = held + x[blockIdx.x * n + j];
    }
}
