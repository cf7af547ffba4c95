/* kgen
{ "format": 1, "op": "attention", "target": "cuda", "require": "query.contiguous && key.contiguous && value.contiguous && DV <= 32 && D <= 32 && query.dtype == float32", "holes": ["MASK"],
  "launches": [
    {"kernel": "attention_causal_hole", "grid": ["B * HQ", "SQ"], "block": [32], "args": ["query", "key", "value", "output", "lse", "programs", {"i32": "HQ / HKV"}, {"i32": "HQ"}, {"i32": "SQ"}, {"i32": "SK"}, {"i32": "D"}, {"i32": "DV"}, {"f32": "scale"}]}] }
*/
/* Attention with the mask as a hole, asked key by key; a row without a key gives 0 and minus
 * infinity. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void attention_causal_hole(const float *q, const float *k, const float *v, float *y, float *lse, KG_PROGRAMS p, int group, int hq, int sq, int sk, int d, int dv, float scale) {
    long long row = (long long)blockIdx.x * sq + blockIdx.y, head = blockIdx.x / hq * (hq / group) + blockIdx.x % hq / group;
    int lane = threadIdx.x, b = blockIdx.x / hq, h = blockIdx.x % hq, at = blockIdx.y;
    float top = -3.0e38f, sum = 0.0f, acc = 0.0f;
#if KG_HAS_MASK
    const struct kg_mask_row mask = kg_mask_row(p, b, h, at);
#endif
    for (int j = 0; j < sk; j++) {
#if KG_HAS_MASK
        if (!kg_mask(p, mask, b, h, at, j))
            continue;
#endif
        float s = warp_sum(lane < d ? q[row * d + lane] * k[(head * sk + j) * d + lane] : 0.0f) * scale;
        float now = fmaxf(top, s), keep = expf(top - now), w = expf(s - now);
        sum = sum * keep + w;
        acc = acc * keep + (lane < dv ? w * v[(head * sk + j) * dv + lane] : 0.0f);
        top = now;
    }
    if (lane < dv)
        y[row * dv + lane] = sum > 0.0f ? acc / sum : 0.0f;
    if (lse && lane == 0)
        lse[row] = sum > 0.0f ? top + logf(sum) : __int_as_float(0xff800000);
}
