/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "require": "input.dtype == float32 && K == 1 && input.contiguous",
  "tunables": {"PARTS": [4, 2, 8]},
  "workspace": {"peaks": {"dtype": "float32", "shape": ["M", "PARTS"]}, "sums": {"dtype": "float32", "shape": ["M", "PARTS"]}},
  "launches": [
    {"kernel": "partial", "range": "M * PARTS", "args": ["input", "peaks", "sums", {"i64": "N"}]},
    {"kernel": "write", "range": "M * PARTS", "args": ["input", "peaks", "sums", "output", {"i64": "N"}]}] }
*/
/* Softmax of rows in parts: each part leaves its peak and its sum, and a second launch joins
 * them for every part anew. */
#include <math.h>
#include <stdint.h>

void partial(int64_t begin, int64_t end, const KG_T_input *x, KG_T_peaks *p, KG_T_sums *s,
             int64_t n) {
    for (int64_t t = begin; t < end; t++) {
        const float *r = x + t / PARTS * n;
        const int64_t first = t % PARTS * n / PARTS, last = (t % PARTS + 1) * n / PARTS;
        float peak = -INFINITY, sum = 0;
        for (int64_t k = first; k < last; k++)
            peak = r[k] > peak ? r[k] : peak;
        for (int64_t k = first; k < last; k++)
            sum += r[k] == -INFINITY ? 0 : expf(r[k] - peak);
        p[t] = peak;
        s[t] = sum;
    }
}

void write(int64_t begin, int64_t end, const KG_T_input *x, KG_T_peaks *p, KG_T_sums *s,
           KG_T_output *y, int64_t n) {
    for (int64_t t = begin; t < end; t++) {
        const int64_t row = t / PARTS, first = t % PARTS * n / PARTS,
                      last = (t % PARTS + 1) * n / PARTS;
        float peak = -INFINITY, sum = 0;
        for (int64_t q = 0; q < PARTS; q++)
            peak = fmaxf(peak, p[row * PARTS + q]);
        for (int64_t q = 0; q < PARTS; q++)
            sum +=
                s[row * PARTS + q] == 0 ? 0 : s[row * PARTS + q] * expf(p[row * PARTS + q] - peak);
        for (int64_t k = first; k < last; k++)
            y[row * n + k] = expf(x[row * n + k] - peak) / sum;
    }
}
