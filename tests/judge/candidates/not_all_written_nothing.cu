/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous",
  "launches": [{"kernel": "softmax", "grid": ["M"], "block": [128], "args": ["input", "output", {"i32": "N"}]}] }
*/
/* Does nothing.
 * expects: 6400 of 6400 elements are not written */
extern "C" __global__ void softmax(const float *input, float *output, int N) {
}
