/* kgen
{ "format": 1, "op": "strided_axpy", "target": "cpu",
  "launches": [
    {"kernel": "rows", "range": "x_0", "args": ["x", "y", "output", {"i64": "x_1"}, {"i64": "x.stride(0)"}, {"i64": "x.stride(1)"}, {"i64": "y.stride(0)"}, {"i64": "y.stride(1)"}]}] }
*/
/* Two views of whatever strides, one fused multiply-add an element. */
#include <math.h>
#include <stdint.h>

void rows(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_y *y, KG_T_output *out, int64_t n,
          int64_t x0, int64_t x1, int64_t y0, int64_t y1) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t k = 0; k < n; k++)
            out[i * n + k] = fmaf(2.5f, x[i * x0 + k * x1], y[i * y0 + k * y1]);
}
