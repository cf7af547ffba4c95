/* kgen
{ "format": 1, "op": "avg_pool", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "planes", "range": "x_0 * x_1", "args": ["x", "output", {"i64": "x_2"}, {"i64": "x_3"}]}] }
*/
/* Means over windows whose padding counts as zeros. */
#include <stdint.h>

void planes(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t h, int64_t w) {
    const int64_t oh = (h - 1) / 2 + 1, ow = (w - 1) / 2 + 1;
    for (int64_t t = begin; t < end; t++)
        for (int64_t e = 0; e < oh * ow; e++) {
            float sum = 0;
            for (int64_t r = e / ow * 2 - 1; r < e / ow * 2 + 2; r++)
                for (int64_t s = e % ow * 2 - 1; s < e % ow * 2 + 2; s++)
                    if (r >= 0 && r < h && s >= 0 && s < w)
                        sum += x[(t * h + r) * w + s];
            y[t * oh * ow + e] = sum * (1.0f / 9.0f);
        }
}
