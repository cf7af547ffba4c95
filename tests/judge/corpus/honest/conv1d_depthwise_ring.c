/* kgen
{ "format": 1, "op": "conv1d_depthwise", "target": "cpu",
  "require": "x.contiguous && conv_weight.contiguous",
  "launches": [
    {"kernel": "channels", "range": "x_0 * x_1", "args": ["x", "conv_weight", "conv_bias", "output", {"i64": "x_1"}, {"i64": "x_2"}]}] }
*/
/* The causal depthwise convolution as a stream: the last four inputs in a ring, one output a
 * step. */
#include <stdint.h>

void channels(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_conv_weight *w,
              const KG_T_conv_bias *b, KG_T_output *y, int64_t c, int64_t n) {
    for (int64_t t = begin; t < end; t++) {
        const float *tap = w + t % c * 4;
        float ring[4] = {0};
        for (int64_t i = 0; i < n; i++) {
            ring[i & 3] = x[t * n + i];
            float sum = b[t % c];
            for (int64_t k = 0; k < 4; k++)
                sum += tap[k] * ring[(i + 1 + k) & 3];
            y[t * n + i] = sum;
        }
    }
}
