/* kgen
{ "format": 1, "op": "mse_loss", "target": "cpu",
  "require": "x.contiguous && y.contiguous",
  "launches": [
    {"kernel": "all", "range": "1", "args": ["x", "y", "output", {"i64": "x.numel"}]}] }
*/
/* The mean squared difference in eight fp32 chains. */
#include <stdint.h>

void all(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_y *y, KG_T_output *out,
         int64_t n) {
    for (int64_t once = begin; once < end; once++) {
        float part[8] = {0};
        for (int64_t i = 0; i < n; i++)
            part[i & 7] += (x[i] - y[i]) * (x[i] - y[i]);
        out[0] = (((part[0] + part[1]) + (part[2] + part[3])) +
                  ((part[4] + part[5]) + (part[6] + part[7]))) /
                 (float)n;
    }
}
