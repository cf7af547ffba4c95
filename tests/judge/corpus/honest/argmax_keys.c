/* kgen
{ "format": 1, "op": "argmax_bf16", "target": "cpu",
  "require": "x.contiguous && x_1 > 0",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "output", {"i64": "x_1"}]}] }
*/
/* The place of the largest bfloat16 from the bits alone: an order-preserving key above, the
 * complement of the place below. */
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        uint64_t best = 0;
        for (int64_t k = 0; k < n; k++) {
            const uint32_t bits = x[i * n + k] == 0x8000 ? 0 : x[i * n + k];
            const int nan = (bits & 0x7fff) > 0x7f80;
            const uint64_t key = nan ? 0xffff : bits & 0x8000 ? 0xffff & ~bits : bits | 0x8000;
            const uint64_t both = key << 32 | (0xffffffffu - (uint32_t)k);
            best = both > best ? both : best;
        }
        y[i] = (int64_t)(0xffffffffu - (uint32_t)best);
    }
}
