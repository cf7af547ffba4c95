/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous", "min_arch": "sm_90", "tensor_maps": {"rows": {"tensor": "input", "dims": ["N", "M"], "strides": ["4 * N"], "box": [4096, 1]}},
  "launches": [
    {"kernel": "map_box_too_large", "grid": ["M"], "block": [32], "args": [{"map": "rows"}, "output", {"i32": "N"}]}] }
*/
/* A tensor map with a box of 4096 elements; 256 are the most. */
struct alignas(64) Map {
    unsigned long long opaque[16];
};

extern "C" __global__ void map_box_too_large(const __grid_constant__ Map rows, float *y, int n) {
    for (int i = threadIdx.x; i < n; i += 32)
        y[blockIdx.x * n + i] = (float)rows.opaque[0];
}
