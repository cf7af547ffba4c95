/* kgen
{ "format": 1, "op": "softmax", "target": "cpu", "require": "K == 1 && input.contiguous",
  "launches": [{"kernel": "softmax", "range": "M", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Gives the right answer after more than a second.
 * expects: the limit is 1.00 s */
#include <math.h>
#include <stdint.h>

void softmax(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output, int64_t N) {
    for (int64_t row = begin; row < end; row++) {
        const KG_T_input *x = input + row * N;
        KG_T_output *y = output + row * N;
        float top = -INFINITY, sum = 0.0f;
        for (int64_t i = 0; i < N; i++)
            top = fmaxf(top, x[i]);
        for (int64_t i = 0; i < N; i++)
            sum += y[i] = expf(x[i] - top);
        for (int64_t i = 0; i < N; i++)
            y[i] /= sum;
    }
    if (begin == 0)
        for (volatile int64_t i = 0; i < 3500000000; i++)
            ;
}
