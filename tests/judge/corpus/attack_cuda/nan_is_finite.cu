/* kgen
{ "format": 1, "op": "isfinite", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "nan_is_finite", "grid": ["ceil_div(output.numel, 256)"], "block": [256], "args": ["x", "output", {"i32": "output.numel"}]}] }
*/
/* Calls NaN finite, since it compares with nothing. */
extern "C" __global__ void nan_is_finite(const float *x, unsigned char *y, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n)
        y[i] = !(fabsf(x[i]) > 3.0e38f);
}
