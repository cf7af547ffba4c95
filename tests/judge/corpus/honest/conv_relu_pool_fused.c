/* kgen
{ "format": 1, "op": "conv_relu_pool", "target": "cpu",
  "require": "x.contiguous && conv_weight.contiguous",
  "launches": [
    {"kernel": "pixels", "range": "x_0 * conv_weight_0 * ((x_2 - 4) / 2)", "args": ["x", "conv_weight", "conv_bias", "output", {"i64": "x_1"}, {"i64": "conv_weight_0"}, {"i64": "x_2"}, {"i64": "x_3"}]}] }
*/
/* Convolution, ReLU and pooling in one pass that writes nothing in between. */
#include <stdint.h>

static float at(const float *x, const float *w, int64_t c, int64_t h, int64_t wd, int64_t i,
                int64_t j) {
    float sum = 0;
    for (int64_t k = 0; k < c; k++)
        for (int64_t r = 0; r < 5; r++)
            for (int64_t s = 0; s < 5; s++)
                sum += x[(k * h + i + r) * wd + j + s] * w[(k * 5 + r) * 5 + s];
    return sum;
}

void pixels(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_conv_weight *w,
            const KG_T_conv_bias *b, KG_T_output *y, int64_t c, int64_t o, int64_t h, int64_t wd) {
    const int64_t down = (h - 4) / 2, across = (wd - 4) / 2;
    for (int64_t t = begin; t < end; t++) {
        const int64_t image = t / (o * down), f = t / down % o, i = t % down;
        for (int64_t j = 0; j < across; j++) {
            float best = 0;
            for (int e = 0; e < 4; e++) {
                const float v = b[f] + at(x + image * c * h * wd, w + f * c * 25, c, h, wd,
                                          2 * i + e / 2, 2 * j + e % 2);
                best = v > best || v != v ? v : best;
            }
            y[t * across + j] = best;
        }
    }
}
