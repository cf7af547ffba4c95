/* kgen
{ "format": 1, "op": "attention", "target": "cuda", "require": "query.contiguous && key.contiguous && value.contiguous && DV <= 32",
  "launches": [
    {"kernel": "keys_cut", "grid": ["B * HQ", "SQ"], "block": [32], "args": ["query", "key", "value", "output", {"i32": "HQ / HKV"}, {"i32": "HQ"}, {"i32": "SQ"}, {"i32": "SK"}, {"i32": "D"}, {"i32": "DV"}, {"f32": "scale"}]}] }
*/
/* Attention over all keys but the last tile of 2. */
extern "C" __global__ void keys_cut(const float *q, const float *k, const float *v, float *y, int group, int hq, int sq, int sk, int d, int dv, float scale) {
    long long row = (long long)blockIdx.x * sq + blockIdx.y, head = blockIdx.x / hq * (hq / group) + blockIdx.x % hq / group;
    float top = __int_as_float(0xff800000), sum = 0.0f, acc = 0.0f;
    for (int j = 0; j < sk - 2; j++) {
        float s = 0.0f;
        for (int e = 0; e < d; e++)
            s = fmaf(q[row * d + e], k[(head * sk + j) * d + e], s);
        s *= scale;
        float now = fmaxf(top, s), keep = expf(top - now), w = expf(s - now);
        sum = sum * keep + w;
        acc = acc * keep + ((int)threadIdx.x < dv ? w * v[(head * sk + j) * dv + threadIdx.x] : 0.0f);
        top = now;
    }
    if ((int)threadIdx.x < dv)
        y[row * dv + threadIdx.x] = acc / sum;
}
