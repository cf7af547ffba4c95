/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && input.contiguous",
  "launches": [
    {"kernel": "strips", "range": "M", "args": ["input", "output", {"i64": "N"}, {"i64": "K"}]}] }
*/
/* Softmax along a middle dim, 16 columns at a time so that every read is of neighbours. */
#include <math.h>
#include <stdint.h>

void strips(int64_t begin, int64_t end, const KG_T_input *x, KG_T_output *y, int64_t n, int64_t k) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t c0 = 0; c0 < k; c0 += 16) {
            const int64_t w = k - c0 < 16 ? k - c0 : 16;
            const float *in = x + i * n * k + c0;
            float *out = y + i * n * k + c0, peak[16], sum[16] = {0};
            for (int64_t c = 0; c < w; c++)
                peak[c] = -INFINITY;
            for (int64_t r = 0; r < n; r++)
                for (int64_t c = 0; c < w; c++)
                    peak[c] = in[r * k + c] > peak[c] ? in[r * k + c] : peak[c];
            for (int64_t r = 0; r < n; r++)
                for (int64_t c = 0; c < w; c++)
                    sum[c] += out[r * k + c] = expf(in[r * k + c] - peak[c]);
            for (int64_t r = 0; r < n; r++)
                for (int64_t c = 0; c < w; c++)
                    out[r * k + c] /= sum[c];
        }
}
