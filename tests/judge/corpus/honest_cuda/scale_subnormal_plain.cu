/* kgen
{ "format": 1, "op": "scale_subnormal", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "scale_subnormal_plain", "grid": ["x_0"], "block": [64], "args": ["x", "scale", "output", {"i32": "x_1"}]}] }
*/
/* Products that are subnormal numbers, which plain fp32 keeps. */
extern "C" __global__ void scale_subnormal_plain(const float *x, const float *s, float *y, int n) {
    for (int j = threadIdx.x; j < n; j += 64)
        y[blockIdx.x * n + j] = x[blockIdx.x * n + j] * s[j];
}
