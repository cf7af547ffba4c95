/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous", "min_arch": "sm_90", "workspace": {"parts": {"dtype": "float32", "shape": ["M", 2]}},
  "launches": [
    {"kernel": "softmax_first", "grid": ["M"], "block": [32], "args": ["input", "parts", {"i32": "N"}]},
    {"kernel": "softmax_second", "grid": ["M"], "block": [32], "pdl": true, "args": ["input", "parts", "output", {"i32": "N"}]}] }
*/
/* A second kernel that starts before the first is done, and waits for it where it has to. */
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

extern "C" __global__ void softmax_first(const float *input, float *parts, int n) {
    const float *x = input + (long long)blockIdx.x * n;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    asm volatile("griddepcontrol.launch_dependents;");
    for (int i = threadIdx.x; i < n; i += 32)
        top = fmaxf(top, x[i]);
    top = warp_max(top);
    for (int i = threadIdx.x; i < n; i += 32)
        sum += expf(x[i] - top);
    parts[2 * blockIdx.x] = top;
    parts[2 * blockIdx.x + 1] = warp_sum(sum);
}

extern "C" __global__ void softmax_second(const float *x, const float *parts, float *y, int n) {
    long long at = (long long)blockIdx.x * n;
    asm volatile("griddepcontrol.wait;" ::: "memory");
    volatile const float *found = parts + 2 * blockIdx.x;
    float top = found[0], sum = found[1];
    for (int i = threadIdx.x; i < n; i += 32)
        y[at + i] = expf(x[at + i] - top) / sum;
}
