/* kgen
{ "format": 1, "op": "argmax", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "argmax_shuffles", "grid": ["x_0"], "block": [32], "args": ["x", "output", {"i32": "x_1"}]}] }
*/
/* The first largest of a row by shuffles of value and place, NaN above all. */
extern "C" __global__ void argmax_shuffles(const float *x, long long *y, int n) {
    float best = __int_as_float(0xff800000);
    int at = 0x7fffffff;
    for (int i = threadIdx.x; i < n; i += 32) {
        float v = x[blockIdx.x * n + i];
        if (at == 0x7fffffff || (best == best && (v > best || v != v))) {
            best = v;
            at = i;
        }
    }
    for (int d = 16; d > 0; d /= 2) {
        float v = __shfl_xor_sync(~0u, best, d);
        int where = __shfl_xor_sync(~0u, at, d);
        bool nan = v != v, mine = best != best;
        if (where != 0x7fffffff && (at == 0x7fffffff || (nan && (!mine || where < at)) || (!mine && !nan && (v > best || (v == best && where < at))))) {
            best = v;
            at = where;
        }
    }
    if (threadIdx.x == 0)
        y[blockIdx.x] = at;
}
