/* kgen
{ "format": 1, "op": "avg_pool", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "avg_pool_windows", "grid": ["ceil_div(output.numel, 128)"], "block": [128], "args": ["x", "output", {"i32": "x_2"}, {"i32": "x_3"}, {"i32": "output.numel"}]}] }
*/
/* Means over 3x3 windows, padding counted as zeros. */
extern "C" __global__ void avg_pool_windows(const float *x, float *y, int h, int v, int n) {
    int i = blockIdx.x * 128 + threadIdx.x, oh = (h - 1) / 2 + 1, ow = (v - 1) / 2 + 1;
    if (i >= n)
        return;
    float sum = 0.0f;
    for (int e = 0; e < 9; e++) {
        int r = i / ow % oh * 2 + e / 3 - 1, s = i % ow * 2 + e % 3 - 1;
        sum += r >= 0 && r < h && s >= 0 && s < v ? x[((long long)(i / ow / oh) * h + r) * v + s] : 0.0f;
    }
    y[i] = sum / 9.0f;
}
