/* kgen
{ "format": 1, "op": "conv2d", "target": "cpu",
  "require": "x.contiguous && conv_weight.contiguous",
  "workspace": {"u": {"dtype": "float64", "shape": ["conv_weight_0", "x_1", "16"]}},
  "launches": [
    {"kernel": "filters", "range": "conv_weight_0 * x_1", "args": ["conv_weight", "u"]},
    {"kernel": "tiles", "range": "x_0 * ceil_div(x_2, 2) * ceil_div(x_3, 2)", "args": ["x", "u", "conv_bias", "output", {"i64": "x_1"}, {"i64": "conv_weight_0"}, {"i64": "x_2"}, {"i64": "x_3"}]}] }
*/
/* A 3x3 convolution by Winograd's F(2x2, 3x3), transformed in fp64 so that the transform costs
 * no digits. */
#include <stdint.h>

/* G g G^T, the rows of G being (1 0 0), (1 1 1)/2, (1 -1 1)/2, (0 0 1). */
void filters(int64_t begin, int64_t end, const KG_T_conv_weight *w, KG_T_u *u) {
    for (int64_t t = begin; t < end; t++) {
        double half[4][3];
        for (int j = 0; j < 3; j++) {
            const double a = w[t * 9 + j], b = w[t * 9 + 3 + j], c = w[t * 9 + 6 + j];
            half[0][j] = a;
            half[1][j] = (a + b + c) / 2;
            half[2][j] = (a - b + c) / 2;
            half[3][j] = c;
        }
        for (int i = 0; i < 4; i++) {
            const double a = half[i][0], b = half[i][1], c = half[i][2];
            u[t * 16 + i * 4] = a;
            u[t * 16 + i * 4 + 1] = (a + b + c) / 2;
            u[t * 16 + i * 4 + 2] = (a - b + c) / 2;
            u[t * 16 + i * 4 + 3] = c;
        }
    }
}

static void forward(const double d[4], double out[4]) {
    out[0] = d[0] - d[2];
    out[1] = d[1] + d[2];
    out[2] = d[2] - d[1];
    out[3] = d[1] - d[3];
}

static void patch(const float *x, int64_t h, int64_t wd, int64_t i0, int64_t j0, double v[16]) {
    double rows[4][4], column[4], out[4];
    for (int i = 0; i < 4; i++) {
        double d[4];
        for (int j = 0; j < 4; j++) {
            const int64_t r = i0 + i - 1, s = j0 + j - 1;
            d[j] = r >= 0 && r < h && s >= 0 && s < wd ? x[r * wd + s] : 0;
        }
        forward(d, rows[i]);
    }
    for (int j = 0; j < 4; j++) {
        for (int i = 0; i < 4; i++)
            column[i] = rows[i][j];
        forward(column, out);
        for (int i = 0; i < 4; i++)
            v[i * 4 + j] = out[i];
    }
}

void tiles(int64_t begin, int64_t end, const KG_T_x *x, KG_T_u *u, const KG_T_conv_bias *b,
           KG_T_output *y, int64_t c, int64_t o, int64_t h, int64_t wd) {
    const int64_t across = (wd + 1) / 2, down = (h + 1) / 2;
    double v[64][16], m[16];
    for (int64_t t = begin; t < end && c <= 64; t++) {
        const int64_t image = t / (across * down), i0 = t / across % down * 2, j0 = t % across * 2;
        for (int64_t k = 0; k < c; k++)
            patch(x + (image * c + k) * h * wd, h, wd, i0, j0, v[k]);
        for (int64_t f = 0; f < o; f++) {
            for (int e = 0; e < 16; e++) {
                m[e] = 0;
                for (int64_t k = 0; k < c; k++)
                    m[e] += u[(f * c + k) * 16 + e] * v[k][e];
            }
            for (int e = 0; e < 4; e++) {
                const int64_t i = i0 + e / 2, j = j0 + e % 2;
                double sum = 0;
                for (int r = 0; r < 3; r++)
                    for (int s = 0; s < 3; s++) {
                        const double side = (e / 2 && r > 0) != (e % 2 && s > 0) ? -1 : 1;
                        sum += side * m[(r + e / 2) * 4 + s + e % 2];
                    }
                if (i < h && j < wd)
                    y[((image * o + f) * h + i) * wd + j] = (float)sum + b[f];
            }
        }
    }
}
