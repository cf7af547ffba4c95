/* kgen
{ "format": 1, "op": "matmul", "target": "cpu",
  "require": "a.contiguous && b.contiguous",
  "workspace": {"ah": {"dtype": "float16", "shape": ["2", "a_0", "a_1"]}, "bh": {"dtype": "float16", "shape": ["2", "b_0", "b_1"]}, "sa": {"dtype": "int32", "shape": ["a_0"]}, "sb": {"dtype": "int32", "shape": ["b_1"]}},
  "launches": [
    {"kernel": "split_a", "range": "a_0", "args": ["a", "ah", "sa", {"i64": "a_0"}, {"i64": "a_1"}]},
    {"kernel": "split_b", "range": "b_1", "args": ["b", "bh", "sb", {"i64": "b_0"}, {"i64": "b_1"}]},
    {"kernel": "product", "range": "a_0", "args": ["ah", "bh", "sa", "sb", "output", {"i64": "a_0"}, {"i64": "a_1"}, {"i64": "b_1"}]}] }
*/
/* An fp32 product through fp16: each row and column is scaled by a power of two and split into a
 * high and a low half, the three products that count are added in fp32 (22 bits of each factor). */
#include <math.h>
#include <stdint.h>

static int exponent(float peak) {
    return peak > 0 && isfinite(peak) ? ilogbf(peak) : 0;
}

static void halves(float v, int e, _Float16 *high, _Float16 *low) {
    const float s = ldexpf(v, -e);
    *high = (_Float16)s;
    *low = (_Float16)((s - (float)*high) * 2048.0f);
}

void split_a(int64_t begin, int64_t end, const KG_T_a *a, KG_T_ah *h, KG_T_sa *s, int64_t m,
             int64_t k) {
    for (int64_t i = begin; i < end; i++) {
        float peak = 0;
        for (int64_t p = 0; p < k; p++)
            peak = fmaxf(peak, fabsf(a[i * k + p]));
        s[i] = exponent(peak);
        for (int64_t p = 0; p < k; p++)
            halves(a[i * k + p], s[i], h + i * k + p, h + (m + i) * k + p);
    }
}

void split_b(int64_t begin, int64_t end, const KG_T_b *b, KG_T_bh *h, KG_T_sb *s, int64_t k,
             int64_t n) {
    for (int64_t j = begin; j < end; j++) {
        float peak = 0;
        for (int64_t p = 0; p < k; p++)
            peak = fmaxf(peak, fabsf(b[p * n + j]));
        s[j] = exponent(peak);
        for (int64_t p = 0; p < k; p++)
            halves(b[p * n + j], s[j], h + p * n + j, h + (k + p) * n + j);
    }
}

void product(int64_t begin, int64_t end, KG_T_ah *a, KG_T_bh *b, KG_T_sa *sa, KG_T_sb *sb,
             KG_T_output *c, int64_t m, int64_t k, int64_t n) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < n; j++) {
            float main = 0, cross = 0;
            for (int64_t p = 0; p < k; p++) {
                const float ah = (float)a[i * k + p], al = (float)a[(m + i) * k + p];
                const float bh = (float)b[p * n + j], bl = (float)b[(k + p) * n + j];
                main += ah * bh;
                cross += ah * bl + al * bh;
            }
            c[i * n + j] = ldexpf(main + cross * 0x1p-11f, sa[i] + sb[j]);
        }
}
