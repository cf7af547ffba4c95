/* kgen
{ "format": 1, "op": "layer_norm", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "layer_norm_welford", "grid": ["x_0"], "block": [32], "args": ["x", "norm_weight", "norm_bias", "output", {"i32": "x_1"}]}] }
*/
/* Mean and variance in one pass by Welford's recurrence, joined over lanes by Chan's formula. */
extern "C" __global__ void layer_norm_welford(const float *input, const float *w, const float *b, float *output, int n) {
    const float *x = input + blockIdx.x * n;
    float *y = output + blockIdx.x * n;
    float mean = 0.0f, m2 = 0.0f, count = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32) {
        float d = x[i] - mean;
        count += 1.0f;
        mean += d / count;
        m2 += d * (x[i] - mean);
    }
    for (int s = 16; s > 0; s /= 2) {
        float om = __shfl_xor_sync(~0u, mean, s), o2 = __shfl_xor_sync(~0u, m2, s), oc = __shfl_xor_sync(~0u, count, s);
        float all = count + oc, d = om - mean;
        mean = all > 0.0f ? (count * mean + oc * om) / all : 0.0f;
        m2 += o2 + (all > 0.0f ? d * d * (count * oc / all) : 0.0f);
        count = all;
    }
    float scale = rsqrtf(m2 / (float)n + 1e-5f);
    for (int i = threadIdx.x; i < n; i += 32)
        y[i] = (x[i] - mean) * scale * w[i] + b[i];
}
