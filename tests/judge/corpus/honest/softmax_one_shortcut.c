/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && N == 1 && input.contiguous",
  "launches": [
    {"kernel": "rows", "range": "M", "args": ["input", "output"]}] }
*/
/* Softmax of one element: exp(x - x), which is 1, and NaN for NaN and infinities. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_input *x, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++)
        y[i] = expf(x[i] - x[i]);
}
