/* kgen
{ "format": 1, "op": "index_add", "target": "cuda", "require": "x.contiguous", "workspace": {"top": {"dtype": "int32", "shape": [1], "zero": true}, "sums": {"dtype": "int64", "shape": [16, "x_1"], "zero": true}},
  "launches": [
    {"kernel": "largest", "grid": [4], "block": [128], "args": ["x", "top", {"i32": "x.numel"}]},
    {"kernel": "index_add_integers", "grid": ["x_0"], "block": [32], "args": ["x", "index", "top", "sums", {"i32": "x_1"}]},
    {"kernel": "back_to_floats", "grid": ["ceil_div(output.numel, 32)"], "block": [32], "args": ["sums", "top", "output", {"i32": "output.numel"}]}] }
*/
/* Atomics whose order does not matter: values go into 64-bit integers scaled by the largest, and
 * come back in another launch. */
extern "C" __global__ void largest(const float *x, int *top, int n) {
    for (int i = blockIdx.x * 128 + threadIdx.x; i < n; i += gridDim.x * 128)
        atomicMax(top, __float_as_int(fabsf(x[i])));
}

/* A power of two under which no sum of a million terms leaves 63 bits. */
static double unit(const int *top) {
    int e = *top >> 23;
    return exp2(42.0 - (double)max(e - 127, -126));
}

extern "C" __global__ void index_add_integers(const float *x, const long long *at, const int *top, unsigned long long *sums, int n) {
    double scale = unit(top);
    for (int j = threadIdx.x; j < n; j += 32)
        atomicAdd(&sums[at[blockIdx.x] * n + j], (unsigned long long)llrint((double)x[blockIdx.x * n + j] * scale));
}

extern "C" __global__ void back_to_floats(const long long *sums, const int *top, float *y, int n) {
    int i = blockIdx.x * 32 + threadIdx.x;
    if (i < n)
        y[i] = (float)((double)sums[i] / unit(top));
}
