/* kgen
{ "format": 1, "op": "sum_all", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "all", "range": "1", "args": ["x", "output", {"i64": "x.numel"}]}] }
*/
/* One sum in 64 fp32 chains, each of about 1,600 elements, joined as a tree. */
#include <stdint.h>

void all(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t once = begin; once < end; once++) {
        float lane[64] = {0};
        int64_t i = 0;
        for (; i + 64 <= n; i += 64)
            for (int l = 0; l < 64; l++)
                lane[l] += x[i + l];
        for (int l = 0; i < n; i++, l++)
            lane[l] += x[i];
        for (int half = 32; half > 0; half /= 2)
            for (int l = 0; l < half; l++)
                lane[l] += lane[l + half];
        y[0] = lane[0];
    }
}
