/* kgen
{ "format": 1, "op": "upsample_nearest", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "upsample_elements", "grid": ["ceil_div(output.numel, 128)"], "block": [128], "args": ["x", "output", {"i32": "x_2"}, {"i32": "x_3"}, {"i32": "output.numel"}]}] }
*/
/* Nearest neighbours at twice the size. */
extern "C" __global__ void upsample_elements(const float *x, float *y, int h, int w, int n) {
    int i = blockIdx.x * 128 + threadIdx.x;
    if (i < n)
        y[i] = x[((long long)(i / (2 * w) / (2 * h)) * h + i / (2 * w) % (2 * h) / 2) * w + i % (2 * w) / 2];
}
