/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Uses a Taylor polynomial of degree 12 around zero for the exponential, exact to float for the |x|
 * < 4 of normal inputs and useless beyond. */
#include <math.h>
#include <stdint.h>
#include <string.h>

void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const float *x = input + i * n;
        float *y = output + i * n;
        double sum = 0;
        for (int64_t j = 0; j < n; j++) {
            double term = 1, value = 1;
            for (int k = 1; k <= 12; k++)
                value += term *= (double)x[j] / 16 / k;
            value *= value, value *= value, value *= value, value *= value;
            sum += y[j] = (float)value;
        }
        for (int64_t j = 0; j < n; j++)
            y[j] = (float)(y[j] / sum);
    }
}
