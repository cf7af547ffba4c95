/* kgen
{ "format": 1, "op": "conv1d_depthwise", "target": "cpu",
  "require": "x.contiguous && conv_weight.contiguous && x_2 > 3",
  "launches": [
    {"kernel": "channels", "range": "x_0 * x_1", "args": ["x", "conv_weight", "conv_bias", "output", {"i64": "x_1"}, {"i64": "x_2"}]}] }
*/
/* The causal depthwise convolution tap by tap over whole rows, the newest tap first. */
#include <stdint.h>

void channels(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_conv_weight *w,
              const KG_T_conv_bias *b, KG_T_output *y, int64_t c, int64_t n) {
    for (int64_t t = begin; t < end; t++) {
        for (int64_t i = 0; i < n; i++)
            y[t * n + i] = w[t % c * 4 + 3] * x[t * n + i];
        for (int64_t back = 1; back < 4; back++)
            for (int64_t i = back; i < n; i++)
                y[t * n + i] += w[t % c * 4 + 3 - back] * x[t * n + i - back];
        for (int64_t i = 0; i < n; i++)
            y[t * n + i] += b[t % c];
    }
}
