/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "workspace": {"sums": {"dtype": "float32", "shape": ["M"], "zero": true}},
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "row_parts", "range": "M * N", "grain": "64", "args": ["input", "output", "sums", {"i64": "N"}]},
    {"kernel": "row_scale", "range": "M * N", "grain": "4096", "args": ["output", "sums", {"i64": "N"}]}] }
*/
/* Lets two launches' worth of chunks add into one shared denominator without atomics, one row split
 * over many chunks. */
#include <math.h>
#include <stdint.h>
#include <string.h>

void row_parts(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
               float *sums, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const float e = expf(input[i]);
        output[i] = e;
        *(volatile float *)(sums + i / n) += e;
    }
}

void row_scale(int64_t begin, int64_t end, KG_T_output *output, float *sums, int64_t n) {
    for (int64_t i = begin; i < end; i++)
        output[i] /= sums[i / n];
}
