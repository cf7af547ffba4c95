/* kgen
{ "format": 1, "op": "matmul_bf16", "target": "cuda", "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "matmul_bf16_wide", "grid": ["ceil_div(b_1, 32)", "a_0"], "block": [32], "args": ["a", "b", "output", {"i32": "a_0"}, {"i32": "a_1"}, {"i32": "b_1"}]}] }
*/
/* bfloat16 by fp32 multiply-adds, rounded once. */
static float from_bf16(unsigned short h) {
    return __uint_as_float((unsigned)h << 16);
}

static unsigned short to_bf16(float f) {
    unsigned short h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

extern "C" __global__ void matmul_bf16_wide(const unsigned short *a, const unsigned short *b, unsigned short *y, int m, int k, int n) {
    int i = blockIdx.y, j = blockIdx.x * 32 + threadIdx.x;
    if (i >= m || j >= n)
        return;
    float sum = 0.0f;
    for (int p = 0; p < k; p++) {
        sum = fmaf(from_bf16(a[i * k + p]), from_bf16(b[p * n + j]), sum);
    }
    y[i * n + j] = to_bf16(sum);
}
