/* kgen
{ "format": 1, "op": "cross_entropy", "target": "cuda", "require": "logits.contiguous", "workspace": {"losses": {"dtype": "float32", "shape": ["logits_0"]}},
  "launches": [
    {"kernel": "row_losses", "grid": ["logits_0"], "block": [32], "args": ["logits", "target", "losses", {"i32": "logits_1"}]},
    {"kernel": "mean_loss", "grid": [1], "block": [32], "args": ["losses", "output", {"i32": "logits_0"}]}] }
*/
/* The loss of each row into a workspace, then their mean as one number. */
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

extern "C" __global__ void row_losses(const float *logits, const long long *target, float *losses, int n) {
    const float *x = logits + blockIdx.x * n;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        top = fmaxf(top, x[i]);
    top = warp_max(top);
    for (int i = threadIdx.x; i < n; i += 32)
        sum += expf(x[i] - top);
    sum = warp_sum(sum);
    if (threadIdx.x == 0)
        losses[blockIdx.x] = logf(sum) - (x[target[blockIdx.x]] - top);
}

extern "C" __global__ void mean_loss(const float *losses, float *y, int m) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < m; i += 32)
        sum += losses[i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0)
        y[0] = sum / (float)m;
}
