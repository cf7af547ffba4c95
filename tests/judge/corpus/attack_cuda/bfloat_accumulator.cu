/* kgen
{ "format": 1, "op": "matmul", "target": "cuda", "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "bfloat_accumulator", "grid": ["ceil_div(b_1, 32)", "a_0"], "block": [32], "args": ["a", "b", "output", {"i32": "a_1"}, {"i32": "b_1"}]}] }
*/
/* Keeps its sums in bfloat16. */
static float from_bf16(unsigned short h) {
    return __uint_as_float((unsigned)h << 16);
}

static unsigned short to_bf16(float f) {
    unsigned short h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

extern "C" __global__ void bfloat_accumulator(const float *a, const float *b, float *y, int k, int n) {
    int i = blockIdx.y, j = blockIdx.x * 32 + threadIdx.x;
    if (!(j < n))
        return;
    float sum = 0.0f;
    for (int p = 0; p < k; p++)
        sum = from_bf16(to_bf16(fmaf(a[i * k + p], b[p * n + j], sum)));
    y[i * n + j] = sum;
}
