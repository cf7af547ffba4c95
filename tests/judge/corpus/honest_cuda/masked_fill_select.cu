/* kgen
{ "format": 1, "op": "masked_fill", "target": "cuda", "require": "x.contiguous && mask.contiguous",
  "launches": [
    {"kernel": "masked_fill_select", "grid": ["ceil_div(output.numel, 256)"], "block": [256], "args": ["x", "mask", "output", {"i32": "output.numel"}]}] }
*/
/* Takes the fill where the mask says so. */
extern "C" __global__ void masked_fill_select(const float *x, const unsigned char *mask, float *out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n)
        out[i] = mask[i] ? -1.0f : x[i];
}
