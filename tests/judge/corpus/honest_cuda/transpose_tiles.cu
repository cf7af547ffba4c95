/* kgen
{ "format": 1, "op": "transpose_copy", "target": "cuda", "require": "x.contiguous",
  "launches": [
    {"kernel": "transpose_tiles", "grid": ["ceil_div(x_1, 32)", "ceil_div(x_0, 32)"], "block": [32, 8], "args": ["x", "output", {"i32": "x_0"}, {"i32": "x_1"}]}] }
*/
/* A transposed copy through tiles of 32 by 32 in shared memory, a column wider than they need. */
extern "C" __global__ void transpose_tiles(const float *x, float *y, int m, int n) {
    __shared__ float tile[32][33];
    int i = blockIdx.y * 32, j = blockIdx.x * 32;
    for (int r = threadIdx.y; r < 32; r += 8)
        if (i + r < m && j + (int)threadIdx.x < n)
            tile[r][threadIdx.x] = x[(i + r) * n + j + threadIdx.x];
    __syncthreads();
    for (int r = threadIdx.y; r < 32; r += 8)
        if (j + r < n && i + (int)threadIdx.x < m)
            y[(j + r) * m + i + threadIdx.x] = tile[threadIdx.x][r];
}
