/* kgen
{ "format": 1, "op": "attention", "target": "cuda", "require": "query.contiguous && key.contiguous && value.contiguous && DV <= 32 && D <= 32 && query.dtype == bfloat16",
  "launches": [
    {"kernel": "attention_gqa_bf16", "grid": ["B * HQ", "SQ"], "block": [32], "args": ["query", "key", "value", "output", "lse", {"i32": "HQ / HKV"}, {"i32": "HQ"}, {"i32": "SQ"}, {"i32": "SK"}, {"i32": "D"}, {"i32": "DV"}, {"f32": "scale"}]}] }
*/
/* Grouped queries in bfloat16 with scores, weights and sums in fp32. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

static float from_bf16(unsigned short h) {
    return __uint_as_float((unsigned)h << 16);
}

static unsigned short to_bf16(float f) {
    unsigned short h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

extern "C" __global__ void attention_gqa_bf16(const unsigned short *q, const unsigned short *k, const unsigned short *v, unsigned short *y, float *lse, int group, int hq, int sq, int sk, int d, int dv, float scale) {
    long long row = (long long)blockIdx.x * sq + blockIdx.y, head = blockIdx.x / hq * (hq / group) + blockIdx.x % hq / group;
    int lane = threadIdx.x;
    float top = -3.0e38f, sum = 0.0f, acc = 0.0f;
    for (int j = 0; j < sk; j++) {
        float s = warp_sum(lane < d ? from_bf16(q[row * d + lane]) * from_bf16(k[(head * sk + j) * d + lane]) : 0.0f) * scale;
        float now = fmaxf(top, s), keep = expf(top - now), w = expf(s - now);
        sum = sum * keep + w;
        acc = acc * keep + (lane < dv ? w * from_bf16(v[(head * sk + j) * dv + lane]) : 0.0f);
        top = now;
    }
    if (lane < dv)
        y[row * dv + lane] = to_bf16(acc / sum);
    if (lse && lane == 0)
        lse[row] = top + logf(sum);
}
