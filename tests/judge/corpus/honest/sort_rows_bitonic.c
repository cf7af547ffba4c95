/* kgen
{ "format": 1, "op": "sort_rows", "target": "cpu",
  "require": "x.contiguous && x_1 <= 64",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* Small rows sorted by a bitonic network of 64 that is padded with infinities. */
#include <math.h>
#include <stdint.h>
#include <string.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    float a[64];
    for (int64_t i = begin; i < end; i++) {
        for (int k = 0; k < 64; k++)
            a[k] = k < n ? x[i * n + k] : INFINITY;
        for (int size = 2; size <= 64; size *= 2)
            for (int step = size / 2; step > 0; step /= 2)
                for (int k = 0; k < 64; k++) {
                    const int other = k ^ step, up = (k & size) == 0;
                    if (other > k && (a[k] > a[other]) == up && a[k] != a[other]) {
                        const float t = a[k];
                        a[k] = a[other];
                        a[other] = t;
                    }
                }
        memcpy(y + i * n, a, (size_t)n * 4);
    }
}
