/* kgen
{ "format": 1, "op": "matvec", "target": "cpu",
  "require": "a.contiguous",
  "workspace": {"sums": {"dtype": "float32", "shape": ["16", "a_0"]}},
  "launches": [
    {"kernel": "columns", "range": "16", "args": ["a", "x", "sums", {"i64": "a_0"}, {"i64": "a_1"}]},
    {"kernel": "add", "range": "a_0", "grain": "16", "args": ["sums", "output", {"i64": "a_0"}]}] }
*/
/* A matrix times a vector, column by column in 16 stripes that a second launch adds from the
 * last to the first. */
#include <stdint.h>

void columns(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_x *x, KG_T_sums *s, int64_t m,
             int64_t k) {
    for (int64_t part = begin; part < end; part++) {
        for (int64_t i = 0; i < m; i++)
            s[part * m + i] = 0;
        for (int64_t p = part * k / 16; p < (part + 1) * k / 16; p++)
            for (int64_t i = 0; i < m; i++)
                s[part * m + i] += a[i * k + p] * x[p];
    }
}

void add(int64_t begin, int64_t end, KG_T_sums *s, KG_T_output *y, int64_t m) {
    for (int64_t i = begin; i < end; i++) {
        float sum = 0;
        for (int64_t part = 15; part >= 0; part--)
            sum += s[part * m + i];
        y[i] = sum;
    }
}
