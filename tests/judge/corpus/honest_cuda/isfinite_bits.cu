/* kgen
{ "format": 1, "op": "isfinite", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "isfinite_bits", "grid": ["ceil_div(output.numel, 256)"], "block": [256], "args": ["x", "output", {"i32": "output.numel"}]}] }
*/
/* By the bits of the exponent. */
extern "C" __global__ void isfinite_bits(const float *x, unsigned char *out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n)
        out[i] = (__float_as_uint(x[i]) >> 23 & 255) != 255;
}
