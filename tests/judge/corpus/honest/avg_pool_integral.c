/* kgen
{ "format": 1, "op": "avg_pool", "target": "cpu",
  "require": "x.contiguous && x_3 <= 1024",
  "launches": [
    {"kernel": "planes", "range": "x_0 * x_1", "args": ["x", "output", {"i64": "x_2"}, {"i64": "x_3"}]}] }
*/
/* Means over windows as sums of columns first, three rows at a time. */
#include <stdint.h>

void planes(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t h, int64_t w) {
    const int64_t oh = (h - 1) / 2 + 1, ow = (w - 1) / 2 + 1;
    double column[1026];
    for (int64_t t = begin; t < end; t++)
        for (int64_t i = 0; i < oh; i++) {
            column[0] = column[w + 1] = 0;
            for (int64_t j = 0; j < w; j++) {
                column[j + 1] = 0;
                for (int64_t r = 2 * i - 1; r < 2 * i + 2; r++)
                    column[j + 1] += r >= 0 && r < h ? x[(t * h + r) * w + j] : 0;
            }
            for (int64_t j = 0; j < ow; j++)
                y[(t * oh + i) * ow + j] =
                    (float)((column[2 * j] + column[2 * j + 1] + column[2 * j + 2]) / 9);
        }
}
