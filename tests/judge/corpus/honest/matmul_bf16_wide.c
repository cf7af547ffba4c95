/* kgen
{ "format": 1, "op": "matmul_bf16", "target": "cpu",
  "require": "a.contiguous && b.contiguous",
  "workspace": {"wa": {"dtype": "float32", "shape": ["a_0", "a_1"]}, "wb": {"dtype": "float32", "shape": ["b_0", "b_1"]}},
  "launches": [
    {"kernel": "widen_a", "range": "a.numel", "grain": "128", "args": ["a", "wa"]},
    {"kernel": "widen_b", "range": "b.numel", "grain": "128", "args": ["b", "wb"]},
    {"kernel": "rows", "range": "a_0", "args": ["wa", "wb", "output", {"i64": "a_1"}, {"i64": "b_1"}]}] }
*/
/* A bfloat16 product that widens both matrices into workspaces, adds in fp32 and rounds once. */
#include <stdint.h>
#include <string.h>

static float wide(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

void widen_a(int64_t begin, int64_t end, const KG_T_a *a, KG_T_wa *w) {
    for (int64_t i = begin; i < end; i++)
        w[i] = wide(a[i]);
}

void widen_b(int64_t begin, int64_t end, const KG_T_b *b, KG_T_wb *w) {
    for (int64_t i = begin; i < end; i++)
        w[i] = wide(b[i]);
}

void rows(int64_t begin, int64_t end, KG_T_wa *a, KG_T_wb *b, KG_T_output *c, int64_t k,
          int64_t n) {
    float row[1024];
    for (int64_t i = begin; i < end; i++)
        for (int64_t j0 = 0; j0 < n; j0 += 1024) {
            const int64_t cols = n - j0 < 1024 ? n - j0 : 1024;
            memset(row, 0, sizeof row);
            for (int64_t p = 0; p < k; p++)
                for (int64_t j = 0; j < cols; j++)
                    row[j] += a[i * k + p] * b[p * n + j0 + j];
            for (int64_t j = 0; j < cols; j++) {
                uint32_t bits;
                memcpy(&bits, row + j, 4);
                c[i * n + j0 + j] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
            }
        }
}
