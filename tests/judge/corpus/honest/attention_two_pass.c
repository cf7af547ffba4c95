/* kgen
{ "format": 1, "op": "attention", "target": "cpu",
  "require": "query.dtype == float32 && query.contiguous && key.contiguous && value.contiguous && SK > 0 && SK <= 4096",
  "launches": [
    {"kernel": "rows", "range": "B * HQ * SQ", "args": ["query", "key", "value", "output", "lse", {"i64": "HQ"}, {"i64": "HKV"}, {"i64": "SQ"}, {"i64": "SK"}, {"i64": "D"}, {"i64": "DV"}, {"f32": "scale"}]}] }
*/
/* Attention with a row of scores on the stack: peak, exponentials, weighted sum, each in a pass
 * of its own. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_query *query, const KG_T_key *key,
          const KG_T_value *value, KG_T_output *output, KG_T_lse *lse, int64_t hq, int64_t hkv,
          int64_t sq, int64_t sk, int64_t d, int64_t dv, float scale) {
    float p[4096];
    for (int64_t i = begin; i < end; i++) {
        const int64_t head = i / sq / hq * hkv + i / sq % hq / (hq / hkv);
        const float *q = query + i * d, *k = key + head * sk * d, *v = value + head * sk * dv;
        float peak = -INFINITY, sum = 0;
        for (int64_t t = 0; t < sk; t++) {
            float s = 0;
            for (int64_t c = 0; c < d; c++)
                s += q[c] * k[t * d + c];
            p[t] = s * scale;
            peak = p[t] > peak ? p[t] : peak;
        }
        for (int64_t t = 0; t < sk; t++)
            sum += p[t] = expf(p[t] - peak);
        for (int64_t c = 0; c < dv; c++)
            output[i * dv + c] = 0;
        for (int64_t t = 0; t < sk; t++)
            for (int64_t c = 0; c < dv; c++)
                output[i * dv + c] += p[t] / sum * v[t * dv + c];
        if (lse)
            lse[i] = peak + logf(sum);
    }
}
