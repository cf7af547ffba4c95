/* kgen
{ "format": 1, "op": "rope", "target": "cuda", "require": "x.contiguous && cos.contiguous && sin.contiguous && x_3 == 32",
  "launches": [
    {"kernel": "rope_halves", "grid": ["x_0 * x_1", "x_2"], "block": [16], "args": ["x", "cos", "sin", "output", {"i32": "x_3 / 2"}]}] }
*/
/* Rotary positions over the two halves of each head. */
extern "C" __global__ void rope_halves(const float *x, const float *cosines, const float *sines, float *y, int half) {
    long long at = ((long long)blockIdx.x * gridDim.y + blockIdx.y) * 2 * half;
    int i = threadIdx.x;
    float c = cosines[blockIdx.y * half + i], s = sines[blockIdx.y * half + i], a = x[at + i], b = x[at + half + i];
    y[at + i] = a * c - b * s;
    y[at + half + i] = b * c + a * s;
}
