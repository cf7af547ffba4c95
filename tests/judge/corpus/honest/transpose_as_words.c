/* kgen
{ "format": 1, "op": "transpose_copy", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_1", "args": ["x", "output", {"i64": "x_0"}, {"i64": "x_1"}]}] }
*/
/* A transposition that moves floats as the integers that their bits are. */
#include <stdint.h>
#include <string.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t m, int64_t n) {
    for (int64_t j = begin; j < end; j++)
        for (int64_t i = 0; i < m; i++) {
            uint32_t word;
            memcpy(&word, x + i * n + j, 4);
            memcpy(y + j * m + i, &word, 4);
        }
}
