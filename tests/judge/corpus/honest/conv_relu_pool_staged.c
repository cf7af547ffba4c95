/* kgen
{ "format": 1, "op": "conv_relu_pool", "target": "cpu",
  "require": "x.contiguous && conv_weight.contiguous",
  "workspace": {"whole": {"dtype": "float32", "shape": ["x_0", "conv_weight_0", "x_2 - 4", "x_3 - 4"]}},
  "launches": [
    {"kernel": "convolve", "range": "x_0 * conv_weight_0", "args": ["x", "conv_weight", "conv_bias", "whole", {"i64": "x_1"}, {"i64": "conv_weight_0"}, {"i64": "x_2"}, {"i64": "x_3"}]},
    {"kernel": "rectify", "range": "x_0 * conv_weight_0 * (x_2 - 4) * (x_3 - 4)", "grain": "256", "args": ["whole"]},
    {"kernel": "pool", "range": "x_0 * conv_weight_0 * ((x_2 - 4) / 2)", "args": ["whole", "output", {"i64": "x_2 - 4"}, {"i64": "x_3 - 4"}]}] }
*/
/* The three operations in three launches over a workspace that the second one changes in place. */
#include <stdint.h>

void convolve(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_conv_weight *w,
              const KG_T_conv_bias *b, KG_T_whole *y, int64_t c, int64_t o, int64_t h, int64_t wd) {
    const int64_t oh = h - 4, ow = wd - 4;
    for (int64_t t = begin; t < end; t++)
        for (int64_t e = 0; e < oh * ow; e++) {
            double sum = b[t % o];
            for (int64_t k = 0; k < c * 25; k++)
                sum +=
                    (double)
                        x[((t / o * c + k / 25) * h + e / ow + k / 5 % 5) * wd + e % ow + k % 5] *
                    w[t % o * c * 25 + k];
            y[t * oh * ow + e] = (float)sum;
        }
}

void rectify(int64_t begin, int64_t end, KG_T_whole *y) {
    for (int64_t e = begin; e < end; e++)
        y[e] = y[e] < 0 ? 0 : y[e];
}

void pool(int64_t begin, int64_t end, KG_T_whole *w, KG_T_output *y, int64_t h, int64_t wd) {
    for (int64_t t = begin; t < end; t++)
        for (int64_t j = 0; j < wd / 2; j++) {
            const float *at = w + (t / (h / 2) * h + t % (h / 2) * 2) * wd + j * 2;
            const float a = at[0] > at[1] ? at[0] : at[1],
                        b = at[wd] > at[wd + 1] ? at[wd] : at[wd + 1];
            y[t * (wd / 2) + j] = a > b ? a : b;
        }
}
