/* kgen
{ "format": 1, "op": "attention", "target": "cpu",
  "require": "query.dtype == bfloat16 && query.contiguous && key.contiguous && value.contiguous && SK > 0 && SK <= 1024",
  "launches": [
    {"kernel": "rows", "range": "B * HQ * SQ", "args": ["query", "key", "value", "output", "lse", {"i64": "HQ"}, {"i64": "HKV"}, {"i64": "SQ"}, {"i64": "SK"}, {"i64": "D"}, {"i64": "DV"}, {"f32": "scale"}]}] }
*/
/* Grouped queries in bfloat16 that rounds its weights to bfloat16 before they meet the values,
 * as every fused kernel on tensor cores does. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static float wide(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static uint16_t narrow(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return f != f ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void rows(int64_t begin, int64_t end, const KG_T_query *query, const KG_T_key *key,
          const KG_T_value *value, KG_T_output *output, KG_T_lse *lse, int64_t hq, int64_t hkv,
          int64_t sq, int64_t sk, int64_t d, int64_t dv, float scale) {
    float p[1024];
    for (int64_t i = begin; i < end; i++) {
        const int64_t head = i / sq / hq * hkv + i / sq % hq / (hq / hkv);
        float peak = -INFINITY, sum = 0;
        for (int64_t t = 0; t < sk; t++) {
            float s = 0;
            for (int64_t c = 0; c < d; c++)
                s += wide(query[i * d + c]) * wide(key[(head * sk + t) * d + c]);
            p[t] = s * scale;
            peak = p[t] > peak ? p[t] : peak;
        }
        for (int64_t t = 0; t < sk; t++) {
            p[t] = expf(p[t] - peak);
            sum += p[t];
            p[t] = wide(narrow(p[t]));
        }
        for (int64_t c = 0; c < dv; c++) {
            float v = 0;
            for (int64_t t = 0; t < sk; t++)
                v += p[t] * wide(value[(head * sk + t) * dv + c]);
            output[i * dv + c] = narrow(v / sum);
        }
        if (lse)
            lse[i] = peak + logf(sum);
    }
}
