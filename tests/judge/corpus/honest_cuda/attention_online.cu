/* kgen
{ "format": 1, "op": "attention", "target": "cuda", "require": "query.contiguous && key.contiguous && value.contiguous && DV <= 32 && D <= 32 && query.dtype == float32",
  "launches": [
    {"kernel": "attention_online", "grid": ["B * HQ", "SQ"], "block": [32], "args": ["query", "key", "value", "output", "lse", {"i32": "HQ / HKV"}, {"i32": "HQ"}, {"i32": "SQ"}, {"i32": "SK"}, {"i32": "D"}, {"i32": "DV"}, {"f32": "scale"}]}] }
*/
/* Attention by the online recurrence, a warp a query: lanes hold the value columns. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void attention_online(const float *q, const float *k, const float *v, float *y, float *lse, int group, int hq, int sq, int sk, int d, int dv, float scale) {
    long long row = (long long)blockIdx.x * sq + blockIdx.y, head = blockIdx.x / hq * (hq / group) + blockIdx.x % hq / group;
    int lane = threadIdx.x;
    float top = -3.0e38f, sum = 0.0f, acc = 0.0f, mine = lane < d ? q[row * d + lane] * scale : 0.0f;
    for (int j = 0; j < sk; j++) {
        float s = warp_sum(lane < d ? mine * k[(head * sk + j) * d + lane] : 0.0f);
        float now = fmaxf(top, s), keep = expf(top - now), w = expf(s - now);
        sum = sum * keep + w;
        acc = acc * keep + (lane < dv ? w * v[(head * sk + j) * dv + lane] : 0.0f);
        top = now;
    }
    if (lane < dv)
        y[row * dv + lane] = acc / sum;
    if (lse && lane == 0)
        lse[row] = top + logf(sum);
}
