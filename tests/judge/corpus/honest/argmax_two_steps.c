/* kgen
{ "format": 1, "op": "argmax", "target": "cpu",
  "require": "x.contiguous && x_1 > 0",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* The largest value first, without a branch and in 16 lanes, then the first place that holds it. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const float *r = x + i * n;
        float lane[16], best = -INFINITY;
        int64_t k = 0, nan = -1;
        for (int l = 0; l < 16; l++)
            lane[l] = -INFINITY;
        for (; k + 16 <= n; k += 16)
            for (int l = 0; l < 16; l++)
                lane[l] = r[k + l] > lane[l] ? r[k + l] : lane[l];
        for (; k < n; k++)
            lane[0] = r[k] > lane[0] ? r[k] : lane[0];
        for (int l = 0; l < 16; l++)
            best = lane[l] > best ? lane[l] : best;
        for (k = n - 1; k >= 0; k--)
            nan = r[k] != r[k] ? k : nan;
        for (k = 0; nan < 0 && r[k] != best;)
            k++;
        y[i] = nan >= 0 ? nan : k;
    }
}
