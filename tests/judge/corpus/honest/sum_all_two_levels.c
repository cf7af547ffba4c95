/* kgen
{ "format": 1, "op": "sum_all", "target": "cpu",
  "require": "x.contiguous",
  "tunables": {"PARTS": [64, 16, 256]},
  "workspace": {"sums": {"dtype": "float64", "shape": ["PARTS"]}},
  "launches": [
    {"kernel": "parts", "range": "PARTS", "args": ["x", "sums", {"i64": "x.numel"}]},
    {"kernel": "add", "range": "1", "args": ["sums", "output"]}] }
*/
/* One sum in a fixed number of parts, whoever runs them, and a second launch in fp64. */
#include <stdint.h>

void parts(int64_t begin, int64_t end, const KG_T_x *x, KG_T_sums *s, int64_t n) {
    for (int64_t p = begin; p < end; p++) {
        double sum = 0;
        for (int64_t i = p * n / PARTS; i < (p + 1) * n / PARTS; i++)
            sum += x[i];
        s[p] = sum;
    }
}

void add(int64_t begin, int64_t end, KG_T_sums *s, KG_T_output *y) {
    for (int64_t once = begin; once < end; once++) {
        double sum = 0;
        for (int p = 0; p < PARTS; p++)
            sum += s[p];
        y[0] = (float)sum;
    }
}
