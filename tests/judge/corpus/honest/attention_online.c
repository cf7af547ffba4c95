/* kgen
{ "format": 1, "op": "attention", "target": "cpu",
  "require": "query.dtype == float32 && query.contiguous && key.contiguous && value.contiguous && SK > 0",
  "launches": [
    {"kernel": "rows", "range": "B * HQ * SQ", "grain": "4", "args": ["query", "key", "value", "output", "lse", {"i64": "HQ"}, {"i64": "HKV"}, {"i64": "SQ"}, {"i64": "SK"}, {"i64": "D"}, {"i64": "DV"}, {"f32": "scale"}]}] }
*/
/* Attention by the online recurrence, key after key from the last to the first, the scale on the
 * query. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_query *query, const KG_T_key *key,
          const KG_T_value *value, KG_T_output *output, KG_T_lse *lse, int64_t hq, int64_t hkv,
          int64_t sq, int64_t sk, int64_t d, int64_t dv, float scale) {
    for (int64_t i = begin; i < end; i++) {
        const int64_t head = i / sq / hq * hkv + i / sq % hq / (hq / hkv);
        const float *q = query + i * d, *k = key + head * sk * d, *v = value + head * sk * dv;
        float *out = output + i * dv, peak = -INFINITY, sum = 0;
        for (int64_t c = 0; c < dv; c++)
            out[c] = 0;
        for (int64_t t = sk - 1; t >= 0; t--) {
            float s = 0;
            for (int64_t c = 0; c < d; c++)
                s += (q[c] * scale) * k[t * d + c];
            const float top = s > peak ? s : peak, keep = expf(peak - top), p = expf(s - top);
            sum = sum * keep + p;
            for (int64_t c = 0; c < dv; c++)
                out[c] = out[c] * keep + p * v[t * dv + c];
            peak = top;
        }
        for (int64_t c = 0; c < dv; c++)
            out[c] /= sum;
        if (lse)
            lse[i] = peak + logf(sum);
    }
}
