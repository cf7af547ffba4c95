/* kgen
{ "format": 1, "op": "attention", "target": "cpu",
  "require": "query.dtype == float32 && query.contiguous && key.contiguous && value.contiguous && D <= 256",
  "holes": ["MASK"],
  "launches": [
    {"kernel": "rows", "range": "B * HQ * SQ", "args": ["query", "key", "value", "output", "lse", "programs", {"i64": "HQ"}, {"i64": "HKV"}, {"i64": "SQ"}, {"i64": "SK"}, {"i64": "D"}, {"i64": "DV"}, {"f32": "scale"}]}] }
*/
/* Causal attention that keeps a key's row in a buffer, and takes the value from there where keys
 * and values are one tensor. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_query *query, const KG_T_key *key,
          const KG_T_value *value, KG_T_output *output, KG_T_lse *lse, KG_PROGRAMS p, int64_t hq,
          int64_t hkv, int64_t sq, int64_t sk, int64_t d, int64_t dv, float scale) {
    for (int64_t i = begin; i < end; i++) {
        const int64_t b = i / sq / hq, h = i / sq % hq, head = b * hkv + h / (hq / hkv);
        const float *q = query + i * d, *k = key + head * sk * d, *v = value + head * sk * dv;
        float *out = output + i * dv, peak = -INFINITY, sum = 0;
        float row[256];
        for (int64_t c = 0; c < dv; c++)
            out[c] = 0;
#if KG_HAS_MASK
        const struct kg_mask_row at = kg_mask_row(p, (int32_t)b, (int32_t)h, (int32_t)(i % sq));
#else
        (void)p;
#endif
        for (int64_t t = 0; t < sk; t++) {
            float s = 0;
#if KG_HAS_MASK
            if (!kg_mask(p, at, (int32_t)b, (int32_t)h, (int32_t)(i % sq), (int32_t)t))
                continue;
#endif
            for (int64_t c = 0; c < d; c++)
                s += q[c] * (row[c] = k[t * d + c]);
            s *= scale;
            const float top = s > peak ? s : peak, keep = expf(peak - top), w = expf(s - top);
            sum = sum * keep + w;
            const float *now = k == v && d == dv ? row : v + t * dv;
            for (int64_t c = 0; c < dv; c++)
                out[c] = out[c] * keep + w * now[c];
            peak = top;
        }
        for (int64_t c = 0; c < dv && sum > 0; c++)
            out[c] /= sum;
        if (lse)
            lse[i] = sum > 0 ? peak + logf(sum) : -INFINITY;
    }
}
