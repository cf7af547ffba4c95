/* kgen
{ "format": 1, "op": "attention", "target": "cuda", "require": "query.contiguous && key.contiguous && value.contiguous && DV <= 32 && D <= 32 && query.dtype == float32",
  "launches": [
    {"kernel": "attention_two_pass", "grid": ["B * HQ", "SQ"], "block": [32], "shared": "4 * SK", "args": ["query", "key", "value", "output", "lse", {"i32": "HQ / HKV"}, {"i32": "HQ"}, {"i32": "SQ"}, {"i32": "SK"}, {"i32": "D"}, {"i32": "DV"}, {"f32": "scale"}]}] }
*/
/* Attention with a row of scores in shared memory: peak, weights, weighted sum. */
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

extern "C" __global__ void attention_two_pass(const float *q, const float *k, const float *v, float *y, float *lse, int group, int hq, int sq, int sk, int d, int dv, float scale) {
    extern __shared__ float weight[];
    long long row = (long long)blockIdx.x * sq + blockIdx.y, head = blockIdx.x / hq * (hq / group) + blockIdx.x % hq / group;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    for (int j = threadIdx.x; j < sk; j += 32) {
        float s = 0.0f;
        for (int e = 0; e < d; e++)
            s = fmaf(q[row * d + e], k[(head * sk + j) * d + e], s);
        weight[j] = s * scale;
        top = fmaxf(top, weight[j]);
    }
    top = warp_max(top);
    for (int j = threadIdx.x; j < sk; j += 32)
        sum += weight[j] = expf(weight[j] - top);
    sum = warp_sum(sum);
    __syncwarp();
    for (int e = threadIdx.x; e < dv; e += 32) {
        float acc = 0.0f;
        for (int j = 0; j < sk; j++)
            acc = fmaf(weight[j], v[(head * sk + j) * dv + e], acc);
        y[row * dv + e] = acc / sum;
    }
    if (lse && threadIdx.x == 0)
        lse[row] = top + logf(sum);
}
