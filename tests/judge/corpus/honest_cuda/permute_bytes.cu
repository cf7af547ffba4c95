/* kgen
{ "format": 1, "op": "permute_int8", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "permute_bytes", "grid": ["ceil_div(output.numel, 128)"], "block": [128], "args": ["x", "output", {"i32": "x_1"}, {"i32": "x_2 * x_3"}, {"i32": "output.numel"}]}] }
*/
/* Channels last, byte by byte. */
extern "C" __global__ void permute_bytes(const signed char *x, signed char *y, int c, int hw, int n) {
    int i = blockIdx.x * 128 + threadIdx.x;
    if (i < n)
        y[i] = x[(i / c / hw * c + i % c) * hw + i / c % hw];
}
