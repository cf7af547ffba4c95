/* kgen
{ "format": 1, "op": "swiglu", "target": "cuda", "require": "gate.contiguous && up.contiguous",
  "launches": [
    {"kernel": "swiglu_plain", "grid": ["ceil_div(output.numel, 256)"], "block": [256], "args": ["gate", "up", "output", {"i32": "output.numel"}]}] }
*/
/* The gate's SiLU times the other half. */
extern "C" __global__ void swiglu_plain(const float *gate, const float *up, float *out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n)
        out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}
