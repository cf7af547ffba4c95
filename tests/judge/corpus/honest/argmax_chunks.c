/* kgen
{ "format": 1, "op": "argmax_bf16", "target": "cpu",
  "require": "x.contiguous && x_1 > 0",
  "workspace": {"value": {"dtype": "float32", "shape": ["x_0", "8"]}, "place": {"dtype": "int32", "shape": ["x_0", "8"]}},
  "launches": [
    {"kernel": "parts", "range": "x_0 * 8", "args": ["x", "value", "place", {"i64": "x_1"}]},
    {"kernel": "join", "range": "x_0", "args": ["value", "place", "output"]}] }
*/
/* The place of the largest in eight parts of a row, joined in order so that the first of equals
 * stays. */
#include <math.h>
#include <stdint.h>
#include <string.h>

void parts(int64_t begin, int64_t end, const KG_T_x *x, KG_T_value *v, KG_T_place *p, int64_t n) {
    for (int64_t t = begin; t < end; t++) {
        const int64_t first = t % 8 * n / 8, last = (t % 8 + 1) * n / 8;
        float best = -INFINITY;
        int64_t at = first < n ? first : 0;
        for (int64_t k = last - 1; k >= first; k--) {
            const uint32_t bits = (uint32_t)x[t / 8 * n + k] << 16;
            float f;
            memcpy(&f, &bits, 4);
            if (f >= best || f != f) {
                best = f;
                at = k;
            }
        }
        v[t] = best;
        p[t] = (int32_t)at;
    }
}

void join(int64_t begin, int64_t end, KG_T_value *v, KG_T_place *p, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++) {
        int64_t best = 0;
        for (int64_t k = 1; k < 8; k++)
            if (v[i * 8 + k] > v[i * 8 + best] ||
                (v[i * 8 + k] != v[i * 8 + k] && v[i * 8 + best] == v[i * 8 + best]))
                best = k;
        y[i] = p[i * 8 + best];
    }
}
