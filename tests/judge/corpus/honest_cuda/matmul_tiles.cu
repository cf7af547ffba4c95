/* kgen
{ "format": 1, "op": "matmul", "target": "cuda", "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "matmul_tiles", "grid": ["ceil_div(b_1, 16)", "ceil_div(a_0, 16)"], "block": [16, 16], "args": ["a", "b", "output", {"i32": "a_0"}, {"i32": "a_1"}, {"i32": "b_1"}]}] }
*/
/* Tiles of 16 by 16 through shared memory. */
extern "C" __global__ void matmul_tiles(const float *a, const float *b, float *y, int m, int k, int n) {
    __shared__ float x[16][17];
    __shared__ float w[16][17];
    int i = blockIdx.y * 16 + threadIdx.y, j = blockIdx.x * 16 + threadIdx.x;
    float sum = 0.0f;
    for (int p = 0; p < k; p += 16) {
        x[threadIdx.y][threadIdx.x] = i < m && p + (int)threadIdx.x < k ? a[i * k + p + threadIdx.x] : 0.0f;
        w[threadIdx.y][threadIdx.x] = j < n && p + (int)threadIdx.y < k ? b[(p + threadIdx.y) * n + j] : 0.0f;
        __syncthreads();
        for (int e = 0; e < 16; e++)
            sum = fmaf(x[threadIdx.y][e], w[e][threadIdx.x], sum);
        __syncthreads();
    }
    if (i < m && j < n)
        y[i * n + j] = sum;
}
