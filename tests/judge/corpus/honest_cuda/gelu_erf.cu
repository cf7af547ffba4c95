/* kgen
{ "format": 1, "op": "gelu", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "gelu_erf", "grid": ["ceil_div(output.numel, 256)"], "block": [256], "args": ["x", "output", {"i32": "output.numel"}]}] }
*/
/* The exact GELU by erff. */
extern "C" __global__ void gelu_erf(const float *x, float *out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n)
        out[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
}
