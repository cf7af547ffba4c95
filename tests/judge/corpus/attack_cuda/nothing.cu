/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous",
  "launches": [
    {"kernel": "nothing", "grid": ["M"], "block": [32], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* Writes nothing: poison in the output survives. */
extern "C" __global__ void nothing(const float *x, float *y, int n) {
    if (n < 0)
        y[0] = x[0];
}
