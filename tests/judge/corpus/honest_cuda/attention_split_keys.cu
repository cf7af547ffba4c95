/* kgen
{ "format": 1, "op": "attention", "target": "cuda", "require": "query.contiguous && key.contiguous && value.contiguous && DV <= 32 && D <= 32 && query.dtype == float32 && SK >= 4", "workspace": {"parts": {"dtype": "float32", "shape": ["B * HQ * SQ", 4, 34]}},
  "launches": [
    {"kernel": "attention_parts", "grid": ["B * HQ", "SQ", 4], "block": [32], "args": ["query", "key", "value", "parts", {"i32": "HQ / HKV"}, {"i32": "HQ"}, {"i32": "SQ"}, {"i32": "SK"}, {"i32": "D"}, {"i32": "DV"}, {"f32": "scale"}]},
    {"kernel": "attention_join", "grid": ["B * HQ * SQ"], "block": [32], "args": ["parts", "output", "lse", {"i32": "DV"}]}] }
*/
/* Attention with the keys in four parts, as decoding does it: peak, sum and output of each in a
 * workspace, then joined. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

extern "C" __global__ void attention_parts(const float *q, const float *k, const float *v, float *parts, int group, int hq, int sq, int sk, int d, int dv, float scale) {
    long long row = (long long)blockIdx.x * sq + blockIdx.y, head = blockIdx.x / hq * (hq / group) + blockIdx.x % hq / group;
    int lane = threadIdx.x;
    float *mine = parts + (row * 4 + blockIdx.z) * 34, top = -3.0e38f, sum = 0.0f, acc = 0.0f;
    for (int j = (int)blockIdx.z * sk / 4; j < ((int)blockIdx.z + 1) * sk / 4; j++) {
        float s = warp_sum(lane < d ? q[row * d + lane] * k[(head * sk + j) * d + lane] : 0.0f) * scale;
        float now = fmaxf(top, s), keep = expf(top - now), w = expf(s - now);
        sum = sum * keep + w;
        acc = acc * keep + (lane < dv ? w * v[(head * sk + j) * dv + lane] : 0.0f);
        top = now;
    }
    mine[lane] = acc;
    mine[32] = top;
    mine[33] = sum;
}

extern "C" __global__ void attention_join(const float *parts, float *y, float *lse, int dv) {
    const float *mine = parts + (long long)blockIdx.x * 136;
    float top = fmaxf(fmaxf(mine[32], mine[66]), fmaxf(mine[100], mine[134])), sum = 0.0f, acc = 0.0f;
    for (int e = 0; e < 4; e++) {
        float w = expf(mine[e * 34 + 32] - top);
        sum += w * mine[e * 34 + 33];
        acc += w * mine[e * 34 + threadIdx.x];
    }
    if ((int)threadIdx.x < dv)
        y[(long long)blockIdx.x * dv + threadIdx.x] = acc / sum;
    if (lse && threadIdx.x == 0)
        lse[blockIdx.x] = top + logf(sum);
}
