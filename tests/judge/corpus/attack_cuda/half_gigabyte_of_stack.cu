/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous",
  "launches": [
    {"kernel": "half_gigabyte_of_stack", "grid": ["M"], "block": [1024], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* Asks for half a megabyte of local memory a thread, over 100 GB on the device. */
extern "C" __global__ void half_gigabyte_of_stack(const float *x, float *y, int n) {
    volatile float rows[130000];
    for (int i = 0; i < 130000; i++)
        rows[i] = x[i % n];
    for (int i = threadIdx.x; i < n; i += 1024)
        y[blockIdx.x * n + i] = rows[(i * 977 + (int)y[0]) % 130000];
}
