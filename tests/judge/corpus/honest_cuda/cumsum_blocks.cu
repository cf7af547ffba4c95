/* kgen
{ "format": 1, "op": "cumsum", "target": "cuda", "require": "x.contiguous", "workspace": {"totals": {"dtype": "float32", "shape": ["x_0", "ceil_div(x_1, 50)"]}},
  "launches": [
    {"kernel": "cumsum_totals", "grid": ["x_0"], "block": [32], "args": ["x", "totals", {"i32": "x_1"}]},
    {"kernel": "cumsum_offsets", "grid": ["x_0"], "block": [32], "args": ["totals", {"i32": "ceil_div(x_1, 50)"}]},
    {"kernel": "cumsum_again", "grid": ["x_0"], "block": [32], "args": ["x", "totals", "output", {"i32": "x_1"}]}] }
*/
/* A scan in three launches: totals of blocks of 50, their scan in place, and the blocks again from
 * where they begin. */
extern "C" __global__ void cumsum_totals(const float *x, float *totals, int n) {
    int blocks = (n + 49) / 50;
    for (int k = threadIdx.x; k < blocks; k += 32) {
        float sum = 0.0f;
        for (int i = k * 50; i < min(n, k * 50 + 50); i++)
            sum += x[blockIdx.x * n + i];
        totals[blockIdx.x * blocks + k] = sum;
    }
}

extern "C" __global__ void cumsum_offsets(float *totals, int blocks) {
    float sum = 0.0f;
    for (int k = 0; threadIdx.x == 0 && k < blocks; k++) {
        float own = totals[blockIdx.x * blocks + k];
        totals[blockIdx.x * blocks + k] = sum;
        sum += own;
    }
}

extern "C" __global__ void cumsum_again(const float *x, const float *totals, float *y, int n) {
    int blocks = (n + 49) / 50;
    for (int k = threadIdx.x; k < blocks; k += 32) {
        float sum = totals[blockIdx.x * blocks + k];
        for (int i = k * 50; i < min(n, k * 50 + 50); i++)
            y[blockIdx.x * n + i] = sum += x[blockIdx.x * n + i];
    }
}
