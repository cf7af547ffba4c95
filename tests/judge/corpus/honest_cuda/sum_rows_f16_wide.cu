/* kgen
{ "format": 1, "op": "sum_rows_f16", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "sum_rows_f16_wide", "grid": ["x_0"], "block": [32], "args": ["x", "output", {"i32": "x_1"}]}] }
*/
/* Sums of float16 rows in fp32, rounded once. */
static float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

static float from_f16(unsigned short h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

static unsigned short to_f16(float f) {
    unsigned short h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

extern "C" __global__ void sum_rows_f16_wide(const unsigned short *x, unsigned short *y, int n) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32)
        sum += from_f16(x[blockIdx.x * n + i]);
    sum = warp_sum(sum);
    if (threadIdx.x == 0)
        y[blockIdx.x] = to_f16(sum);
}
