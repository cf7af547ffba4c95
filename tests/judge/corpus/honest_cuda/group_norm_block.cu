/* kgen
{ "format": 1, "op": "group_norm", "target": "cuda", "require": "x.contiguous && x_1 % 4 == 0",
  "launches": [
    {"kernel": "group_norm_block", "grid": ["x_0", 4], "block": [128], "args": ["x", "norm_weight", "norm_bias", "output", {"i32": "x_1"}, {"i32": "x_2 * x_3"}]}] }
*/
/* Group norm: a block of 128 a group, four groups a picture. */
/* Of the 128 threads of a block: the sum, or the largest. */
static float block_all(float v, bool add) {
    __shared__ float warps[4];
    for (int d = 16; d > 0; d /= 2) {
        float o = __shfl_xor_sync(~0u, v, d);
        v = add ? v + o : fmaxf(v, o);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = v;
    __syncthreads();
    v = warps[0];
    for (int w = 1; w < 4; w++)
        v = add ? v + warps[w] : fmaxf(v, warps[w]);
    return v;
}

extern "C" __global__ void group_norm_block(const float *input, const float *w, const float *b, float *output, int c, int hw) {
    int each = c / 4, n = each * hw;
    long long at = ((long long)blockIdx.x * 4 + blockIdx.y) * n;
    float s = 0.0f, q = 0.0f;
    for (int i = threadIdx.x; i < n; i += 128)
        s += input[at + i];
    s = block_all(s, true) / (float)n;
    for (int i = threadIdx.x; i < n; i += 128)
        q += (input[at + i] - s) * (input[at + i] - s);
    q = rsqrtf(block_all(q, true) / (float)n + 1e-5f);
    for (int i = threadIdx.x; i < n; i += 128) {
        int channel = blockIdx.y * each + i / hw;
        output[at + i] = (input[at + i] - s) * q * w[channel] + b[channel];
    }
}
