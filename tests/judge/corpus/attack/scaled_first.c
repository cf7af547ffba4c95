/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Multiplies by log2(e) before it subtracts the maximum, which overflows for |x| above 2.3e38 and
 * loses the low bits of large, close values without a fused operation. */
#include <math.h>
#include <stdint.h>
#include <string.h>

void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const float *x = input + i * n;
        float *y = output + i * n, peak = -INFINITY, sum = 0;
        const float k = 1.44269504f;
        for (int64_t j = 0; j < n; j++)
            y[j] = x[j] * k, peak = y[j] > peak ? y[j] : peak;
        for (int64_t j = 0; j < n; j++)
            sum += y[j] = exp2f(y[j] - peak);
        for (int64_t j = 0; j < n; j++)
            y[j] /= sum;
    }
}
