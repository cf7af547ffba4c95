/* kgen
{ "format": 1, "op": "index_add", "target": "cpu",
  "require": "x.contiguous",
  "workspace": {"copies": {"dtype": "float32", "shape": ["5", "16", "x_1"], "zero": true}},
  "launches": [
    {"kernel": "parts", "range": "5", "args": ["x", "index", "copies", {"i64": "x_0"}, {"i64": "x_1"}]},
    {"kernel": "add", "range": "16 * x_1", "grain": "40", "args": ["copies", "output", {"i64": "16 * x_1"}]}] }
*/
/* Five private copies of the buckets in a cleared workspace, one for each part of the rows, and
 * their sum. */
#include <stdint.h>

void parts(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_index *at, KG_T_copies *c,
           int64_t m, int64_t n) {
    for (int64_t p = begin; p < end; p++)
        for (int64_t i = p * m / 5; i < (p + 1) * m / 5; i++)
            for (int64_t k = 0; k < n; k++)
                c[(p * 16 + at[i]) * n + k] += x[i * n + k];
}

void add(int64_t begin, int64_t end, KG_T_copies *c, KG_T_output *y, int64_t n) {
    for (int64_t e = begin; e < end; e++)
        y[e] = c[e] + c[e + n] + c[e + 2 * n] + c[e + 3 * n] + c[e + 4 * n];
}
