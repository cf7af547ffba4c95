/* kgen
{ "format": 1, "op": "transpose_copy", "target": "cpu",
  "tunables": {"TILE": [8, 16, 32]},
  "launches": [
    {"kernel": "tiles", "range": "ceil_div(x_0, TILE)", "args": ["x", "output", {"i64": "x_0"}, {"i64": "x_1"}, {"i64": "x.stride(0)"}, {"i64": "x.stride(1)"}]}] }
*/
/* A transposition by tiles. */
#include <stdint.h>

void tiles(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t m, int64_t n,
           int64_t s0, int64_t s1) {
    for (int64_t t = begin; t < end; t++)
        for (int64_t j0 = 0; j0 < n; j0 += TILE)
            for (int64_t i = t * TILE; i < m && i < (t + 1) * TILE; i++)
                for (int64_t j = j0; j < n && j < j0 + TILE; j++)
                    y[j * m + i] = x[i * s0 + j * s1];
}
