/* kgen
{ "format": 1, "op": "cross_entropy", "target": "cpu",
  "require": "logits.contiguous",
  "launches": [
    {"kernel": "all", "range": "1", "args": ["logits", "target", "output", {"i64": "logits_0"}, {"i64": "logits_1"}]}] }
*/
/* Cross entropy in one pass over the logits with a running maximum, all in one call. */
#include <math.h>
#include <stdint.h>

void all(int64_t begin, int64_t end, const KG_T_logits *x, const KG_T_target *t, KG_T_output *y,
         int64_t m, int64_t n) {
    for (int64_t once = begin; once < end; once++) {
        double total = 0;
        for (int64_t i = m - 1; i >= 0; i--) {
            double peak = -INFINITY, sum = 0;
            for (int64_t k = 0; k < n; k++) {
                const double v = x[i * n + k], top = v > peak ? v : peak;
                sum = sum * exp(peak - top) + exp(v - top);
                peak = top;
            }
            total += peak + log(sum) - x[i * n + t[i]];
        }
        y[0] = (float)(total / (double)m);
    }
}
