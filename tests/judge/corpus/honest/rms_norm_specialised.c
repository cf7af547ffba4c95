/* kgen
{ "format": 1, "op": "rms_norm", "target": "cpu",
  "require": "x.contiguous",
  "specialize": ["x_1"],
  "tunables": {"LANES": [8, 16, 4]},
  "launches": [
    {"kernel": "rows", "range": "x_0", "grain": "2", "args": ["x", "weight", "output", {"i64": "x_1"}]}] }
*/
/* RMSNorm with the row's length a constant where it may be and a tunable number of chains. */
#include <math.h>
#include <stdint.h>

#if KG_EXACT_x_1
#define LENGTH x_1
#else
#define LENGTH n
#endif

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_weight *w, KG_T_output *y,
          int64_t n) {
    (void)n;
    for (int64_t i = begin; i < end; i++) {
        const float *r = x + i * LENGTH;
        float square[LANES] = {0}, sum = 0;
        int64_t k = 0;
        for (; k + LANES <= LENGTH; k += LANES)
            for (int l = 0; l < LANES; l++)
                square[l] += r[k + l] * r[k + l];
        for (; k < LENGTH; k++)
            sum += r[k] * r[k];
        for (int l = 0; l < LANES; l++)
            sum += square[l];
        const float scale = 1.0f / sqrtf(sum / (float)LENGTH + 1e-6f);
        for (k = 0; k < LENGTH; k++)
            y[i * LENGTH + k] = w[k] * (r[k] * scale);
    }
}
