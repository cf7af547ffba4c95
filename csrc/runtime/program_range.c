/* Writes kg_mask_range: interval arithmetic over the mask section, as C, so that a kernel can skip
 * or leave unmasked a whole tile. Every value becomes an interval that surely holds all it takes
 * over the tile; int32 that may wrap becomes all of int32, and float bounds are widened by 2^-20,
 * which covers rounding, contraction and the 4 ulp of the functions. A look-up is the least and the
 * greatest of the elements it can reach when they are at most 512. What it cannot bound is
 * "unknown", never wrong. */
#include "runtime/program_ir.h"

#include <string.h>

/* Bools are intervals within 0..1. */
static const char INT_TEXT[] =
    "struct kg_ir { long long lo, hi; };\n"
    "KG_COLD struct kg_ir kg_ir_raw(long long lo, long long hi) {\n"
    "    struct kg_ir r = {lo, hi};\n"
    "    return r;\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_at(long long v) { return kg_ir_raw(v, v); }\n"
    "KG_COLD struct kg_ir kg_ir_of(long long lo, long long hi) {\n"
    "    int wraps = lo < -2147483648LL || hi > 2147483647LL;\n"
    "    return wraps ? kg_ir_raw(-2147483648LL, 2147483647LL) : kg_ir_raw(lo, hi);\n"
    "}\n"
    "KG_COLD int kg_ir_point(struct kg_ir a) { return a.lo == a.hi; }\n"
    "KG_COLD long long kg_lmin(long long a, long long b) { return a < b ? a : b; }\n"
    "KG_COLD long long kg_lmax(long long a, long long b) { return a > b ? a : b; }\n"
    "KG_COLD struct kg_ir kg_ir_four(long long a, long long b, long long c, long long d) {\n"
    "    return kg_ir_of(kg_lmin(kg_lmin(a, b), kg_lmin(c, d)),\n"
    "                    kg_lmax(kg_lmax(a, b), kg_lmax(c, d)));\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_hull(struct kg_ir a, struct kg_ir b) {\n"
    "    return kg_ir_raw(kg_lmin(a.lo, b.lo), kg_lmax(a.hi, b.hi));\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_add(struct kg_ir a, struct kg_ir b) {\n"
    "    return kg_ir_of(a.lo + b.lo, a.hi + b.hi);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_sub(struct kg_ir a, struct kg_ir b) {\n"
    "    return kg_ir_of(a.lo - b.hi, a.hi - b.lo);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_mul(struct kg_ir a, struct kg_ir b) {\n"
    "    return kg_ir_four(a.lo * b.lo, a.lo * b.hi, a.hi * b.lo, a.hi * b.hi);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_neg(struct kg_ir a) { return kg_ir_of(-a.hi, -a.lo); }\n"
    "KG_COLD struct kg_ir kg_ir_abs(struct kg_ir a) {\n"
    "    if (a.lo >= 0) return a;\n"
    "    if (a.hi <= 0) return kg_ir_neg(a);\n"
    "    return kg_ir_of(0, kg_lmax(-a.lo, a.hi));\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_min(struct kg_ir a, struct kg_ir b) {\n"
    "    return kg_ir_raw(kg_lmin(a.lo, b.lo), kg_lmin(a.hi, b.hi));\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_max(struct kg_ir a, struct kg_ir b) {\n"
    "    return kg_ir_raw(kg_lmax(a.lo, b.lo), kg_lmax(a.hi, b.hi));\n"
    "}\n";

static const char INT_DIVISION_TEXT[] =
    "KG_COLD long long kg_lfloor(long long a, long long b) {\n"
    "    long long q = a / b;\n"
    "    return q - (a % b != 0 && (a < 0) != (b < 0));\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_floordiv(struct kg_ir a, struct kg_ir b) {\n"
    "    if (kg_ir_point(b) && b.lo == 0) return kg_ir_at(0);\n"
    "    if (b.lo <= 0 && b.hi >= 0) {\n"
    "        long long m = kg_lmax(-a.lo, a.hi);\n"
    "        return kg_ir_of(-kg_lmax(m, 1), kg_lmax(m, 1));\n"
    "    }\n"
    "    return kg_ir_four(kg_lfloor(a.lo, b.lo), kg_lfloor(a.lo, b.hi), kg_lfloor(a.hi, b.lo),\n"
    "                      kg_lfloor(a.hi, b.hi));\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_truncdiv(struct kg_ir a, struct kg_ir b) {\n"
    "    if (b.lo > 0 || b.hi < 0)\n"
    "        return kg_ir_four(a.lo / b.lo, a.lo / b.hi, a.hi / b.lo, a.hi / b.hi);\n"
    "    long long m = kg_lmax(kg_lmax(-a.lo, a.hi), 0);\n"
    "    return kg_ir_of(-m, m);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_rem(struct kg_ir a, struct kg_ir b) {\n"
    "    if (kg_ir_point(b) && b.lo == 0) return kg_ir_at(0);\n"
    "    if (kg_ir_point(b) && kg_lfloor(a.lo, b.lo) == kg_lfloor(a.hi, b.lo)) {\n"
    "        long long base = kg_lfloor(a.lo, b.lo) * b.lo;\n"
    "        return kg_ir_of(a.lo - base, a.hi - base);\n"
    "    }\n"
    "    if (b.lo > 0 && a.lo >= 0 && a.hi < b.lo) return a;\n"
    "    return kg_ir_of(kg_lmin(b.lo + 1, 0), kg_lmax(b.hi - 1, 0));\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_not(struct kg_ir a) { return kg_ir_raw(~a.hi, ~a.lo); }\n"
    "KG_COLD struct kg_ir kg_ir_bits(struct kg_ir a, struct kg_ir b, int op) {\n"
    "    if (kg_ir_point(a) && kg_ir_point(b))\n"
    "        return kg_ir_at(op == 0 ? a.lo & b.lo : op == 1 ? a.lo | b.lo : a.lo ^ b.lo);\n"
    "    if (op == 0 && a.lo >= 0 && b.lo >= 0) return kg_ir_raw(0, kg_lmin(a.hi, b.hi));\n"
    "    if (op == 0 && (a.lo >= 0 || b.lo >= 0)) return kg_ir_raw(0, a.lo >= 0 ? a.hi : b.hi);\n"
    "    if (a.lo < 0 || b.lo < 0) return kg_ir_raw(-2147483648LL, 2147483647LL);\n"
    "    long long top = 1;\n"
    "    while (top <= kg_lmax(a.hi, b.hi)) top *= 2;\n"
    "    return kg_ir_raw(op == 1 ? kg_lmax(a.lo, b.lo) : 0, top - 1);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_and(struct kg_ir a, struct kg_ir b) { return kg_ir_bits(a, b, 0); "
    "}\n"
    "KG_COLD struct kg_ir kg_ir_or(struct kg_ir a, struct kg_ir b) { return kg_ir_bits(a, b, 1); "
    "}\n"
    "KG_COLD struct kg_ir kg_ir_xor(struct kg_ir a, struct kg_ir b) { return kg_ir_bits(a, b, 2); "
    "}\n"
    "KG_COLD struct kg_ir kg_ir_shl(struct kg_ir a, struct kg_ir n) {\n"
    "    if (!kg_ir_point(n)) return kg_ir_raw(-2147483648LL, 2147483647LL);\n"
    "    if (n.lo < 0 || n.lo > 31) return kg_ir_at(0);\n"
    "    return kg_ir_of(a.lo * (1LL << n.lo), a.hi * (1LL << n.lo));\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_shr(struct kg_ir a, struct kg_ir n) {\n"
    "    if (!kg_ir_point(n)) return kg_ir_raw(kg_lmin(a.lo, -1), kg_lmax(a.hi, 0));\n"
    "    long long s = n.lo < 0 || n.lo > 31 ? 31 : n.lo;\n"
    "    return kg_ir_raw(a.lo >> s, a.hi >> s);\n"
    "}\n";

static const char INT_LOGIC_TEXT[] =
    "KG_COLD struct kg_ir kg_ir_lt(struct kg_ir a, struct kg_ir b) {\n"
    "    return kg_ir_raw(a.hi < b.lo, a.lo < b.hi);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_le(struct kg_ir a, struct kg_ir b) {\n"
    "    return kg_ir_raw(a.hi <= b.lo, a.lo <= b.hi);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_eq(struct kg_ir a, struct kg_ir b) {\n"
    "    return kg_ir_raw(kg_ir_point(a) && kg_ir_point(b) && a.lo == b.lo,\n"
    "                     a.lo <= b.hi && b.lo <= a.hi);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_br_not(struct kg_ir a) { return kg_ir_raw(1 - a.hi, 1 - a.lo); }\n"
    "KG_COLD struct kg_ir kg_br_and(struct kg_ir a, struct kg_ir b) {\n"
    "    return kg_ir_raw(a.lo & b.lo, a.hi & b.hi);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_br_or(struct kg_ir a, struct kg_ir b) {\n"
    "    return kg_ir_raw(a.lo | b.lo, a.hi | b.hi);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_br_of_ir(struct kg_ir a) {\n"
    "    return kg_ir_raw(a.lo > 0 || a.hi < 0, a.lo != 0 || a.hi != 0);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_where(struct kg_ir c, struct kg_ir a, struct kg_ir b) {\n"
    "    return kg_ir_point(c) ? (c.lo ? a : b) : kg_ir_hull(a, b);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_index(struct kg_ir i, long long n) {\n"
    "    if (i.hi < 0) i = kg_ir_raw(i.lo + n, i.hi + n);\n"
    "    else if (i.lo < 0) i = kg_ir_raw(0, n - 1);\n"
    "    return kg_ir_raw(kg_lmin(kg_lmax(i.lo, 0), n - 1), kg_lmin(kg_lmax(i.hi, 0), n - 1));\n"
    "}\n"
    "KG_COLD long long kg_ir_count(long long n, struct kg_ir i) {\n"
    "    return n > 512 ? n : n * (i.hi - i.lo + 1);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_with(struct kg_ir a, long long v) {\n"
    "    return kg_ir_raw(kg_lmin(a.lo, v), kg_lmax(a.hi, v));\n"
    "}\n";

static const char FLOAT_TEXT[] =
    "struct kg_fr { double lo, hi; int nan; };\n"
    "#define KG_DINF ((double)kg_as_f32(0x7f800000))\n"
    "KG_COLD struct kg_fr kg_fr_raw(double lo, double hi, int nan) {\n"
    "    struct kg_fr r = {lo, hi, nan};\n"
    "    return r;\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_any(void) { return kg_fr_raw(-KG_DINF, KG_DINF, 1); }\n"
    "KG_COLD struct kg_fr kg_fr_exact(double lo, double hi, int nan) {\n"
    "    return lo <= hi ? kg_fr_raw(lo, hi, nan) : kg_fr_any();\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_at(float v) { return kg_fr_exact((double)v, (double)v, 0); }\n"
    "KG_COLD double kg_dwider(double v) {\n"
    "    return v == 0.0 ? 0.0 : (v < 0.0 ? -v : v) * 0x1p-20 + 0x1p-120;\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_of(double lo, double hi, int nan) {\n"
    "    lo = lo - kg_dwider(lo);\n"
    "    hi = hi + kg_dwider(hi);\n"
    "    lo = lo < -3.4e38 ? -KG_DINF : lo;\n"
    "    hi = hi > 3.4e38 ? KG_DINF : hi;\n"
    "    return kg_fr_exact(lo, hi, nan);\n"
    "}\n"
    "KG_COLD int kg_fr_finite(struct kg_fr a) { return a.lo > -KG_DINF && a.hi < KG_DINF; }\n"
    "KG_COLD int kg_fr_point(struct kg_fr a) { return a.lo == a.hi && !a.nan; }\n"
    "KG_COLD double kg_dmin(double a, double b) { return a < b ? a : b; }\n"
    "KG_COLD double kg_dmax(double a, double b) { return a > b ? a : b; }\n"
    "KG_COLD struct kg_fr kg_fr_hull(struct kg_fr a, struct kg_fr b) {\n"
    "    return kg_fr_raw(kg_dmin(a.lo, b.lo), kg_dmax(a.hi, b.hi), a.nan | b.nan);\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_add(struct kg_fr a, struct kg_fr b) {\n"
    "    if (!kg_fr_finite(a) || !kg_fr_finite(b)) return kg_fr_any();\n"
    "    return kg_fr_of(a.lo + b.lo, a.hi + b.hi, a.nan | b.nan);\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_neg(struct kg_fr a) { return kg_fr_raw(-a.hi, -a.lo, a.nan); }\n"
    "KG_COLD struct kg_fr kg_fr_sub(struct kg_fr a, struct kg_fr b) {\n"
    "    return kg_fr_add(a, kg_fr_neg(b));\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_four(double a, double b, double c, double d, int nan) {\n"
    "    return kg_fr_of(kg_dmin(kg_dmin(a, b), kg_dmin(c, d)),\n"
    "                    kg_dmax(kg_dmax(a, b), kg_dmax(c, d)), nan);\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_mul(struct kg_fr a, struct kg_fr b) {\n"
    "    if (!kg_fr_finite(a) || !kg_fr_finite(b)) return kg_fr_any();\n"
    "    return kg_fr_four(a.lo * b.lo, a.lo * b.hi, a.hi * b.lo, a.hi * b.hi, a.nan | b.nan);\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_div(struct kg_fr a, struct kg_fr b) {\n"
    "    if (!kg_fr_finite(a) || !kg_fr_finite(b) || (b.lo <= 0.0 && b.hi >= 0.0))\n"
    "        return kg_fr_any();\n"
    "    return kg_fr_four(a.lo / b.lo, a.lo / b.hi, a.hi / b.lo, a.hi / b.hi, a.nan | b.nan);\n"
    "}\n";

static const char FLOAT_ORDER_TEXT[] =
    "KG_COLD double kg_dfloor(double v) {\n"
    "    if (!(v > -0x1p+52 && v < 0x1p+52)) return v;\n"
    "    double t = (double)(long long)v;\n"
    "    return t > v ? t - 1.0 : t;\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_floor(struct kg_fr a) {\n"
    "    return kg_fr_exact(kg_dfloor(a.lo), kg_dfloor(a.hi), a.nan);\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_ceil(struct kg_fr a) {\n"
    "    return kg_fr_exact(-kg_dfloor(-a.lo), -kg_dfloor(-a.hi), a.nan);\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_floordiv(struct kg_fr a, struct kg_fr b) {\n"
    "    struct kg_fr d = kg_fr_floor(kg_fr_div(a, b));\n"
    "    return kg_fr_of(d.lo, d.hi, d.nan);\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_rem(struct kg_fr a, struct kg_fr b) {\n"
    "    if (!kg_fr_finite(a) || !kg_fr_finite(b) || !(b.lo > 0.0)) return kg_fr_any();\n"
    "    return kg_fr_of(0.0, b.hi, a.nan | b.nan);\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_abs(struct kg_fr a) {\n"
    "    if (a.lo >= 0.0) return a;\n"
    "    if (a.hi <= 0.0) return kg_fr_neg(a);\n"
    "    return kg_fr_raw(0.0, kg_dmax(-a.lo, a.hi), a.nan);\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_min(struct kg_fr a, struct kg_fr b) {\n"
    "    return kg_fr_raw(kg_dmin(a.lo, b.lo), kg_dmin(a.hi, b.hi), a.nan | b.nan);\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_max(struct kg_fr a, struct kg_fr b) {\n"
    "    return kg_fr_raw(kg_dmax(a.lo, b.lo), kg_dmax(a.hi, b.hi), a.nan | b.nan);\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_turn(struct kg_fr a) {\n"
    "    return kg_fr_of(-1.0, 1.0, a.nan | !kg_fr_finite(a));\n"
    "}\n"
    "KG_COLD struct kg_ir kg_fr_lt(struct kg_fr a, struct kg_fr b) {\n"
    "    return kg_ir_raw(!a.nan && !b.nan && a.hi < b.lo, a.lo < b.hi);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_fr_le(struct kg_fr a, struct kg_fr b) {\n"
    "    return kg_ir_raw(!a.nan && !b.nan && a.hi <= b.lo, a.lo <= b.hi);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_fr_eq(struct kg_fr a, struct kg_fr b) {\n"
    "    return kg_ir_raw(kg_fr_point(a) && kg_fr_point(b) && a.lo == b.lo,\n"
    "                     a.lo <= b.hi && b.lo <= a.hi);\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_where(struct kg_ir c, struct kg_fr a, struct kg_fr b) {\n"
    "    return kg_ir_point(c) ? (c.lo ? a : b) : kg_fr_hull(a, b);\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_of_ir(struct kg_ir a) {\n"
    "    return kg_fr_raw((double)(float)a.lo, (double)(float)a.hi, 0);\n"
    "}\n"
    "KG_COLD struct kg_ir kg_br_of_fr(struct kg_fr a) {\n"
    "    return kg_ir_raw(a.lo > 0.0 || a.hi < 0.0, a.nan || a.lo != 0.0 || a.hi != 0.0);\n"
    "}\n"
    "KG_COLD long long kg_ltrunc(double v) {\n"
    "    return v <= -2147483648.0 ? -2147483648LL : v >= 2147483647.0 ? 2147483647LL\n"
    "                                                                  : (long long)v;\n"
    "}\n"
    "KG_COLD struct kg_ir kg_ir_of_fr(struct kg_fr a) {\n"
    "    struct kg_ir r = kg_ir_raw(kg_ltrunc(a.lo), kg_ltrunc(a.hi));\n"
    "    return a.nan ? kg_ir_hull(r, kg_ir_at(0)) : r;\n"
    "}\n"
    "KG_COLD struct kg_fr kg_fr_with(struct kg_fr a, float v) {\n"
    "    if (v != v) return kg_fr_raw(a.lo, a.hi, 1);\n"
    "    return kg_fr_raw(kg_dmin(a.lo, (double)v), kg_dmax(a.hi, (double)v), a.nan);\n"
    "}\n";

/* "$i" is operand i. */
static const char *const INT_RANGE[KG_POP_COUNT] = {
    [KG_POP_ADD] = "kg_ir_add($0, $1)",
    [KG_POP_SUB] = "kg_ir_sub($0, $1)",
    [KG_POP_MUL] = "kg_ir_mul($0, $1)",
    [KG_POP_NEG] = "kg_ir_neg($0)",
    [KG_POP_ABS] = "kg_ir_abs($0)",
    [KG_POP_MIN] = "kg_ir_min($0, $1)",
    [KG_POP_MAX] = "kg_ir_max($0, $1)",
    [KG_POP_FLOORDIV] = "kg_ir_floordiv($0, $1)",
    [KG_POP_REM] = "kg_ir_rem($0, $1)",
    [KG_POP_TRUNCDIV] = "kg_ir_truncdiv($0, $1)",
    [KG_POP_AND] = "kg_ir_and($0, $1)",
    [KG_POP_OR] = "kg_ir_or($0, $1)",
    [KG_POP_XOR] = "kg_ir_xor($0, $1)",
    [KG_POP_NOT] = "kg_ir_not($0)",
    [KG_POP_SHL] = "kg_ir_shl($0, $1)",
    [KG_POP_SHR] = "kg_ir_shr($0, $1)",
    [KG_POP_WHERE] = "kg_ir_where($0, $1, $2)",
};

static const char *const BOOL_RANGE[KG_POP_COUNT] = {
    [KG_POP_AND] = "kg_br_and($0, $1)",           [KG_POP_OR] = "kg_br_or($0, $1)",
    [KG_POP_XOR] = "kg_br_not(kg_ir_eq($0, $1))", [KG_POP_NOT] = "kg_br_not($0)",
    [KG_POP_WHERE] = "kg_ir_where($0, $1, $2)",
};

/* Comparisons, by the type of the operands ("#": ir or fr). */
static const char *const COMPARE_RANGE[KG_POP_COUNT] = {
    [KG_POP_EQ] = "kg_#_eq($0, $1)", [KG_POP_NE] = "kg_br_not(kg_#_eq($0, $1))",
    [KG_POP_LT] = "kg_#_lt($0, $1)", [KG_POP_LE] = "kg_#_le($0, $1)",
    [KG_POP_GT] = "kg_#_lt($1, $0)", [KG_POP_GE] = "kg_#_le($1, $0)",
};

#define RISING(f) "kg_fr_of(" f "((float)$0.lo), " f "((float)$0.hi), $0.nan)"

static const char *const F32_RANGE[KG_POP_COUNT] = {
    [KG_POP_ADD] = "kg_fr_add($0, $1)",
    [KG_POP_SUB] = "kg_fr_sub($0, $1)",
    [KG_POP_MUL] = "kg_fr_mul($0, $1)",
    [KG_POP_NEG] = "kg_fr_neg($0)",
    [KG_POP_ABS] = "kg_fr_abs($0)",
    [KG_POP_MIN] = "kg_fr_min($0, $1)",
    [KG_POP_MAX] = "kg_fr_max($0, $1)",
    [KG_POP_DIV] = "kg_fr_div($0, $1)",
    [KG_POP_FLOORDIV] = "kg_fr_floordiv($0, $1)",
    [KG_POP_REM] = "kg_fr_rem($0, $1)",
    [KG_POP_TANH] = RISING("kg_tanhf"),
    [KG_POP_EXP] = RISING("kg_expf"),
    [KG_POP_EXP2] = RISING("kg_exp2f"),
    [KG_POP_LOG] = RISING("kg_logf"),
    [KG_POP_LOG2] = RISING("kg_log2f"),
    [KG_POP_SQRT] = RISING("kg_sqrtf"),
    [KG_POP_RSQRT] = "kg_fr_of(kg_rsqrtf((float)$0.hi), kg_rsqrtf((float)$0.lo), $0.nan)",
    [KG_POP_SIN] = "kg_fr_turn($0)",
    [KG_POP_COS] = "kg_fr_turn($0)",
    [KG_POP_SIGMOID] = RISING("kg_sigmoidf"),
    [KG_POP_ERF] = RISING("kg_erff"),
    [KG_POP_FLOOR] = "kg_fr_floor($0)",
    [KG_POP_CEIL] = "kg_fr_ceil($0)",
    [KG_POP_POW] = "kg_fr_any()",
    [KG_POP_WHERE] = "kg_fr_where($0, $1, $2)",
};

static const char *cast_range(int from, int to) {
    static const char *const form[3][3] = {
        [KG_PT_F32] = {NULL, "kg_ir_of_fr($0)", "kg_br_of_fr($0)"},
        [KG_PT_I32] = {"kg_fr_of_ir($0)", NULL, "kg_br_of_ir($0)"},
        [KG_PT_BOOL] = {"kg_fr_of_ir($0)", "$0", NULL},
    };
    return form[from][to];
}

static const char *range_form(const kg_pinstr *in) {
    if (in->op == KG_POP_CAST)
        return cast_range(in->arg[0].type, in->type);
    if (COMPARE_RANGE[in->op] != NULL)
        return COMPARE_RANGE[in->op];
    if (in->type == KG_PT_F32)
        return F32_RANGE[in->op];
    return in->type == KG_PT_I32 ? INT_RANGE[in->op] : BOOL_RANGE[in->op];
}

static const char *family(int type) {
    return type == KG_PT_F32 ? "fr" : "ir";
}

static void put_operand(kg_buf *out, const kg_poperand *a) {
    static const char *const inputs[] = {
        [KG_PK_B] = "kg_ir_at(b)", [KG_PK_H] = "kg_ir_at(h)", [KG_PK_Q] = "vq", [KG_PK_KV] = "vk"};
    if (a->kind == KG_PK_VALUE) {
        kg_buf_printf(out, "v%u", (unsigned)a->index);
    } else if (a->kind == KG_PK_SCALAR) {
        kg_buf_printf(out, "kg_%s_at(KG_P(p, s%u))", family(a->type), (unsigned)a->index);
    } else if (a->kind != KG_PK_LITERAL) {
        kg_buf_puts(out, inputs[a->kind]);
    } else if (a->type == KG_PT_F32) {
        kg_buf_puts(out, "kg_fr_at(");
        kg_emit_f32(out, a->literal.f);
        kg_buf_puts(out, ")");
    } else {
        kg_buf_printf(out, "kg_ir_at(%dLL)", (int)a->literal.i);
    }
}

static void put_form(kg_buf *out, const char *form, const kg_pinstr *in) {
    for (; *form != '\0'; form++) {
        if (*form == '$')
            put_operand(out, &in->arg[*++form - '0']);
        else if (*form == '#')
            kg_buf_puts(out, family(in->arg[0].type));
        else
            kg_buf_putc(out, *form);
    }
}

/* What a load gives when too many elements could be meant. */
static const char *whole_range(int dtype) {
    switch (dtype) {
    case KG_BOOL:
        return "kg_ir_raw(0, 1)";
    case KG_I8:
        return "kg_ir_raw(-128, 127)";
    case KG_U8:
        return "kg_ir_raw(0, 255)";
    case KG_I16:
        return "kg_ir_raw(-32768, 32767)";
    case KG_I32:
    case KG_I64:
        return "kg_ir_raw(-2147483648LL, 2147483647LL)";
    default:
        return "kg_fr_any()";
    }
}

static void put_load(kg_buf *out, const kg_program *p, size_t k) {
    const kg_pinstr *in = &p->mask.value[k];
    unsigned t = in->tensor, rank = in->nargs;
    int size = (int)kg_dtype_size(p->dtype[t]);
    const char *f = family(in->type), *name = kg_dtype_name(p->dtype[t]);
    kg_buf_printf(out, "    struct kg_%s v%zu = %s;\n    {\n        long long n = 1;\n", f, k,
                  whole_range(p->dtype[t]));
    for (unsigned d = 0; d < rank; d++) {
        kg_buf_printf(out, "        const struct kg_ir i%u = kg_ir_index(", d);
        put_operand(out, &in->arg[d]);
        kg_buf_printf(out, ", KG_P(p, t%u_n%u));\n        n = kg_ir_count(n, i%u);\n", t, d, d);
    }
    kg_buf_printf(out, "        if (n <= looks) v%zu = %s;\n", k,
                  in->type == KG_PT_F32 ? "kg_fr_raw(KG_DINF, -KG_DINF, 0)"
                                        : "kg_ir_raw(2147483647LL, -2147483648LL)");
    kg_buf_puts(out, "        if (n <= looks)\n");
    for (unsigned d = 0; d < rank; d++)
        kg_buf_printf(out, "        for (long long x%u = i%u.lo; x%u <= i%u.hi; x%u++)\n", d, d, d,
                      d, d);
    kg_buf_printf(out,
                  "            v%zu = kg_%s_with(v%zu, kg_load_%s(kg_table_at("
                  "(const char *)KG_P(p, t%u)",
                  k, f, k, name, t);
    for (unsigned d = 0; d < rank; d++)
        kg_buf_printf(out, " + x%u * KG_P(p, t%u_s%u) * %d", d, t, d, size);
    kg_buf_printf(out, ", %d), 0));\n    }\n", size);
    if (in->type == KG_PT_F32)
        kg_buf_printf(out, "    v%zu = kg_fr_exact(v%zu.lo, v%zu.hi, v%zu.nan);\n", k, k, k, k);
}

static bool has_floats(const kg_psection *s) {
    for (size_t i = 0; i < s->n; i++) {
        if (s->value[i].type == KG_PT_F32)
            return true;
        for (size_t j = 0; j < s->value[i].nargs; j++)
            if (s->value[i].arg[j].type == KG_PT_F32)
                return true;
    }
    return false;
}

static const char HEAD[] =
    "KG_COLD int kg_mask_range_within(KG_ARGS p, int b, int h, int q0, int q1, int k0, int k1,\n"
    "                                 int looks) {\n"
    "    (void)p, (void)b, (void)h, (void)looks;\n"
    "    if (q0 >= q1 || k0 >= k1) return 0;\n";

static const char TAIL[] =
    "KG_COLD int kg_mask_range(KG_ARGS p, int b, int h, int q0, int q1, int k0, int k1) {\n"
    "    return kg_mask_range_within(p, b, h, q0, q1, k0, k1, 512);\n}\n";

int kg_program_range(const kg_program *p, kg_buf *out) {
    if (!kg_program_has(p, "MASK")) {
        kg_buf_puts(out, HEAD);
        kg_buf_puts(out, "    return 1;\n}\n");
        return kg_buf_puts(out, TAIL);
    }
    const kg_psection *s = &p->mask;
    kg_buf_puts(out, INT_TEXT);
    kg_buf_puts(out, INT_DIVISION_TEXT);
    kg_buf_puts(out, INT_LOGIC_TEXT);
    if (has_floats(s)) {
        kg_buf_puts(out, FLOAT_TEXT);
        kg_buf_puts(out, FLOAT_ORDER_TEXT);
    }
    kg_buf_puts(out, HEAD);
    kg_buf_puts(out, "    const struct kg_ir vq = kg_ir_raw(q0, q1 - 1LL), "
                     "vk = kg_ir_raw(k0, k1 - 1LL);\n    (void)vq, (void)vk;\n");
    for (size_t i = 0; i < s->n; i++) {
        if (s->value[i].op == KG_POP_LOAD) {
            put_load(out, p, i);
            continue;
        }
        kg_buf_printf(out, "    const struct kg_%s v%zu = ", family(s->value[i].type), i);
        put_form(out, range_form(&s->value[i]), &s->value[i]);
        kg_buf_printf(out, ";\n    (void)v%zu;\n", i);
    }
    kg_buf_puts(out, "    const struct kg_ir all = ");
    put_operand(out, &s->result);
    kg_buf_puts(out, ";\n    return all.lo ? 1 : all.hi ? 2 : 0;\n}\n");
    return kg_buf_puts(out, TAIL);
}
