/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous", "min_arch": "sm_90", "tensor_maps": {"rows": {"tensor": "input", "dims": ["N", "M"], "strides": ["4 * N"], "box": [32, 1]}},
  "launches": [
    {"kernel": "map_misaligned", "grid": ["M"], "block": [32], "args": [{"map": "rows"}, "output", {"i32": "N"}]}] }
*/
/* A tensor map over rows whose stride of 1204 bytes is no multiple of 16. */
struct alignas(64) Map {
    unsigned long long opaque[16];
};

extern "C" __global__ void map_misaligned(const __grid_constant__ Map rows, float *y, int n) {
    for (int i = threadIdx.x; i < n; i += 32)
        y[blockIdx.x * n + i] = (float)rows.opaque[0];
}
