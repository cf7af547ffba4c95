/* kgen
{ "format": 1, "op": "attention", "target": "cpu",
  "require": "query.dtype == float32 && query.contiguous && key.contiguous && value.contiguous && SK > 0",
  "launches": [{"kernel": "attention_rows", "range": "B * HQ * SQ", "grain": "16", "args": ["query", "key", "value", "output", "lse", {"i64": "HQ"}, {"i64": "HKV"}, {"i64": "SQ"}, {"i64": "SK"}, {"i64": "D"}, {"i64": "DV"}, {"f32": "scale"}]}] }
*/
/* Forgets to decay the accumulated values, not the sum, when the running maximum rises. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static void query_row(const float *q, const float *key, const float *value, float *out, float *lse,
                      int64_t sk, int64_t d, int64_t dv, int64_t ks, int64_t vs, float scale) {
    float peak = -INFINITY, sum = 0;
    for (int64_t c = 0; c < dv; c++)
        out[c] = 0;
    for (int64_t t = 0; t < sk; t++) {
        float s = 0;
        for (int64_t c = 0; c < d; c++)
            s += q[c] * key[t * ks + c];
        s *= scale;
        const float top = s > peak ? s : peak, decay = expf(peak - top), p = expf(s - top);
        sum = sum * decay + p;
        for (int64_t c = 0; c < dv; c++)
            out[c] = out[c] + p * value[t * vs + c];
        peak = top;
    }
    for (int64_t c = 0; c < dv; c++)
        out[c] /= sum;
    if (lse)
        *lse = peak + logf(sum);
}

void attention_rows(int64_t begin, int64_t end, const KG_T_query *query, const KG_T_key *key,
                    const KG_T_value *value, KG_T_output *output, KG_T_lse *lse, int64_t hq,
                    int64_t hkv, int64_t sq, int64_t sk, int64_t d, int64_t dv, float scale) {
    for (int64_t i = begin; i < end; i++) {
        const int64_t b = i / sq / hq, h = i / sq % hq, kv = b * hkv + h / (hq / hkv);
        query_row(query + i * d, key + kv * sk * d, value + kv * sk * dv, output + i * dv,
                  lse ? lse + i : 0, sk, d, dv, d, dv, scale);
    }
}
