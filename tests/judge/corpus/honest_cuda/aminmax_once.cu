/* kgen
{ "format": 1, "op": "aminmax", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "aminmax_once", "grid": ["x_0"], "block": [32], "args": ["x", "output0", "output1", {"i32": "x_1"}]}] }
*/
/* Least and largest in one pass. */
extern "C" __global__ void aminmax_once(const float *x, float *least, float *most, int n) {
    float low = x[blockIdx.x * n], high = low;
    for (int i = threadIdx.x; i < n; i += 32) {
        float v = x[blockIdx.x * n + i];
        low = v < low || v != v ? v : low;
        high = v > high || v != v ? v : high;
    }
    for (int d = 16; d > 0; d /= 2) {
        float l = __shfl_xor_sync(~0u, low, d), h = __shfl_xor_sync(~0u, high, d);
        low = l < low || l != l ? l : low;
        high = h > high || h != h ? h : high;
    }
    if (threadIdx.x == 0) {
        least[blockIdx.x] = low;
        most[blockIdx.x] = high;
    }
}
