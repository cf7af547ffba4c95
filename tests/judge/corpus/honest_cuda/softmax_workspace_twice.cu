/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous", "workspace": {"held": {"dtype": "float32", "shape": ["M", "N"]}},
  "launches": [
    {"kernel": "softmax_exps", "grid": ["M"], "block": [32], "args": ["input", "held", {"i32": "N"}]},
    {"kernel": "softmax_sums", "grid": ["M"], "block": [32], "args": ["held", "output", {"i32": "N"}]},
    {"kernel": "softmax_scale", "grid": ["M"], "block": [32], "args": ["held", "output", {"i32": "N"}]}] }
*/
/* Keeps exponentials in a workspace that a second launch reads and a third overwrites for another
 * use. */
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

extern "C" __global__ void softmax_exps(const float *input, float *held, int n) {
    const float *x = input + (long long)blockIdx.x * n;
    float top = __int_as_float(0xff800000);
    for (int i = threadIdx.x; i < n; i += 32)
        top = fmaxf(top, x[i]);
    top = warp_max(top);
    for (int i = threadIdx.x; i < n; i += 32)
        held[(long long)blockIdx.x * n + i] = expf(x[i] - top);
}

extern "C" __global__ void softmax_sums(float *held, float *output, int n) {
    float *h = held + (long long)blockIdx.x * n, sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32) {
        sum += h[i];
        output[(long long)blockIdx.x * n + i] = h[i];
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0)
        h[0] = 1.0f / sum;
}

extern "C" __global__ void softmax_scale(const float *held, float *output, int n) {
    for (int i = threadIdx.x; i < n; i += 32)
        output[(long long)blockIdx.x * n + i] *= held[(long long)blockIdx.x * n];
}
