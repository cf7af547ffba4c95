/* kgen
{ "format": 1, "op": "bits_int32", "target": "cuda", "require": "a.contiguous && b.contiguous",
  "launches": [
    {"kernel": "bits_int32_words", "grid": ["ceil_div(output.numel, 256)"], "block": [256], "args": ["a", "b", "output", {"i32": "output.numel"}]}] }
*/
/* Bitwise arithmetic on words, with an arithmetic shift. */
extern "C" __global__ void bits_int32_words(const int *a, const int *b, int *out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n)
        out[i] = ((a[i] ^ (a[i] >> 3)) & b[i]) | (~b[i] & 255);
}
