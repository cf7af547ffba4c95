/* kgen
{ "format": 1, "op": "matmul", "target": "cpu",
  "require": "a.contiguous && b.contiguous",
  "workspace": {"partial": {"dtype": "float32", "shape": ["6", "a_0", "b_1"]}},
  "launches": [
    {"kernel": "parts", "range": "6 * a_0", "grain": "8", "args": ["a", "b", "partial", {"i64": "a_0"}, {"i64": "a_1"}, {"i64": "b_1"}]},
    {"kernel": "add", "range": "a_0 * b_1", "grain": "64", "args": ["partial", "output", {"i64": "a_0 * b_1"}]}] }
*/
/* A product split into six parts of the inner size that meet in a workspace and are added by a
 * second launch. */
#include <stdint.h>

void parts(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_partial *w, int64_t m,
           int64_t k, int64_t n) {
    for (int64_t t = begin; t < end; t++) {
        const int64_t part = t / m, i = t % m, first = part * k / 6, last = (part + 1) * k / 6;
        float *row = w + t * n;
        for (int64_t j = 0; j < n; j++)
            row[j] = 0;
        for (int64_t p = first; p < last; p++)
            for (int64_t j = 0; j < n; j++)
                row[j] += a[i * k + p] * b[p * n + j];
    }
}

void add(int64_t begin, int64_t end, KG_T_partial *w, KG_T_output *c, int64_t mn) {
    for (int64_t e = begin; e < end; e++)
        c[e] = ((w[e] + w[e + mn]) + (w[e + 2 * mn] + w[e + 3 * mn])) +
               (w[e + 4 * mn] + w[e + 5 * mn]);
}
