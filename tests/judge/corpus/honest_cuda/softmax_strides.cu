/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "input.ndim == 2 && D == 1",
  "launches": [
    {"kernel": "softmax_strides", "grid": ["M"], "block": [32], "args": ["input", "output", {"i32": "N"}, {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"}, {"i64": "output.stride(0)"}, {"i64": "output.stride(1)"}]}] }
*/
/* Reads by whatever strides the input has, and writes where an output like it lies. */
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

extern "C" __global__ void softmax_strides(const float *input, float *output, int n, long long row, long long step, long long to_row, long long to_step) {
    const float *x = input + blockIdx.x * row;
    float *y = output + blockIdx.x * to_row;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        top = fmaxf(top, x[i * step]);
    top = warp_max(top);
    for (int i = threadIdx.x; i < n; i += 32)
        sum += expf(x[i * step] - top);
    sum = warp_sum(sum);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i * to_step] = expf(x[i * step] - top) / sum;
}
