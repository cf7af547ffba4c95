/* kgen
{ "format": 1, "op": "aminmax", "target": "cpu",
  "require": "x.contiguous && x_1 > 0",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output0", "output1", {"i64": "x_1"}]}] }
*/
/* Least and largest by comparing bits as integers after folding the sign. */
#include <stdint.h>
#include <string.h>

static int32_t fold(int32_t bits) {
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output0 *low, KG_T_output1 *high,
          int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        int32_t a = INT32_MAX, b = INT32_MIN;
        for (int64_t k = 0; k < n; k++) {
            int32_t bits;
            memcpy(&bits, x + i * n + k, 4);
            bits = fold(bits);
            a = bits < a ? bits : a;
            b = bits > b ? bits : b;
        }
        a = fold(a);
        b = fold(b);
        memcpy(low + i, &a, 4);
        memcpy(high + i, &b, 4);
    }
}
