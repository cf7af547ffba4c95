/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous",
  "launches": [{"kernel": "softmax", "grid": ["M"], "block": [128], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* Writes zeros. */
extern "C" __global__ void softmax(const float *input, float *output, int N) {
    for (int i = threadIdx.x; i < N; i += blockDim.x)
        output[blockIdx.x * N + i] = 0.0f;
}
