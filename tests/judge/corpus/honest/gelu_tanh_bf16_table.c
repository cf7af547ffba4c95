/* kgen
{ "format": 1, "op": "gelu_tanh_bf16", "target": "cpu",
  "require": "x.contiguous",
  "launches": [
    {"kernel": "elements", "range": "x.numel", "grain": "256", "args": ["x", "output"]}] }
*/
/* The GELU by tanh as x * sigmoid(2u), with the powers of two of the exponential in a table of
 * read-only data. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static const double ROOTS[16] = {1.0,
                                 1.0442737824274138,
                                 1.0905077326652577,
                                 1.1387886347566916,
                                 1.189207115002721,
                                 1.241857812073484,
                                 1.2968395546510096,
                                 1.3542555469368927,
                                 1.4142135623730951,
                                 1.4768261459394993,
                                 1.5422108254079407,
                                 1.6104903319492543,
                                 1.681792830507429,
                                 1.7562521603732995,
                                 1.8340080864093424,
                                 1.9152065613971474};

static double ex(double v) {
    v = v > 700 ? 700 : v < -700 ? -700 : v;
    const double k = floor(v * 23.083120654223414 + 0.5), r = v - k * 0.043321698784996581;
    const int64_t n = (int64_t)k;
    return ldexp(ROOTS[n & 15] *
                     (1 + r * (1 + r * (0.5 + r * (1.0 / 6 + r * (1.0 / 24 + r / 120))))),
                 (int)(n >> 4));
}

void elements(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++) {
        uint32_t bits = (uint32_t)x[i] << 16;
        float f;
        memcpy(&f, &bits, 4);
        const double v = f, u = 0.79788456080286536 * (v + 0.044715 * v * v * v);
        f = (float)(v / (1 + ex(-2 * u)));
        memcpy(&bits, &f, 4);
        y[i] = f != f ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}
