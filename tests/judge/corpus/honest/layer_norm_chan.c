/* kgen
{ "format": 1, "op": "layer_norm", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "norm_weight", "norm_bias", "output", {"i64": "x_1"}]}] }
*/
/* Layer norm from the statistics of blocks of 16 that are merged pairwise by Chan's formula. */
#include <math.h>
#include <stdint.h>

typedef struct part {
    float n, mean, m2;
} part;

static part merge(part a, part b) {
    const float n = a.n + b.n, d = b.mean - a.mean;
    if (n == 0)
        return a;
    return (part){n, a.mean + d * (b.n / n), a.m2 + b.m2 + d * d * (a.n * b.n / n)};
}

static part of_range(const float *r, int64_t n) {
    part p = {(float)n, 0, 0};
    if (n > 16)
        return merge(of_range(r, n / 2), of_range(r + n / 2, n - n / 2));
    for (int64_t k = 0; k < n; k++)
        p.mean += r[k];
    p.mean /= p.n;
    for (int64_t k = 0; k < n; k++)
        p.m2 += (r[k] - p.mean) * (r[k] - p.mean);
    return p;
}

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_norm_weight *w,
          const KG_T_norm_bias *b, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const part p = of_range(x + i * n, n);
        const float scale = 1.0f / sqrtf(p.m2 / p.n + 1e-5f);
        for (int64_t k = 0; k < n; k++)
            y[i * n + k] = (x[i * n + k] - p.mean) * scale * w[k] + b[k];
    }
}
