/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "input.contiguous && K <= 1024",
  "launches": [
    {"kernel": "softmax_columns", "grid": ["M"], "block": ["min(K, 1024)"], "args": ["input", "output", {"i32": "N"}, {"i32": "K"}]}] }
*/
/* Softmax over a dim that is not the last: a thread a column. */
extern "C" __global__ void softmax_columns(const float *input, float *output, int n, int k) {
    const float *x = input + (long long)blockIdx.x * n * k + threadIdx.x;
    float *y = output + (long long)blockIdx.x * n * k + threadIdx.x;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    for (int i = 0; i < n; i++)
        top = fmaxf(top, x[i * k]);
    for (int i = 0; i < n; i++)
        sum += expf(x[i * k] - top);
    for (int i = 0; i < n; i++)
        y[i * k] = expf(x[i * k] - top) / sum;
}
