/* kgen
{ "format": 1, "op": "compare", "target": "cuda", "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "compare_plain", "grid": ["ceil_div(output.numel, 256)"], "block": [256], "args": ["a", "b", "output", {"i32": "output.numel"}]}] }
*/
/* A comparison into bools. */
extern "C" __global__ void compare_plain(const float *a, const float *b, unsigned char *out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n)
        out[i] = a[i] > b[i];
}
