/* kgen
{ "format": 1, "op": "argmax", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "argmax_atomic", "grid": ["x_0"], "block": [128], "args": ["x", "output", {"i32": "x_1"}]}] }
*/
/* The largest by an atomic maximum over keys of value and place: the order of the atomics does not
 * matter. */
extern "C" __global__ void argmax_atomic(const float *x, long long *y, int n) {
    __shared__ unsigned long long best[1];
    if (threadIdx.x == 0)
        best[0] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += 128) {
        float v = x[blockIdx.x * n + i];
        unsigned u = v != v ? 0xffffffffu : __float_as_uint(v == 0.0f ? 0.0f : v);
        u = v != v ? u : u >> 31 ? ~u : u | 0x80000000u;
        atomicMax(best, (unsigned long long)u << 32 | (0xffffffffu - (unsigned)i));
    }
    __syncthreads();
    if (threadIdx.x == 0)
        y[blockIdx.x] = 0xffffffffu - (unsigned)best[0];
}
