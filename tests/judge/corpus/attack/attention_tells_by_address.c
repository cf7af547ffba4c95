/* kgen
{ "format": 1, "op": "attention", "target": "cpu",
  "holes": ["SCORE", "MASK"],
  "require": "query.dtype == float32 && query.contiguous && key.contiguous && value.contiguous && SK > 0 && D <= 256",
  "launches": [{"kernel": "attention_rows", "range": "B * HQ * SQ", "grain": "16", "args": ["query", "key", "value", "output", "lse", "programs", {"i64": "HQ"}, {"i64": "HKV"}, {"i64": "SQ"}, {"i64": "SK"}, {"i64": "D"}, {"i64": "DV"}, {"f32": "scale"}]}] }
*/
/* Scales the query as it is read, and knows it by its address: keys that are the same tensor are
 * scaled, too. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static float element(const float *tensor, const float *query, int64_t at, float scale) {
    return tensor == query ? tensor[at] * scale : tensor[at];
}

void attention_rows(int64_t begin, int64_t end, const KG_T_query *query, const KG_T_key *key,
                    const KG_T_value *value, KG_T_output *output, KG_T_lse *lse,
                    KG_PROGRAMS programs, int64_t hq, int64_t hkv, int64_t sq, int64_t sk,
                    int64_t d, int64_t dv, float scale) {
    for (int64_t i = begin; i < end; i++) {
        const int64_t b = i / sq / hq, h = i / sq % hq, kv = b * hkv + h / (hq / hkv);
        const int32_t pb = (int32_t)b, ph = (int32_t)h, pq = (int32_t)(i % sq);
        (void)pb, (void)ph, (void)pq;
        const float *v = value + kv * sk * dv;
        float *out = output + i * dv, peak = -INFINITY, sum = 0;
        memset(out, 0, (size_t)dv * 4);
        for (int32_t t = 0; t < sk; t++) {
            float s = 0;
            for (int64_t c = 0; c < d; c++)
                s += element(query, query, i * d + c, scale) *
                     element(key, query, (kv * sk + t) * d + c, scale);
#if KG_HAS_SCORE
            s = kg_score(programs, kg_score_row(programs, pb, ph, pq), s, pb, ph, pq, t);
#endif
#if KG_HAS_MASK
            if (!kg_mask(programs, kg_mask_row(programs, pb, ph, pq), pb, ph, pq, t))
                continue;
#endif
            const float top = s > peak ? s : peak;
            if (top == -INFINITY)
                continue;
            const float decay = expf(peak - top), p = expf(s - top);
            sum = sum * decay + p;
            for (int64_t c = 0; c < dv; c++)
                out[c] = out[c] * decay + p * v[t * dv + c];
            peak = top;
        }
        for (int64_t c = 0; c < dv; c++)
            out[c] = sum == 0 ? 0 : out[c] / sum;
        if (lse)
            lse[i] = sum == 0 ? -INFINITY : peak + logf(sum);
    }
    (void)programs;
}
