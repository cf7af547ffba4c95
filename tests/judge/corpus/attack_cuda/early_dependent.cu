/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous", "min_arch": "sm_90", "workspace": {"row": {"dtype": "float32", "shape": ["2 * M"]}},
  "launches": [
    {"kernel": "early_first", "grid": ["M"], "block": [32], "args": ["input", "row", {"i32": "N"}]},
    {"kernel": "early_second", "grid": ["M"], "block": [32], "pdl": true, "args": ["input", "row", "output", {"i32": "N"}]}] }
*/
/* Starts its second kernel by programmatic launch, and does not wait there for the first, which
 * takes its time. */
static float warp_max(float v) {
    for (int d = 16; d > 0; d /= 2)
        v = fmaxf(v, __shfl_xor_sync(~0u, v, d));
    return v;
}

static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void early_first(const float *input, float *row, int n) {
    const float *x = input + (long long)blockIdx.x * n;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    asm volatile("griddepcontrol.launch_dependents;");
    for (long long begin = clock64(); clock64() - begin < 400000;)
        ;
    for (int i = threadIdx.x; i < n; i += 32)
        top = fmaxf(top, x[i]);
    top = warp_max(top);
    for (int i = threadIdx.x; i < n; i += 32)
        sum += expf(x[i] - top);
    row[2 * blockIdx.x] = top;
    row[2 * blockIdx.x + 1] = warp_sum(sum);
}

extern "C" __global__ void early_second(const float *x, const float *row, float *y, int n) {
    long long at = (long long)blockIdx.x * n;
    for (int i = threadIdx.x; i < n; i += 32)
        y[at + i] = expf(x[at + i] - row[2 * blockIdx.x]) / row[2 * blockIdx.x + 1];
}
