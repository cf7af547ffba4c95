/* kgen
{ "format": 1, "op": "cross_entropy", "target": "cpu",
  "require": "logits.contiguous",
  "workspace": {"losses": {"dtype": "float32", "shape": ["logits_0"]}},
  "launches": [
    {"kernel": "rows", "range": "logits_0", "args": ["logits", "target", "losses", {"i64": "logits_1"}]},
    {"kernel": "mean", "range": "1", "args": ["losses", "output", {"i64": "logits_0"}]}] }
*/
/* Cross entropy: the loss of each row into a workspace, then their mean as one number. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_logits *x, const KG_T_target *t, KG_T_losses *l,
          int64_t n) {
    for (int64_t i = begin; i < end; i++) {
        float peak = -INFINITY, sum = 0;
        for (int64_t k = 0; k < n; k++)
            peak = fmaxf(peak, x[i * n + k]);
        for (int64_t k = 0; k < n; k++)
            sum += expf(x[i * n + k] - peak);
        l[i] = logf(sum) - (x[i * n + t[i]] - peak);
    }
}

void mean(int64_t begin, int64_t end, KG_T_losses *l, KG_T_output *y, int64_t m) {
    for (int64_t once = begin; once < end; once++) {
        float sum = 0;
        for (int64_t i = 0; i < m; i++)
            sum += l[i];
        y[0] = sum / (float)m;
    }
}
