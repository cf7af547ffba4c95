/* kgen
{ "format": 1, "op": "scale_subnormal", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "flushes_subnormals", "grid": ["x_0"], "block": [64], "args": ["x", "scale", "output", {"i32": "x_1"}]}] }
*/
/* Flushes subnormal numbers to zero. */
extern "C" __global__ void flushes_subnormals(const float *x, const float *s, float *y, int n) {
    for (int i = threadIdx.x; i < n; i += 64) {
        float v;
        asm("mul.ftz.f32 %0, %1, %2;" : "=f"(v) : "f"(x[blockIdx.x * n + i]), "f"(s[i]));
        y[blockIdx.x * n + i] = v;
    }
}
