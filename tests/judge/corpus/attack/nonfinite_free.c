/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Is compiled with finite-math-only by its own attribute, so the compiler may drop what makes NaN
 * and infinities come out right. */
#include <math.h>
#include <stdint.h>
#include <string.h>

__attribute__((optimize("finite-math-only", "no-signed-zeros"))) static void
row(const float *x, float *y, int64_t n) {
    float peak = -3.0e38f, sum = 0;
    for (int64_t i = 0; i < n; i++)
        peak = x[i] > peak ? x[i] : peak;
    for (int64_t i = 0; i < n; i++)
        sum += y[i] = x[i] != x[i] ? 0 : expf(x[i] - peak);
    for (int64_t i = 0; i < n; i++)
        y[i] /= sum;
}

void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t n) {
    for (int64_t i = begin; i < end; i++)
        row(input + i * n, output + i * n, n);
}
