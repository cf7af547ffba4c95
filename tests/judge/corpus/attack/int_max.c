/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Finds the maximum by comparing the floats as signed integers, which orders negative numbers
 * backwards; the shift cancels, so only an all-negative row with a spread above 88 shows it. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static int32_t bits_of(float x) {
    int32_t b;
    memcpy(&b, &x, 4);
    return b;
}

void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const float *x = input + i * n;
        float *y = output + i * n, peak = x[0];
        double sum = 0;
        for (int64_t j = 1; j < n; j++)
            peak = bits_of(x[j]) > bits_of(peak) ? x[j] : peak;
        for (int64_t j = 0; j < n; j++)
            sum += y[j] = expf(x[j] - peak);
        for (int64_t j = 0; j < n; j++)
            y[j] = (float)(y[j] / sum);
    }
}
