/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous",
  "launches": [
    {"kernel": "softmax_slow", "grid": ["M"], "block": [1], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* One thread a row, which is slow and right. */
extern "C" __global__ void softmax_slow(const float *input, float *output, int n) {
    const float *x = input + (long long)blockIdx.x * n;
    float *y = output + (long long)blockIdx.x * n;
    float top = x[0], sum = 0.0f;
    for (int i = 1; i < n; i++)
        top = x[i] > top || x[i] != x[i] ? x[i] : top;
    for (int i = 0; i < n; i++)
        sum += expf(x[i] - top);
    for (int i = 0; i < n; i++)
        y[i] = expf(x[i] - top) / sum;
}
