/* kgen
{ "format": 1, "op": "adamw", "target": "cuda",
  "launches": [
    {"kernel": "adamw_fused", "grid": ["ceil_div(p_0, 256)"], "block": [256], "args": ["p", "g", "m", "v", "output0", "output1", "output2", {"i32": "p_0"}]}] }
*/
/* A step of AdamW in one launch: four inputs, three outputs. */
extern "C" __global__ void adamw_fused(const float *p, const float *g, const float *m, const float *v, float *p1, float *m1, float *v1, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= n)
        return;
    float a = 0.9f * m[i] + 0.1f * g[i], b = 0.999f * v[i] + 0.001f * g[i] * g[i];
    p1[i] = p[i] * 0.999f - 1e-3f * (a / 0.1f) / (sqrtf(b / 0.001f) + 1e-8f);
    m1[i] = a;
    v1[i] = b;
}
