/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "flags": ["fast_math"],
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Asks for the fast_math flag in its plan and relies on -inf and NaN, whose treatment the flag
 * gives free. */
#include <math.h>
#include <stdint.h>
#include <string.h>

void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const float *x = input + i * n;
        float *y = output + i * n, peak = -INFINITY, sum = 0;
        for (int64_t j = 0; j < n; j++)
            peak = x[j] > peak ? x[j] : peak;
        for (int64_t j = 0; j < n; j++)
            sum += y[j] = peak == -INFINITY ? NAN : expf(x[j] - peak);
        for (int64_t j = 0; j < n; j++)
            y[j] = isnan(sum) ? NAN : y[j] / sum;
    }
}
