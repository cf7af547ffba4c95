/* kgen
{ "format": 1, "op": "matmul", "target": "cpu",
  "require": "a.contiguous && b.contiguous",
  "tunables": {"BM": [16, 8, 32], "BN": [24, 16, 64], "BK": [96, 48, 128]},
  "launches": [
    {"kernel": "tiles", "range": "ceil_div(a_0, BM) * ceil_div(b_1, BN)", "args": ["a", "b", "output", {"i64": "a_0"}, {"i64": "a_1"}, {"i64": "b_1"}]}] }
*/
/* A product by tiles of tunable sizes, the panel of b packed on the stack and partial sums kept
 * for each block of the inner size. */
#include <stdint.h>
#include <string.h>

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

void tiles(int64_t begin, int64_t end, const KG_T_a *a, const KG_T_b *b, KG_T_output *c, int64_t m,
           int64_t k, int64_t n) {
    float panel[BK][BN], acc[BM][BN];
    const int64_t across = (n + BN - 1) / BN;
    for (int64_t t = begin; t < end; t++) {
        const int64_t i0 = t / across * BM, j0 = t % across * BN;
        const int64_t rows = least(BM, m - i0), cols = least(BN, n - j0);
        memset(acc, 0, sizeof acc);
        for (int64_t p0 = 0; p0 < k; p0 += BK) {
            const int64_t deep = least(BK, k - p0);
            for (int64_t p = 0; p < deep; p++)
                memcpy(panel[p], b + (p0 + p) * n + j0, (size_t)cols * 4);
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < cols; j++) {
                    float sum = 0;
                    for (int64_t p = 0; p < deep; p++)
                        sum += a[(i0 + i) * k + p0 + p] * panel[p][j];
                    acc[i][j] += sum;
                }
        }
        for (int64_t i = 0; i < rows; i++)
            memcpy(c + (i0 + i) * n + j0, acc[i], (size_t)cols * 4);
    }
}
