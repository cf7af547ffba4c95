/* kgen
{ "format": 1, "op": "swiglu", "target": "cpu",
  "require": "gate.contiguous && up.contiguous",
  "launches": [
    {"kernel": "elements", "range": "gate.numel", "args": ["gate", "up", "output"]}] }
*/
/* silu(a) * b as (a * b) * sigmoid(a), in chunks of one element where the schedule wants them. */
#include <math.h>
#include <stdint.h>

void elements(int64_t begin, int64_t end, const KG_T_gate *a, const KG_T_up *b, KG_T_output *y) {
    for (int64_t i = end - 1; i >= begin; i--)
        y[i] = (a[i] * b[i]) * (1.0f / (1.0f + expf(-a[i])));
}
