/* kgen
{ "format": 1, "op": "matmul_f64", "target": "cpu",
  "require": "a.contiguous && b.contiguous",
  "workspace": {"pa": {"dtype": "float64", "shape": ["7", "align_up(a_0, 2) / 2", "align_up(a_1, 2) / 2"]}, "pb": {"dtype": "float64", "shape": ["7", "align_up(a_1, 2) / 2", "align_up(b_1, 2) / 2"]}, "pc": {"dtype": "float64", "shape": ["7", "align_up(a_0, 2) / 2", "align_up(b_1, 2) / 2"]}},
  "launches": [
    {"kernel": "left", "range": "align_up(a_0, 2) / 2", "args": ["a", "pa", {"i64": "a_0"}, {"i64": "a_1"}]},
    {"kernel": "right", "range": "align_up(a_1, 2) / 2", "args": ["b", "pb", {"i64": "b_0"}, {"i64": "b_1"}]},
    {"kernel": "products", "range": "7 * (align_up(a_0, 2) / 2)", "args": ["pa", "pb", "pc", {"i64": "align_up(a_0, 2) / 2"}, {"i64": "align_up(a_1, 2) / 2"}, {"i64": "align_up(b_1, 2) / 2"}]},
    {"kernel": "join", "range": "a_0", "args": ["pc", "output", {"i64": "a_0"}, {"i64": "b_1"}]}] }
*/
/* One level of Strassen's seven products in fp64, with odd sizes padded. */
#include <stdint.h>

static double at(const double *x, int64_t i, int64_t j, int64_t m, int64_t n) {
    return i < m && j < n ? x[i * n + j] : 0;
}

void left(int64_t begin, int64_t end, const KG_T_a *a, KG_T_pa *p, int64_t m, int64_t k) {
    const int64_t h = (m + 1) / 2, w = (k + 1) / 2, size = h * w;
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < w; j++) {
            const double a11 = at(a, i, j, m, k), a12 = at(a, i, j + w, m, k);
            const double a21 = at(a, i + h, j, m, k), a22 = at(a, i + h, j + w, m, k);
            const double v[7] = {a11 + a22, a21 + a22, a11, a22, a11 + a12, a21 - a11, a12 - a22};
            for (int t = 0; t < 7; t++)
                p[t * size + i * w + j] = v[t];
        }
}

void right(int64_t begin, int64_t end, const KG_T_b *b, KG_T_pb *p, int64_t k, int64_t n) {
    const int64_t h = (k + 1) / 2, w = (n + 1) / 2, size = h * w;
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < w; j++) {
            const double b11 = at(b, i, j, k, n), b12 = at(b, i, j + w, k, n);
            const double b21 = at(b, i + h, j, k, n), b22 = at(b, i + h, j + w, k, n);
            const double v[7] = {b11 + b22, b11, b12 - b22, b21 - b11, b22, b11 + b12, b21 + b22};
            for (int t = 0; t < 7; t++)
                p[t * size + i * w + j] = v[t];
        }
}

void products(int64_t begin, int64_t end, KG_T_pa *a, KG_T_pb *b, KG_T_pc *c, int64_t m, int64_t k,
              int64_t n) {
    for (int64_t r = begin; r < end; r++) {
        const int64_t t = r / m;
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t p = 0; p < k; p++)
                sum += a[r * k + p] * b[(t * k + p) * n + j];
            c[r * n + j] = sum;
        }
    }
}

void join(int64_t begin, int64_t end, KG_T_pc *p, KG_T_output *c, int64_t m, int64_t n) {
    const int64_t h = (m + 1) / 2, w = (n + 1) / 2, size = h * w;
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < n; j++) {
            const double *q = p + i % h * w + j % w;
            if (i < h)
                c[i * n + j] = j < w ? q[0] + q[3 * size] - q[4 * size] + q[6 * size]
                                     : q[2 * size] + q[4 * size];
            else
                c[i * n + j] =
                    j < w ? q[size] + q[3 * size] : q[0] - q[size] + q[2 * size] + q[5 * size];
        }
}
