/* kgen
{ "format": 1, "op": "conv2d", "target": "cpu",
  "require": "x.contiguous && conv_weight.contiguous",
  "workspace": {"columns": {"dtype": "float32", "shape": ["x_0", "x_2 * x_3", "x_1 * 9"]}},
  "launches": [
    {"kernel": "unfold", "range": "x_0 * x_2 * x_3", "args": ["x", "columns", {"i64": "x_1"}, {"i64": "x_2"}, {"i64": "x_3"}]},
    {"kernel": "multiply", "range": "x_0 * conv_weight_0", "args": ["columns", "conv_weight", "conv_bias", "output", {"i64": "x_1 * 9"}, {"i64": "conv_weight_0"}, {"i64": "x_2 * x_3"}]}] }
*/
/* A convolution as a matrix product over unfolded patches, which lie in a workspace. */
#include <stdint.h>

void unfold(int64_t begin, int64_t end, const KG_T_x *x, KG_T_columns *u, int64_t c, int64_t h,
            int64_t wd) {
    for (int64_t t = begin; t < end; t++) {
        const int64_t image = t / (h * wd), i = t / wd % h, j = t % wd;
        for (int64_t k = 0; k < c * 9; k++) {
            const int64_t r = i + k / 3 % 3 - 1, s = j + k % 3 - 1;
            const int inside = r >= 0 && r < h && s >= 0 && s < wd;
            u[t * c * 9 + k] = inside ? x[((image * c + k / 9) * h + r) * wd + s] : 0.0f;
        }
    }
}

void multiply(int64_t begin, int64_t end, KG_T_columns *u, const KG_T_conv_weight *w,
              const KG_T_conv_bias *b, KG_T_output *y, int64_t k, int64_t o, int64_t hw) {
    for (int64_t t = begin; t < end; t++)
        for (int64_t e = 0; e < hw; e++) {
            float sum = 0;
            for (int64_t p = 0; p < k; p++)
                sum += u[(t / o * hw + e) * k + p] * w[t % o * k + p];
            y[t * hw + e] = sum + b[t % o];
        }
}
