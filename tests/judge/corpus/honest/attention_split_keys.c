/* kgen
{ "format": 1, "op": "attention", "target": "cpu",
  "require": "query.dtype == float32 && query.contiguous && key.contiguous && value.contiguous && SK >= 4 && DV <= 256",
  "workspace": {"part": {"dtype": "float32", "shape": ["B * HQ * SQ", "4", "DV + 2"]}},
  "launches": [
    {"kernel": "parts", "range": "B * HQ * SQ * 4", "args": ["query", "key", "value", "part", {"i64": "HQ"}, {"i64": "HKV"}, {"i64": "SQ"}, {"i64": "SK"}, {"i64": "D"}, {"i64": "DV"}, {"f32": "scale"}]},
    {"kernel": "join", "range": "B * HQ * SQ", "args": ["part", "output", "lse", {"i64": "DV"}]}] }
*/
/* Attention with the keys in four parts, as decoding does it: peak, sum and output of each in a
 * workspace, then joined. */
#include <math.h>
#include <stdint.h>

void parts(int64_t begin, int64_t end, const KG_T_query *query, const KG_T_key *key,
           const KG_T_value *value, KG_T_part *part, int64_t hq, int64_t hkv, int64_t sq,
           int64_t sk, int64_t d, int64_t dv, float scale) {
    for (int64_t e = begin; e < end; e++) {
        const int64_t i = e / 4, head = i / sq / hq * hkv + i / sq % hq / (hq / hkv);
        float *out = part + e * (dv + 2), peak = -INFINITY, sum = 0;
        for (int64_t c = 0; c < dv; c++)
            out[c] = 0;
        for (int64_t t = e % 4 * sk / 4; t < (e % 4 + 1) * sk / 4; t++) {
            const float *k = key + (head * sk + t) * d, *v = value + (head * sk + t) * dv;
            float s = 0;
            for (int64_t c = 0; c < d; c++)
                s += query[i * d + c] * k[c];
            s *= scale;
            const float top = s > peak ? s : peak, keep = expf(peak - top), p = expf(s - top);
            sum = sum * keep + p;
            for (int64_t c = 0; c < dv; c++)
                out[c] = out[c] * keep + p * v[c];
            peak = top;
        }
        out[dv] = peak;
        out[dv + 1] = sum;
    }
}

void join(int64_t begin, int64_t end, KG_T_part *part, KG_T_output *output, KG_T_lse *lse,
          int64_t dv) {
    for (int64_t i = begin; i < end; i++) {
        const float *p = part + i * 4 * (dv + 2);
        float peak = -INFINITY, sum = 0, weight[4];
        for (int k = 0; k < 4; k++)
            peak = fmaxf(peak, p[k * (dv + 2) + dv]);
        for (int k = 0; k < 4; k++) {
            weight[k] = expf(p[k * (dv + 2) + dv] - peak);
            sum += weight[k] * p[k * (dv + 2) + dv + 1];
        }
        for (int64_t c = 0; c < dv; c++) {
            float v = 0;
            for (int k = 0; k < 4; k++)
                v += weight[k] * p[k * (dv + 2) + c];
            output[i * dv + c] = v / sum;
        }
        if (lse)
            lse[i] = peak + logf(sum);
    }
}
