/* kgen
{ "format": 1, "op": "topk", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "topk_selection", "grid": ["x_0"], "block": [32], "args": ["x", "output0", "output1", {"i32": "x_1"}]}] }
*/
/* The four largest one after the other, with their places. */
extern "C" __global__ void topk_selection(const float *x, float *v, long long *at, int n) {
    int taken[4] = {-1, -1, -1, -1};
    for (int k = 0; threadIdx.x == 0 && k < 4; k++) {
        int best = -1;
        for (int i = 0; i < n; i++) {
            float e = x[blockIdx.x * n + i];
            if (i == taken[0] || i == taken[1] || i == taken[2])
                continue;
            float held = best < 0 ? 0.0f : x[blockIdx.x * n + best];
            if (best < 0 || (held == held && (e > held || e != e)))
                best = i;
        }
        taken[k] = best;
        v[blockIdx.x * 4 + k] = x[blockIdx.x * n + best];
        at[blockIdx.x * 4 + k] = best;
    }
}
