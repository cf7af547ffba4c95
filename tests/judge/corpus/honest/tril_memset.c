/* kgen
{ "format": 1, "op": "tril", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "rows", "range": "x_0 * x_1", "args": ["x", "output", {"i64": "x_1"}, {"i64": "x_2"}]}] }
*/
/* The lower triangle by memcpy, the rest by memset. */
#include <stdint.h>
#include <string.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t m, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        const int64_t kept = i % m + 1 < n ? i % m + 1 : n;
        memcpy(y + i * n, x + i * n, (size_t)kept * 4);
        memset(y + i * n + kept, 0, (size_t)(n - kept) * 4);
    }
}
