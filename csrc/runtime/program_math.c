/* The C text of what a lowered Program calls: exp, tanh and their kin, integer division, look-ups.
 *
 * On the CPU every function is branch-free and in float or int lanes as far as it goes, so that a
 * loop over kv vectorises; errors are at most 4 ulp over all of float, denormals, infinities and
 * NaN included (the tests measure it). The polynomials are our own: least squares on Chebyshev
 * nodes of the relative error, reweighted (Lawson) until it is level, then rounded to the working
 * type. On CUDA they are the device's own functions, with the accuracy that torch
 * has there. No header is needed by any of the text. */
#include "runtime/program_ir.h"

static const char CPU_BASE[] =
    "#define KG_FN static inline __attribute__((always_inline, unused))\n"
    "#define KG_COLD static inline __attribute__((unused))\n"
    "KG_FN float kg_as_f32(int i) { union { int i; float f; } u = {.i = i}; return u.f; }\n"
    "KG_FN int kg_as_i32(float f) { union { float f; int i; } u = {.f = f}; return u.i; }\n";

static const char CUDA_BASE[] = "#define KG_FN static __device__ __forceinline__\n"
                                "#define KG_COLD static __device__ __forceinline__\n"
                                "KG_FN float kg_as_f32(int i) { return __int_as_float(i); }\n"
                                "KG_FN int kg_as_i32(float f) { return __float_as_int(f); }\n";

/* p 2^n in two exact steps, so that only a denormal result is rounded. */
static const char POW2I[] =
    "KG_FN float kg_pow2i(float p, int n) {\n"
    "    int half = n >> 1, rest = n - half;\n"
    "    return p * kg_as_f32((half + 127) << 23) * kg_as_f32((rest + 127) << 23);\n"
    "}\n";

static const char EXPF[] = "KG_FN float kg_expf(float x) {\n"
                           "    float c = x > 89.0f ? 89.0f : x;\n"
                           "    c = c < -104.0f ? -104.0f : c;\n"
                           "    float t = c * 0x1.715476p+0f + 0x1.8p+23f;\n"
                           "    int n = (kg_as_i32(t) & 0x7fffff) - 0x400000;\n"
                           "    float k = t - 0x1.8p+23f;\n"
                           "    float r = c - k * 0x1.62e4p-1f;\n"
                           "    r = r - k * 0x1.7f7d1cp-20f;\n"
                           "    float p = 0x1.6a234ep-10f;\n"
                           "    p = p * r + 0x1.123a6cp-7f;\n"
                           "    p = p * r + 0x1.5558f4p-5f;\n"
                           "    p = p * r + 0x1.555490p-3f;\n"
                           "    p = p * r + 0x1.fffffcp-2f;\n"
                           "    p = p * (r * r) + r;\n"
                           "    return kg_pow2i(1.0f + p, n);\n"
                           "}\n";

static const char EXP2F[] = "KG_FN float kg_exp2f(float x) {\n"
                            "    float c = x > 129.0f ? 129.0f : x;\n"
                            "    c = c < -151.0f ? -151.0f : c;\n"
                            "    float t = c + 0x1.8p+23f;\n"
                            "    int n = (kg_as_i32(t) & 0x7fffff) - 0x400000;\n"
                            "    float r = c - (t - 0x1.8p+23f);\n"
                            "    float p = 0x1.41fb2cp-13f;\n"
                            "    p = p * r + 0x1.5f3f32p-10f;\n"
                            "    p = p * r + 0x1.3b2d50p-7f;\n"
                            "    p = p * r + 0x1.c6aee6p-5f;\n"
                            "    p = p * r + 0x1.ebfbdcp-3f;\n"
                            "    p = p * r + 0x1.62e430p-1f;\n"
                            "    p = p * r + 1.0f;\n"
                            "    return kg_pow2i(p, n);\n"
                            "}\n";

/* (e^2a - 1) / (e^2a + 1) for a = |x|, from p = e^r - 1 with 2a = k log 2 + r; beyond 10 tanh is 1.
 */
static const char TANHF[] =
    "KG_FN float kg_tanhf(float x) {\n"
    "    float a = kg_as_f32(kg_as_i32(x) & 0x7fffffff);\n"
    "    a = a > 10.0f ? 10.0f : a;\n"
    "    float t = a * 0x1.715476p+1f + 0x1.8p+23f;\n"
    "    float k = t - 0x1.8p+23f;\n"
    "    float r = (a + a) - k * 0x1.62e430p-1f;\n"
    "    float p = 0x1.6bebe8p-10f;\n"
    "    p = p * r + 0x1.1227f8p-7f;\n"
    "    p = p * r + 0x1.555674p-5f;\n"
    "    p = p * r + 0x1.5554b0p-3f;\n"
    "    p = p * r + 0x1.fffffep-2f;\n"
    "    p = p * (r * r) + r;\n"
    "    float s = kg_as_f32((int)((unsigned)kg_as_i32(t) << 23) + 0x3f800000);\n"
    "    float e = s * p + (s - 1.0f);\n"
    "    float y = e / (e + 2.0f);\n"
    "    return kg_as_f32(kg_as_i32(y) | (kg_as_i32(x) & (-2147483647 - 1)));\n"
    "}\n";

/* kg_split: y = 2^e * m, m in [sqrt(1/2), sqrt(2)), for positive y, denormals included. */
static const char SPLIT[] =
    "struct kg_parts { float m, e; };\n"
    "KG_FN struct kg_parts kg_split(float x) {\n"
    "    int tiny = x < 0x1p-126f;\n"
    "    float y = tiny ? x * 0x1p+23f : x;\n"
    "    int i = kg_as_i32(y);\n"
    "    int e = (int)((unsigned)i - 0x3f3504f3u) >> 23;\n"
    "    struct kg_parts r;\n"
    "    r.m = kg_as_f32((int)((unsigned)i - ((unsigned)e << 23)));\n"
    "    r.e = (float)(tiny ? e - 23 : e);\n"
    "    return r;\n"
    "}\n"
    "KG_FN float kg_log_ends(float x, float r) {\n"
    "    r = x > 0.0f ? r : (x == 0.0f ? -kg_as_f32(0x7f800000) : kg_as_f32(0x7fc00000));\n"
    "    return x == kg_as_f32(0x7f800000) ? x : r;\n"
    "}\n";

static const char LOGF[] = "KG_FN float kg_logf(float x) {\n"
                           "    struct kg_parts s = kg_split(x);\n"
                           "    float f = s.m - 1.0f;\n"
                           "    float p = 0x1.65c2dcp-4f;\n"
                           "    p = p * f - 0x1.269c20p-3f;\n"
                           "    p = p * f + 0x1.324dc0p-3f;\n"
                           "    p = p * f - 0x1.53272cp-3f;\n"
                           "    p = p * f + 0x1.98b440p-3f;\n"
                           "    p = p * f - 0x1.0005a0p-2f;\n"
                           "    p = p * f + 0x1.55579cp-2f;\n"
                           "    p = p * f - 0x1.fffff8p-2f;\n"
                           "    p = p * f + 1.0f;\n"
                           "    float r = s.e * 0x1.62e4p-1f + (s.e * 0x1.7f7d1cp-20f + p * f);\n"
                           "    return kg_log_ends(x, r);\n"
                           "}\n";

static const char LOG2F[] = "KG_FN float kg_log2f(float x) {\n"
                            "    struct kg_parts s = kg_split(x);\n"
                            "    float f = s.m - 1.0f;\n"
                            "    float p = 0x1.0211f4p-3f;\n"
                            "    p = p * f - 0x1.a9083cp-3f;\n"
                            "    p = p * f + 0x1.b9e722p-3f;\n"
                            "    p = p * f - 0x1.e94b5ap-3f;\n"
                            "    p = p * f + 0x1.26d154p-2f;\n"
                            "    p = p * f - 0x1.715c94p-2f;\n"
                            "    p = p * f + 0x1.ec73e8p-2f;\n"
                            "    p = p * f - 0x1.715470p-1f;\n"
                            "    p = p * f + 0x1.715476p+0f;\n"
                            "    return kg_log_ends(x, s.e + p * f);\n"
                            "}\n";

static const char SIGMOIDF[] = "KG_FN float kg_sigmoidf(float x) {\n"
                               "    float e = kg_expf(-__builtin_fabsf(x));\n"
                               "    return (x < 0.0f ? e : 1.0f) / (1.0f + e);\n"
                               "}\n";

/* x (1 + Q(x^2)) up to 1; beyond, 1 - exp(R(|x|)), and from 4 on 1. For both targets. */
static const char ERFF[] = "KG_FN float kg_erff(float x) {\n"
                           "    float a = kg_as_f32(kg_as_i32(x) & 0x7fffffff), s = x * x;\n"
                           "    float q = 0x1.496a30p-14f;\n"
                           "    q = q * s - 0x1.a3f700p-11f;\n"
                           "    q = q * s + 0x1.5405b2p-8f;\n"
                           "    q = q * s - 0x1.b7f90ep-6f;\n"
                           "    q = q * s + 0x1.ce2cf8p-4f;\n"
                           "    q = q * s - 0x1.81273ep-2f;\n"
                           "    q = q * s + 0x1.06eba8p-3f;\n"
                           "    float t = a > 4.0f ? 4.0f : a;\n"
                           "    float r = 0x1.b9bfdcp-13f;\n"
                           "    r = r * t - 0x1.a1b802p-9f;\n"
                           "    r = r * t + 0x1.75879ep-6f;\n"
                           "    r = r * t - 0x1.ae8e3cp-4f;\n"
                           "    r = r * t - 0x1.458bb4p-1f;\n"
                           "    r = r * t - 0x1.20e412p+0f;\n"
                           "    float y = 1.0f - kg_expf(r * t);\n"
                           "    y = kg_as_f32(kg_as_i32(y) | (kg_as_i32(x) & (-2147483647 - 1)));\n"
                           "    return a > 1.0f ? y : x + x * q;\n"
                           "}\n";

static const char ROUNDING[] =
    "KG_FN float kg_sqrtf(float x) { return __builtin_sqrtf(x); }\n"
    "KG_FN float kg_rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }\n"
    "KG_FN float kg_floorf(float x) { return __builtin_floorf(x); }\n"
    "KG_FN float kg_ceilf(float x) { return __builtin_ceilf(x); }\n";

/* |x| = m 2^(e-23) with m of 24 bits; row e of the table holds (2^(e-23) 2/pi) mod 4 in three
 * pieces of 28, 28 and 27 bits, so that m times the first two is exact: the argument is reduced
 * exactly over all of float. x is then n quarter turns and a in [-pi/4, pi/4]. */
static const char TRIG[] =
    "struct kg_turn { float a; int n, bad; };\n"
    "KG_FN struct kg_turn kg_reduce(float x) {\n"
    "    int i = kg_as_i32(x) & 0x7fffffff, e = (i >> 23) - 127;\n"
    "    double m = e >= 0 ? (double)((i & 0x7fffff) | 0x800000) : (double)kg_as_f32(i) * "
    "0x1p+23;\n"
    "    int row = e < 0 ? 0 : e;\n"
    "    row = row > 127 ? 127 : row;\n"
    "    double p = m * ((double)kg_two_over_pi[3 * row] * 0x1p-26);\n"
    "    double low = m * ((double)kg_two_over_pi[3 * row + 1] * 0x1p-54);\n"
    "    p = p - ((p + 0x1.8p+54) - 0x1.8p+54);\n"
    "    double n = ((p + low) + 0x1.8p+52) - 0x1.8p+52;\n"
    "    double f = (p - n) + low;\n"
    "    f = f + m * ((double)kg_two_over_pi[3 * row + 2] * 0x1p-81);\n"
    "    struct kg_turn t = {(float)(f * 0x1.921fb54442d18p+0), (int)n, e > 127};\n"
    "    return t;\n"
    "}\n"
    "KG_FN float kg_quarter(struct kg_turn t, int n) {\n"
    "    float u = t.a * t.a;\n"
    "    float s = -0x1.994220p-13f;\n"
    "    s = s * u + 0x1.110736p-7f;\n"
    "    s = s * u - 0x1.555546p-3f;\n"
    "    s = s * u * t.a + t.a;\n"
    "    float c = 0x1.99ea02p-16f;\n"
    "    c = c * u - 0x1.6c0c2ep-10f;\n"
    "    c = c * u + 0x1.55554ap-5f;\n"
    "    c = c * u - 0.5f;\n"
    "    c = c * u + 1.0f;\n"
    "    float r = n & 1 ? c : s;\n"
    "    r = n & 2 ? -r : r;\n"
    "    return t.bad ? kg_as_f32(0x7fc00000) : r;\n"
    "}\n"
    "KG_FN float kg_sinf(float x) {\n"
    "    struct kg_turn t = kg_reduce(x);\n"
    "    float r = kg_quarter(t, t.n);\n"
    "    return kg_as_i32(x) < 0 ? -r : r;\n"
    "}\n"
    "KG_FN float kg_cosf(float x) {\n"
    "    struct kg_turn t = kg_reduce(x);\n"
    "    return kg_quarter(t, t.n + 1);\n"
    "}\n";

/* 2^(y log2 |x|) in double, then the signs and the cases that C99 lists. */
static const char POWF[] =
    "KG_FN float kg_powf(float x, float y) {\n"
    "    const float inf = kg_as_f32(0x7f800000);\n"
    "    float ax = __builtin_fabsf(x), ay = __builtin_fabsf(y);\n"
    "    struct kg_parts d = kg_split(ax);\n"
    "    double m = (double)d.m, s = (m - 1.0) / (m + 1.0), u = s * s;\n"
    "    double l = 0x1.21bda962f90c2p-2;\n"
    "    l = l * u + 0x1.47947a1569440p-2;\n"
    "    l = l * u + 0x1.a61a33f22ae6ap-2;\n"
    "    l = l * u + 0x1.2776c28cfaff3p-1;\n"
    "    l = l * u + 0x1.ec709dc541b1ep-1;\n"
    "    l = l * u + 0x1.71547652b824ep+1;\n"
    "    l = l * s + (double)d.e;\n"
    "    l = ax > 0.0f ? l : -0x1p+200;\n"
    "    l = ax == inf ? 0x1p+200 : l;\n"
    "    double t = l * (double)y;\n"
    "    t = t > 140.0 ? 140.0 : t;\n"
    "    t = t < -160.0 ? -160.0 : t;\n"
    "    double k = (t + 0x1.8p+52) - 0x1.8p+52, r = t - k;\n"
    "    double p = 0x1.61aed70189000p-20;\n"
    "    p = p * r + 0x1.00daea619b300p-16;\n"
    "    p = p * r + 0x1.430acdd64f2c0p-13;\n"
    "    p = p * r + 0x1.5d874814b6250p-10;\n"
    "    p = p * r + 0x1.3b2ab5c444f40p-7;\n"
    "    p = p * r + 0x1.c6b08dd48a59cp-5;\n"
    "    p = p * r + 0x1.ebfbdff932718p-3;\n"
    "    p = p * r + 0x1.62e42fef860a8p-1;\n"
    "    p = p * r + 1.0;\n"
    "    float v = kg_pow2i((float)p, (int)k);\n"
    "    int whole = __builtin_floorf(y) == y;\n"
    "    float half = y * 0.5f;\n"
    "    int odd = whole & (__builtin_floorf(half) != half) & (ay < 0x1p+24f);\n"
    "    v = (odd & (kg_as_i32(x) < 0)) ? -v : v;\n"
    "    v = ((x < 0.0f) & (ax < inf) & !whole) ? kg_as_f32(0x7fc00000) : v;\n"
    "    v = ((x != x) | (y != y)) ? x + y : v;\n"
    "    return ((x == 1.0f) | (y == 0.0f) | ((ax == 1.0f) & (ay == inf))) ? 1.0f : v;\n"
    "}\n";

/* The remainder of a / b is exact up to quotients of 2^52; beyond, it is 0 and the quotient a / b.
 */
static const char FLOAT_DIVISION[] =
    "KG_FN float kg_remf(float a, float b) {\n"
    "    double x = (double)a, y = (double)b, d = x / y;\n"
    "    double q = __builtin_floor(d);\n"
    "    double r = __builtin_fma(-q, y, x);\n"
    "    r = ((r != 0.0) & ((r < 0.0) != (y < 0.0))) ? r + y : r;\n"
    "    r = __builtin_fabs(d) < 0x1p+52 ? r : d - d;\n"
    "    float inf = kg_as_f32(0x7f800000), c = __builtin_fabsf(b) == inf ? b : 0.0f;\n"
    "    int through = (c != 0.0f) & (a == a) & (__builtin_fabsf(a) < inf);\n"
    "    float far = ((a == 0.0f) | ((a < 0.0f) == (b < 0.0f))) ? a : b;\n"
    "    return through ? far : (float)r;\n"
    "}\n"
    "KG_FN float kg_floordivf(float a, float b) {\n"
    "    double x = (double)a, y = (double)b, d = x / y;\n"
    "    double q = __builtin_floor(d);\n"
    "    double r = __builtin_fma(-q, y, x);\n"
    "    q = ((r != 0.0) & ((r < 0.0) != (y < 0.0))) ? q - 1.0 : q;\n"
    "    double beyond = ((a != 0.0f) & ((a < 0.0f) != (b < 0.0f))) ? -1.0 : 0.0;\n"
    "    q = __builtin_fabsf(b) == kg_as_f32(0x7f800000) ? beyond : q;\n"
    "    d = b == 0.0f ? d : d + (x - x);\n"
    "    return (float)(__builtin_fabs(d) < 0x1p+52 ? q : d);\n"
    "}\n";

/* Floor division with one division of doubles, hoisted out of the loop when b does not change in
 * it. The quotient of the doubles is off by at most one, which the remainder shows; b = 0 gives 0.
 */
static const char INT_DIVISION[] =
    "struct kg_divided { int q, r; };\n"
    "KG_FN struct kg_divided kg_divide(int a, int b) {\n"
    "    int d = b == 0 ? 1 : b;\n"
    "    double f = __builtin_floor((double)a * (1.0 / (double)d));\n"
    "    f = f > 2147483647.0 ? 2147483647.0 : f;\n"
    "    int q = (int)f;\n"
    "    int r = (int)((unsigned)a - (unsigned)q * (unsigned)d);\n"
    "    int down = (r != 0) & ((r ^ d) < 0);\n"
    "    q = (int)((unsigned)q - (unsigned)down);\n"
    "    r = down ? (int)((unsigned)r + (unsigned)d) : r;\n"
    "    int up = d > 0 ? r >= d : r <= d;\n"
    "    q = (int)((unsigned)q + (unsigned)up);\n"
    "    r = up ? (int)((unsigned)r - (unsigned)d) : r;\n"
    "    struct kg_divided v = {b == 0 ? 0 : q, b == 0 ? 0 : r};\n"
    "    return v;\n"
    "}\n";

static const char CUDA_INT_DIVISION[] =
    "struct kg_divided { int q, r; };\n"
    "KG_FN struct kg_divided kg_divide(int a, int b) {\n"
    "    struct kg_divided v = {0, 0};\n"
    "    if (b == 0) return v;\n"
    "    if (b == -1) { v.q = (int)(0u - (unsigned)a); return v; }\n"
    "    v.q = a / b;\n"
    "    v.r = a - v.q * b;\n"
    "    if (v.r != 0 && (v.r ^ b) < 0) { v.q -= 1; v.r += b; }\n"
    "    return v;\n"
    "}\n";

static const char INT_DIVISION_USE[] =
    "KG_FN int kg_floordiv(int a, int b) { return kg_divide(a, b).q; }\n"
    "KG_FN int kg_rem(int a, int b) { return kg_divide(a, b).r; }\n"
    "KG_FN int kg_truncdiv(int a, int b) {\n"
    "    struct kg_divided d = kg_divide(a, b);\n"
    "    return (int)((unsigned)d.q + (unsigned)((d.r != 0) & ((a ^ b) < 0)));\n"
    "}\n"
    "KG_FN int kg_floordiv_by(int a, int b) { int q = a / b; return q - (a - q * b < 0); }\n"
    "KG_FN int kg_rem_by(int a, int b) { int r = a - a / b * b; return r < 0 ? r + b : r; }\n";

static const char SHIFTS[] =
    "KG_FN int kg_shl(int a, int n) {\n"
    "    return (unsigned)n > 31u ? 0 : (int)((unsigned)a << (n & 31));\n"
    "}\n"
    "KG_FN int kg_shr(int a, int n) { return a >> ((unsigned)n > 31u ? 31 : n); }\n";

static const char CAST_INT[] = "KG_FN int kg_to_i32(float x) {\n"
                               "    float c = x < -2147483648.0f ? -2147483648.0f : x;\n"
                               "    int r = (int)(c >= 2147483648.0f ? 0.0f : c);\n"
                               "    r = x >= 2147483648.0f ? 2147483647 : r;\n"
                               "    return x == x ? r : 0;\n"
                               "}\n";

static const char MIN_MAX[] =
    "KG_FN float kg_minf(float a, float b) { return ((a < b) | (a != a)) ? a : b; }\n"
    "KG_FN float kg_maxf(float a, float b) { return ((a > b) | (a != a)) ? a : b; }\n";

/* The device's own functions; torch calls these. Beside tensors of half types (KG_ROUGH) those that
 * would cost most are short: tanh is then right to 2e-7 and where half types are all that comes out
 * (KG_ROUGH 2) to 2^-11 of itself, which would show in a log-sum-exp; a quotient and a root to 2
 * ulp, but for divisors beyond 2^126 or below 2^-126; no subroutine is called, around which all
 * registers would be saved. */
static const char CUDA_ROUGH[] =
    "#ifdef KG_ROUGH\n"
    "KG_FN float kg_divf(float a, float b) {\n"
    "    float r; asm(\"rcp.approx.ftz.f32 %0, %1;\" : \"=f\"(r) : \"f\"(b)); return a * r;\n"
    "}\n"
    "#if KG_ROUGH == 2\n"
    "KG_FN float kg_tanhf(float x) {\n"
    "    float r; asm(\"tanh.approx.f32 %0, %1;\" : \"=f\"(r) : \"f\"(x)); return r;\n"
    "}\n"
    "#else\n"
    "KG_FN float kg_tanhf(float x) {\n"
    "    float e, r;\n"
    "    asm(\"ex2.approx.ftz.f32 %0, %1;\" : \"=f\"(e) : \"f\"(x * 0x1.715476p+1f));\n"
    "    asm(\"rcp.approx.ftz.f32 %0, %1;\" : \"=f\"(r) : \"f\"(e + 1.0f));\n"
    "    return fmaf(-2.0f, r, 1.0f);\n"
    "}\n"
    "#endif\n"
    "KG_FN float kg_sqrtf(float x) {\n"
    "    float r; asm(\"sqrt.approx.f32 %0, %1;\" : \"=f\"(r) : \"f\"(x)); return r;\n"
    "}\n"
    "#else\n"
    "KG_FN float kg_divf(float a, float b) { return a / b; }\n"
    "KG_FN float kg_tanhf(float x) { return tanhf(x); }\n"
    "KG_FN float kg_sqrtf(float x) { return sqrtf(x); }\n"
    "#endif\n";

static const char CUDA_MATH[] = "KG_FN float kg_expf(float x) { return expf(x); }\n"
                                "KG_FN float kg_exp2f(float x) { return exp2f(x); }\n"
                                "KG_FN float kg_logf(float x) { return logf(x); }\n"
                                "KG_FN float kg_log2f(float x) { return log2f(x); }\n"
                                "KG_FN float kg_sigmoidf(float x) {\n"
                                "    float e = expf(-fabsf(x));\n"
                                "    return (x < 0.0f ? e : 1.0f) / (1.0f + e);\n"
                                "}\n"
                                "KG_FN float kg_rsqrtf(float x) { return rsqrtf(x); }\n"
                                "KG_FN float kg_floorf(float x) { return floorf(x); }\n"
                                "KG_FN float kg_ceilf(float x) { return ceilf(x); }\n"
                                "KG_FN float kg_powf(float x, float y) { return powf(x, y); }\n"
                                "KG_FN float kg_remf(float a, float b) {\n"
                                "    float r = fmodf(a, b);\n"
                                "    return r != 0.0f && (r < 0.0f) != (b < 0.0f) ? r + b : r;\n"
                                "}\n"
                                "KG_FN float kg_floordivf(float a, float b) {\n"
                                "    if (b == 0.0f) return a / b;\n"
                                "    float m = fmodf(a, b), d = (a - m) / b;\n"
                                "    if (m != 0.0f && (b < 0.0f) != (m < 0.0f)) d -= 1.0f;\n"
                                "    if (d == 0.0f) return copysignf(0.0f, a / b);\n"
                                "    float f = floorf(d);\n"
                                "    return d - f > 0.5f ? f + 1.0f : f;\n"
                                "}\n";

/* A look-up. Indices: negative ones count from the end, then the nearest element. */
static const char INDEX[] = "KG_FN int kg_index(int i, int n) {\n"
                            "    i = i < 0 ? i + n : i;\n"
                            "    i = i < 0 ? 0 : i;\n"
                            "    return i < n ? i : n - 1;\n"
                            "}\n"
                            "KG_FN int kg_index_up(int i, int n) { return i < n ? i : n - 1; }\n";

/* Elements are read as aligned words of int, whatever their type: vector gathers exist for words
 * alone, and a load of int cannot alias the float row that a kernel writes. The word that holds an
 * element never leaves its page. skew: where in its word element 0 starts, in elements. */
static const char CPU_WORDS[] =
    "struct kg_table { const int *word; int skew; };\n"
    "KG_FN struct kg_table kg_table_at(const void *p, int size) {\n"
    "    unsigned long long at = (unsigned long long)p, low = size < 4 ? at & 3 : 0;\n"
    "    struct kg_table t = {(const int *)(at - low), (int)low / size};\n"
    "    return t;\n"
    "}\n";

static const char *const CPU_LOADS[KG_DTYPE_COUNT] = {
    [KG_F32] = "KG_FN float kg_load_float32(struct kg_table t, int i) "
               "{ return kg_as_f32(t.word[i]); }\n",
    [KG_F64] = "KG_FN float kg_load_float64(struct kg_table t, int i) "
               "{ return (float)((const double *)t.word)[i]; }\n",
    [KG_F16] = "KG_FN float kg_load_float16(struct kg_table t, int i) {\n"
               "    int e = i + t.skew, h = t.word[e >> 1] >> ((e & 1) << 4);\n"
               "    float f = kg_as_f32((h & 0x7fff) << 13) * 0x1p+112f;\n"
               "    int bits = kg_as_i32(f);\n"
               "    bits = (h & 0x7c00) == 0x7c00 ? bits | 0x7f800000 : bits;\n"
               "    return kg_as_f32(bits | (int)((unsigned)(h & 0x8000) << 16));\n"
               "}\n",
    [KG_BF16] = "KG_FN float kg_load_bfloat16(struct kg_table t, int i) {\n"
                "    int e = i + t.skew, h = t.word[e >> 1] >> ((e & 1) << 4);\n"
                "    return kg_as_f32((int)((unsigned)h << 16));\n"
                "}\n",
    [KG_I8] = "KG_FN int kg_load_int8(struct kg_table t, int i) {\n"
              "    int e = i + t.skew, w = t.word[e >> 2] >> ((e & 3) << 3);\n"
              "    return (int)((unsigned)w << 24) >> 24;\n"
              "}\n",
    [KG_U8] = "KG_FN int kg_load_uint8(struct kg_table t, int i) {\n"
              "    int e = i + t.skew;\n"
              "    return (t.word[e >> 2] >> ((e & 3) << 3)) & 255;\n"
              "}\n",
    [KG_I16] = "KG_FN int kg_load_int16(struct kg_table t, int i) {\n"
               "    int e = i + t.skew, w = t.word[e >> 1] >> ((e & 1) << 4);\n"
               "    return (int)((unsigned)w << 16) >> 16;\n"
               "}\n",
    [KG_I32] = "KG_FN int kg_load_int32(struct kg_table t, int i) { return t.word[i]; }\n",
    [KG_I64] = "KG_FN int kg_load_int64(struct kg_table t, int i) { return t.word[2 * i]; }\n",
    [KG_BOOL] = "KG_FN int kg_load_bool(struct kg_table t, int i) {\n"
                "    int e = i + t.skew;\n"
                "    return ((t.word[e >> 2] >> ((e & 3) << 3)) & 255) != 0;\n"
                "}\n",
};

static const char CUDA_TABLE[] = "struct kg_table { const unsigned char *byte; };\n"
                                 "KG_FN struct kg_table kg_table_at(const void *p, int) {\n"
                                 "    struct kg_table t = {(const unsigned char *)p};\n"
                                 "    return t;\n"
                                 "}\n";

#define CUDA_LOAD(type, name, ctype, expr)                                                         \
    "KG_FN " type " kg_load_" name "(struct kg_table t, int i) {\n"                                \
    "    const " ctype " v = ((const " ctype " *)t.byte)[i];\n"                                    \
    "    " expr "\n}\n"

static const char *const CUDA_LOADS[KG_DTYPE_COUNT] = {
    [KG_F32] = CUDA_LOAD("float", "float32", "float", "return v;"),
    [KG_F64] = CUDA_LOAD("float", "float64", "double", "return (float)v;"),
    [KG_F16] = CUDA_LOAD("float", "float16", "unsigned short",
                         "float f; asm(\"cvt.f32.f16 %0, %1;\" : \"=f\"(f) : \"h\"(v)); return f;"),
    [KG_BF16] = CUDA_LOAD("float", "bfloat16", "unsigned short",
                          "return kg_as_f32((int)((unsigned)v << 16));"),
    [KG_I8] = CUDA_LOAD("int", "int8", "signed char", "return v;"),
    [KG_U8] = CUDA_LOAD("int", "uint8", "unsigned char", "return v;"),
    [KG_I16] = CUDA_LOAD("int", "int16", "short", "return v;"),
    [KG_I32] = CUDA_LOAD("int", "int32", "int", "return v;"),
    [KG_I64] = CUDA_LOAD("int", "int64", "long long", "return (int)v;"),
    [KG_BOOL] = CUDA_LOAD("int", "bool", "unsigned char", "return v != 0;"),
};

/* 2/pi = 0.A2F9836E..., 256 bits. */
static const uint32_t TWO_OVER_PI[8] = {0xa2f9836e, 0x4e441529, 0xfc2757d1, 0xf534ddc0,
                                        0xdb629599, 0x3c439041, 0xfe5163ab, 0xdebbc561};

/* n bits of 2^shift * 2/pi, the first of weight 2^top. */
static uint32_t two_over_pi(int shift, int top, int n) {
    uint32_t v = 0;
    for (int w = top; w > top - n; w--) {
        int j = shift - w; /* bit j of 2/pi has weight 2^-j */
        uint32_t bit = j < 1 ? 0 : TWO_OVER_PI[(j - 1) / 32] >> (31 - (j - 1) % 32) & 1;
        v = v << 1 | bit;
    }
    return v;
}

/* On CUDA in constant memory: the device library's own sine keeps its table in a variable of the
 * device, which a Candidate may not have. */
static void emit_trig(bool cuda, kg_buf *out) {
    kg_buf_printf(out, "static %s int kg_two_over_pi[384] = {\n",
                  cuda ? "__constant__ const" : "const");
    for (int e = 0; e < 128; e++)
        kg_buf_printf(out, "    0x%x, 0x%x, 0x%x,\n", (unsigned)two_over_pi(e - 23, 1, 28),
                      (unsigned)two_over_pi(e - 23, -27, 28),
                      (unsigned)two_over_pi(e - 23, -55, 27));
    kg_buf_puts(out, "};\n");
    kg_buf_puts(out, TRIG);
}

#define USES(set, NAME) (((set) >> KG_POP_##NAME & 1) != 0)

static void emit_cpu_math(uint64_t f, kg_buf *out) {
    bool power = USES(f, POW), sigmoid = USES(f, SIGMOID);
    bool exponent = USES(f, EXP) || sigmoid || USES(f, ERF);
    if (exponent || power || USES(f, EXP2))
        kg_buf_puts(out, POW2I);
    if (exponent)
        kg_buf_puts(out, EXPF);
    if (USES(f, EXP2))
        kg_buf_puts(out, EXP2F);
    if (USES(f, TANH))
        kg_buf_puts(out, TANHF);
    if (USES(f, LOG) || USES(f, LOG2) || power)
        kg_buf_puts(out, SPLIT);
    if (USES(f, LOG))
        kg_buf_puts(out, LOGF);
    if (USES(f, LOG2))
        kg_buf_puts(out, LOG2F);
    if (sigmoid)
        kg_buf_puts(out, SIGMOIDF);
    if (USES(f, ERF))
        kg_buf_puts(out, ERFF);
    if (power)
        kg_buf_puts(out, POWF);
    if (USES(f, SIN) || USES(f, COS))
        emit_trig(false, out);
    if (USES(f, SQRT) || USES(f, RSQRT) || USES(f, FLOOR) || USES(f, CEIL))
        kg_buf_puts(out, ROUNDING);
    if (USES(f, REM) || USES(f, FLOORDIV))
        kg_buf_puts(out, FLOAT_DIVISION);
}

int kg_program_math(const kg_puses *uses, int target, kg_buf *out) {
    bool cuda = target == KG_CUDA;
    kg_buf_puts(out, cuda ? CUDA_BASE : CPU_BASE);
    if (cuda && uses->f32 != 0) {
        kg_buf_puts(out, CUDA_ROUGH);
        kg_buf_puts(out, CUDA_MATH);
        if (USES(uses->f32, ERF))
            kg_buf_puts(out, ERFF);
        if (USES(uses->f32, SIN) || USES(uses->f32, COS))
            emit_trig(true, out);
    }
    if (!cuda)
        emit_cpu_math(uses->f32, out);
    if (USES(uses->f32, MIN) || USES(uses->f32, MAX))
        kg_buf_puts(out, MIN_MAX);
    if (USES(uses->i32, FLOORDIV) || USES(uses->i32, REM) || USES(uses->i32, TRUNCDIV)) {
        kg_buf_puts(out, cuda ? CUDA_INT_DIVISION : INT_DIVISION);
        kg_buf_puts(out, INT_DIVISION_USE);
    }
    if (USES(uses->i32, SHL) || USES(uses->i32, SHR))
        kg_buf_puts(out, SHIFTS);
    if (uses->cast_f32_i32)
        kg_buf_puts(out, CAST_INT);
    if (uses->loads == 0)
        return out->status;
    kg_buf_puts(out, INDEX);
    kg_buf_puts(out, cuda ? CUDA_TABLE : CPU_WORDS);
    for (int d = 0; d < KG_DTYPE_COUNT; d++)
        if (uses->loads >> d & 1)
            kg_buf_puts(out, cuda ? CUDA_LOADS[d] : CPU_LOADS[d]);
    return out->status;
}
