/* The functions that a CPU Candidate may call without having them: mem*, libm, and what the
 * compiler itself calls in place of an operator. */
#include "runtime/object_inspect.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* Without the suffix f, which each may have. */
static const char *const LIBM[] = {
    "acos",   "acosh",    "asin",    "asinh",     "atan",      "atan2",     "atanh", "cbrt",
    "ceil",   "copysign", "cos",     "cosh",      "erf",       "erfc",      "exp",   "exp10",
    "exp2",   "expm1",    "fabs",    "fdim",      "floor",     "fma",       "fmax",  "fmin",
    "fmod",   "frexp",    "hypot",   "ilogb",     "j0",        "j1",        "jn",    "ldexp",
    "lgamma", "llrint",   "llround", "log",       "log10",     "log1p",     "log2",  "logb",
    "lrint",  "lround",   "modf",    "nan",       "nearbyint", "nextafter", "pow",   "remainder",
    "remquo", "rint",     "round",   "roundeven", "scalbln",   "scalbn",    "sin",   "sincos",
    "sinh",   "sqrt",     "tan",     "tanh",      "tgamma",    "trunc",     "y0",    "y1",
    "yn"};

/* libgcc's, linked in from its archive: conversions of _Float16, 128-bit integers, complex numbers.
 */
static const char *const HELPERS[] = {
    "memcpy",        "memmove",       "memset",        "memcmp",         "_GLOBAL_OFFSET_TABLE_",
    "__divti3",      "__modti3",      "__udivti3",     "__umodti3",      "__divmodti4",
    "__udivmodti4",  "__multi3",      "__mulsc3",      "__muldc3",       "__divsc3",
    "__divdc3",      "__powisf2",     "__powidf2",     "__popcountdi2",  "__floattisf",
    "__floattidf",   "__floatuntisf", "__floatuntidf", "__fixsfti",      "__fixdfti",
    "__eqhf2",       "__nehf2",       "__extendhfsf2", "__truncsfhf2",   "__truncdfhf2",
    "__extendhfdf2", "__extendhfxf2", "__truncxfhf2",  "__gnu_h2f_ieee", "__gnu_f2h_ieee",
    "__truncsfbf2",  "__truncdfbf2"};

static bool libm_name(const char *name, size_t n) {
    if (n > 1 && name[n - 1] == 'f' && libm_name(name, n - 1))
        return true;
    for (size_t i = 0; i < sizeof LIBM / sizeof *LIBM; i++)
        if (strlen(LIBM[i]) == n && memcmp(LIBM[i], name, n) == 0)
            return true;
    return false;
}

/* glibc's vector forms of libm, which -ffast-math brings: _ZGVdN8v_expf. */
static bool libmvec_name(const char *name) {
    if (strncmp(name, "_ZGV", 4) != 0 || !strchr("bcdeNns", name[4]) || !name[4])
        return false;
    const char *p = name + 5;
    if (*p != 'N' && *p != 'M')
        return false;
    p++;
    while (isdigit((unsigned char)*p))
        p++;
    while (*p == 'v' || *p == 'l' || isdigit((unsigned char)*p))
        p++;
    return *p == '_' && libm_name(p + 1, strlen(p + 1));
}

bool kg_symbol_allowed(const char *name) {
    for (size_t i = 0; i < sizeof HELPERS / sizeof *HELPERS; i++)
        if (strcmp(HELPERS[i], name) == 0)
            return true;
    size_t n = strlen(name);
    /* __exp_finite and kin are what old headers make of -ffast-math. */
    if (n > 9 && strncmp(name, "__", 2) == 0 && strcmp(name + n - 7, "_finite") == 0)
        return libm_name(name + 2, n - 9);
    return libm_name(name, n) || libmvec_name(name);
}
