/* kgen
{ "format": 1, "op": "histogram", "target": "cpu",
  "workspace": {"counts": {"dtype": "int32", "shape": ["20", "32"]}},
  "launches": [
    {"kernel": "parts", "range": "20", "args": ["x", "counts", {"i64": "x_0"}]},
    {"kernel": "add", "range": "32", "args": ["counts", "output"]}] }
*/
/* Counts in 20 private tables of a workspace that each part clears itself, then added. */
#include <stdint.h>
#include <string.h>

void parts(int64_t begin, int64_t end, const KG_T_x *x, KG_T_counts *c, int64_t n) {
    for (int64_t p = begin; p < end; p++) {
        memset(c + p * 32, 0, 32 * sizeof *c);
        for (int64_t i = p * n / 20; i < (p + 1) * n / 20; i++)
            c[p * 32 + x[i]]++;
    }
}

void add(int64_t begin, int64_t end, KG_T_counts *c, KG_T_output *y) {
    for (int64_t v = begin; v < end; v++) {
        y[v] = 0;
        for (int p = 0; p < 20; p++)
            y[v] += c[p * 32 + v];
    }
}
