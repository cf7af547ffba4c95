/* kgen
{ "format": 1, "op": "sort_rows", "target": "cuda", "require": "x.contiguous && x_1 <= 64",
  "launches": [
    {"kernel": "sort_bitonic", "grid": ["x_0"], "block": [32], "args": ["x", "output", {"i32": "x_1"}]}] }
*/
/* Sorts rows of at most 64 in shared memory by a bitonic network, NaN last. */
extern "C" __global__ void sort_bitonic(const float *x, float *y, int n) {
    __shared__ float row[64];
    for (int i = threadIdx.x; i < 64; i += 32)
        row[i] = i < n ? x[blockIdx.x * n + i] : __int_as_float(0x7fffffff);
    __syncwarp();
    for (int size = 2; size <= 64; size *= 2)
        for (int step = size / 2; step > 0; step /= 2) {
            int i = (int)threadIdx.x / step * 2 * step + (int)threadIdx.x % step, j = i + step;
            bool up = (i & size) == 0;
            float a = row[i], b = row[j];
            bool swap = up ? a > b || (a != a && b == b) : b > a || (b != b && a == a);
            __syncwarp();
            if (swap) {
                row[i] = b;
                row[j] = a;
            }
            __syncwarp();
        }
    for (int i = threadIdx.x; i < n; i += 32)
        y[blockIdx.x * n + i] = row[i];
}
