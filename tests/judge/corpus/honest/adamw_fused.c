/* kgen
{ "format": 1, "op": "adamw", "target": "cpu",
  "launches": [
    {"kernel": "elements", "range": "p_0", "grain": "128", "args": ["p", "g", "m", "v", "output0", "output1", "output2"]}] }
*/
/* A step of AdamW in one loop with four inputs and three outputs. */
#include <math.h>
#include <stdint.h>

void elements(int64_t begin, int64_t end, const KG_T_p *p, const KG_T_g *g, const KG_T_m *m,
              const KG_T_v *v, KG_T_output0 *np, KG_T_output1 *nm, KG_T_output2 *nv) {
    for (int64_t i = begin; i < end; i++) {
        nm[i] = 0.9f * m[i] + 0.1f * g[i];
        nv[i] = 0.999f * v[i] + 0.001f * g[i] * g[i];
        np[i] = p[i] * 0.999f - 1e-3f * (nm[i] / 0.1f) / (sqrtf(nv[i] / 0.001f) + 1e-8f);
    }
}
