/* kgen
{ "format": 1, "op": "adamw", "target": "cpu",
  "launches": [
    {"kernel": "moments", "range": "p_0", "grain": "64", "args": ["g", "m", "v", "output1", "output2"]},
    {"kernel": "step", "range": "p_0", "grain": "64", "args": ["p", "output1", "output2", "output0"]}] }
*/
/* A step of AdamW in two launches, the moments by interpolation and the quotient in fp64. */
#include <math.h>
#include <stdint.h>

void moments(int64_t begin, int64_t end, const KG_T_g *g, const KG_T_m *m, const KG_T_v *v,
             KG_T_output1 *nm, KG_T_output2 *nv) {
    for (int64_t i = begin; i < end; i++) {
        nm[i] = m[i] + 0.1f * (g[i] - m[i]);
        nv[i] = v[i] + 0.001f * (g[i] * g[i] - v[i]);
    }
}

void step(int64_t begin, int64_t end, const KG_T_p *p, KG_T_output1 *m, KG_T_output2 *v,
          KG_T_output0 *np) {
    for (int64_t i = begin; i < end; i++)
        np[i] = (float)(p[i] * 0.999 - 1e-2 * m[i] / (sqrt(v[i] * 1e3) + 1e-8));
}
