/* kgen
{ "format": 1, "op": "strided_axpy", "target": "cpu",
  "launches": [
    {"kernel": "flat", "range": "x.numel", "grain": "64", "when": "x.contiguous && y.contiguous", "args": ["x", "y", "output"]},
    {"kernel": "views", "range": "x_0 * x_1", "grain": "64", "when": "!(x.contiguous && y.contiguous)", "args": ["x", "y", "output", {"i64": "x_1"}, {"i64": "x.stride(0)"}, {"i64": "x.stride(1)"}, {"i64": "y.stride(0)"}, {"i64": "y.stride(1)"}]}] }
*/
/* Two kernels of which the plan's conditions take one, here the one for views. */
#include <stdint.h>

void flat(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_y *y, KG_T_output *out) {
    for (int64_t i = begin; i < end; i++)
        out[i] = 2.5f * x[i] + y[i];
}

void views(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_y *y, KG_T_output *out,
           int64_t n, int64_t x0, int64_t x1, int64_t y0, int64_t y1) {
    for (int64_t i = begin; i < end; i++)
        out[i] = 2.5f * x[i / n * x0 + i % n * x1] + y[i / n * y0 + i % n * y1];
}
