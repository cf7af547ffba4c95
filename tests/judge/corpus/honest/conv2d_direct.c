/* kgen
{ "format": 1, "op": "conv2d", "target": "cpu",
  "require": "x.contiguous && conv_weight.contiguous",
  "launches": [
    {"kernel": "planes", "range": "x_0 * conv_weight_0", "args": ["x", "conv_weight", "conv_bias", "output", {"i64": "x_1"}, {"i64": "conv_weight_0"}, {"i64": "x_2"}, {"i64": "x_3"}]}] }
*/
/* A direct convolution, taps outermost, so that padding is a matter of loop bounds. */
#include <stdint.h>

void planes(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_conv_weight *w,
            const KG_T_conv_bias *b, KG_T_output *y, int64_t c, int64_t o, int64_t h, int64_t wd) {
    for (int64_t t = begin; t < end; t++) {
        float *out = y + t * h * wd;
        for (int64_t e = 0; e < h * wd; e++)
            out[e] = b[t % o];
        for (int64_t k = 0; k < c * 9; k++) {
            const float *in = x + (t / o * c + k / 9) * h * wd, tap = w[t % o * c * 9 + k];
            const int64_t dy = k / 3 % 3 - 1, dx = k % 3 - 1;
            for (int64_t i = dy < 0 ? 1 : 0; i < h - (dy > 0); i++)
                for (int64_t j = dx < 0 ? 1 : 0; j < wd - (dx > 0); j++)
                    out[i * wd + j] += tap * in[(i + dy) * wd + j + dx];
        }
    }
}
