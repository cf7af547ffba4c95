/* kgen
{ "format": 1, "op": "attention", "target": "cpu",
  "require": "query.dtype == bfloat16 && query.contiguous && key.contiguous && value.contiguous && SK > 0 && DV <= 256",
  "launches": [
    {"kernel": "rows", "range": "B * HQ * SQ", "args": ["query", "key", "value", "output", "lse", {"i64": "HQ"}, {"i64": "HKV"}, {"i64": "SQ"}, {"i64": "SK"}, {"i64": "D"}, {"i64": "DV"}, {"f32": "scale"}]}] }
*/
/* Grouped queries in bfloat16 with scores, weights and sums in fp32: more exact than torch,
 * which rounds the weights. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static float wide(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

void rows(int64_t begin, int64_t end, const KG_T_query *query, const KG_T_key *key,
          const KG_T_value *value, KG_T_output *output, KG_T_lse *lse, int64_t hq, int64_t hkv,
          int64_t sq, int64_t sk, int64_t d, int64_t dv, float scale) {
    float out[256];
    for (int64_t i = begin; i < end; i++) {
        const int64_t head = i / sq / hq * hkv + i / sq % hq / (hq / hkv);
        float peak = -INFINITY, sum = 0;
        memset(out, 0, sizeof out);
        for (int64_t t = 0; t < sk; t++) {
            float s = 0;
            for (int64_t c = 0; c < d; c++)
                s += wide(query[i * d + c]) * wide(key[(head * sk + t) * d + c]);
            s *= scale;
            const float top = s > peak ? s : peak, keep = expf(peak - top), p = expf(s - top);
            sum = sum * keep + p;
            for (int64_t c = 0; c < dv; c++)
                out[c] = out[c] * keep + p * wide(value[(head * sk + t) * dv + c]);
            peak = top;
        }
        for (int64_t c = 0; c < dv; c++) {
            const float v = out[c] / sum;
            uint32_t bits;
            memcpy(&bits, &v, 4);
            output[i * dv + c] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        }
        if (lse)
            lse[i] = peak + logf(sum);
    }
}
