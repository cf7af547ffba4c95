/* Measures errors, and finds where they lie.
 *
 * The tolerance. Let u be the unit roundoff of the output's dtype (half an ulp of 1) and a that of
 * the accumulator (float32's, or float64's for float64). Rounding the result once costs at most u
 * of each element, so at most u by norm, and at most u of the scale by worst element. A sum of K
 * terms in any order has, by the probabilistic bound for rounding errors of mean zero, an error of
 * about sqrt(K) * a times the terms' size, 4 sqrt(K) * a with near certainty for every element at
 * once. Below the smallest normal number the spacing is fixed: half of it, in units of the scale.
 * So eps_norm = u + sqrt(K) a,    eps_max = 2u + 4 sqrt(K) a + (smallest subnormal / 2) / scale and
 * where inputs are rounded to a class of lower precision with roundoff p, products carry 2p each,
 * which adds 4p and 16p. On top of that come 4 and 8 times torch's own errors: for ill-conditioned
 * inputs (large arguments of exp, cancellation) they are larger than any of this. With K = 4096 in
 * float32 this lets a plain chain of FMAs pass (1.2e-6) and refuses a truncating tensor core
 * (1.9e-5). */
#include "tune/compare.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "tune/compare_kernels.h"
#include "tune/parallel.h"

enum {
    BLOCK = 1024,
    GLANCE = 64,
    LARGE_COPY = 32 << 20 /* what few caches have room for beside anything else */
};

typedef struct format {
    double roundoff, accumulator, subnormal;
} format;

static format format_of(int dtype) {
    const double f32 = 0x1p-24;
    switch (dtype) {
    case KG_F32:
        return (format){f32, f32, 0x1p-149};
    case KG_F16:
        return (format){0x1p-11, f32, 0x1p-24};
    case KG_BF16:
        return (format){0x1p-8, f32, 0x1p-133};
    default:
        return (format){0x1p-53, 0x1p-53, 0x1p-1074};
    }
}

kg_range kg_range_of(int dtype) {
    switch (dtype) {
    case KG_F32:
        return (kg_range){FLT_MAX, 1e-4};
    case KG_F16:
        return (kg_range){65504, 1e-2};
    case KG_BF16:
        return (kg_range){0x1.fep127, 1e-2};
    default:
        return (kg_range){DBL_MAX, 1e-8};
    }
}

static bool is_float(int dtype) {
    return dtype == KG_F32 || dtype == KG_F64 || dtype == KG_F16 || dtype == KG_BF16;
}

static double or_zero(double x) {
    return isfinite(x) && x > 0 ? x : 0;
}

kg_tolerance kg_tolerance_of(int dtype, int precision, int64_t reduction, kg_errors torch_errors,
                             double scale) {
    if (!is_float(dtype))
        return (kg_tolerance){0, 0};
    format f = format_of(dtype);
    double sum = sqrt(reduction > 1 ? (double)reduction : 1) * f.accumulator;
    double input = precision == KG_PREC_TF32 ? 0x1p-11 : precision == KG_PREC_BF16 ? 0x1p-8 : 0;
    double tiny = scale > 0 ? f.subnormal / 2 / scale : 0;
    return (kg_tolerance){.norm = 4 * or_zero(torch_errors.norm) + f.roundoff + sum + 4 * input,
                          .max = 8 * or_zero(torch_errors.max) + 2 * f.roundoff + 4 * sum +
                                 16 * input + tiny};
}

uint64_t kg_poison(int dtype, uint64_t random) {
    switch (dtype) {
    case KG_F32: /* signalling: no operation gives one */
        return 0x7f800001u | (random & 0x803ffffeu);
    case KG_F64:
        return 0x7ff0000000000001u | (random & 0x8007fffffffffffeu);
    case KG_F16:
        return 0x7c01u | (random & 0x81feu);
    case KG_BF16:
        return 0x7f81u | (random & 0x803eu);
    case KG_BOOL:
        return 0x80u | (random & 0x7eu);
    default:
        return random | 1;
    }
}

static inline uint64_t bits_of(int dtype, const void *data, size_t i) {
    const char *at = (const char *)data + i * kg_dtype_size(dtype);
    uint64_t wide = 0;
    uint32_t word = 0;
    uint16_t half = 0;
    /* Of constant sizes, for which no function is called. */
    switch (kg_dtype_size(dtype)) {
    case 8:
        memcpy(&wide, at, 8);
        return wide;
    case 4:
        memcpy(&word, at, 4);
        return word;
    case 2:
        memcpy(&half, at, 2);
        return half;
    default:
        return (uint8_t)*at;
    }
}

uint64_t kg_low_bytes(int dtype, uint64_t pattern) {
    size_t size = kg_dtype_size(dtype);
    return size >= 8 ? pattern : pattern & ((UINT64_C(1) << (8 * size)) - 1);
}

static inline int64_t integer(int dtype, const void *data, size_t i) {
    uint64_t bits = bits_of(dtype, data, i);
    switch (dtype) {
    case KG_I8:
        return (int8_t)bits;
    case KG_I16:
        return (int16_t)bits;
    case KG_I32:
        return (int32_t)bits;
    default:
        return (int64_t)bits;
    }
}

static inline double element(int dtype, const void *data, size_t i) {
    uint64_t bits = bits_of(dtype, data, i);
    switch (dtype) {
    case KG_F64:
        return kg_bits_double(bits);
    case KG_F16:
        return kg_value_f16((uint32_t)bits);
    case KG_BF16:
        return kg_value_bf16((uint32_t)bits);
    case KG_F32:
        return kg_value_f32((uint32_t)bits);
    default:
        return (double)integer(dtype, data, i);
    }
}

double kg_element(int dtype, const void *data, size_t i) {
    return element(dtype, data, i);
}

void kg_element_text(int dtype, const void *data, size_t i, char out[40]) {
    double x = is_float(dtype) ? kg_element(dtype, data, i) : 0;
    if (isnan(x))
        snprintf(out, 40, "nan"); /* its sign means nothing */
    else if (is_float(dtype))
        snprintf(out, 40, "%.9g", x);
    else
        snprintf(out, 40, "%" PRId64, integer(dtype, data, i));
}

typedef struct part_result {
    kg_sums sums;
    char pad[64]; /* threads write their own lines */
} part_result;

typedef struct compare_job {
    int dtype;
    const char *out;
    const void *oracle;
    uint64_t poison;
    kg_range range;
    size_t size;
    kg_block_loop loop;
    part_result parts[KG_MAX_PARTS];
} compare_job;

/* dtype is a constant wherever this is inlined: what it decides is decided once. */
__attribute__((always_inline)) static inline void
add_floats(const compare_job *j, int dtype, size_t begin, size_t end, kg_sums *to) {
    const double *oracle = j->oracle;
    kg_sums s = *to;
    for (size_t i = begin; i < end; i++)
        kg_add_float(&s, element(dtype, j->out, i), oracle[i],
                     bits_of(dtype, j->out, i) == j->poison, j->range);
    *to = s;
}

static void one_by_one(const compare_job *j, size_t begin, size_t end, kg_sums *s) {
    switch (j->dtype) {
    case KG_F32:
        add_floats(j, KG_F32, begin, end, s);
        break;
    case KG_F16:
        add_floats(j, KG_F16, begin, end, s);
        break;
    case KG_BF16:
        add_floats(j, KG_BF16, begin, end, s);
        break;
    default:
        add_floats(j, KG_F64, begin, end, s);
    }
}

static void add_block(kg_sums *to, const kg_block *b) {
    kg_sums s = {.d2 = b->d2, .r2 = b->r2, .worst = b->worst, .scale = b->scale, .far = b->far};
    kg_add_sums(to, &s);
}

static void compare_floats(size_t part, size_t begin, size_t end, void *ctx) {
    compare_job *j = ctx;
    kg_sums *s = &j->parts[part].sums;
    for (size_t i = begin; i < end; i += BLOCK) {
        size_t n = end - i < BLOCK ? end - i : BLOCK, whole = n / 8 * 8;
        kg_block b = {0};
        j->loop(j->out + i * j->size, (const double *)j->oracle + i, whole, j->range.close, &b);
        if (b.odd || b.scale > j->range.largest)
            one_by_one(j, i, i + whole, s);
        else
            add_block(s, &b);
        one_by_one(j, i + whole, i + n, s);
    }
}

static void compare_integers(size_t part, size_t begin, size_t end, void *ctx) {
    compare_job *j = ctx;
    const int64_t *oracle = j->oracle;
    for (size_t i = begin; i < end; i++)
        kg_add_integer(&j->parts[part].sums, integer(j->dtype, j->out, i), oracle[i],
                       bits_of(j->dtype, j->out, i) == j->poison);
}

/* In units of scale; an oracle of zeros has the scale 1. */
static double relative(double error, double scale) {
    return error == 0 ? 0 : error / (scale > 0 ? scale : 1);
}

kg_comparison kg_comparison_of(int dtype, size_t n, const kg_sums *s) {
    return (kg_comparison){
        .n = n,
        .norm_err = relative(sqrt(s->d2), sqrt(s->r2)),
        .max_err = relative(s->worst, s->scale),
        .scale = s->scale,
        .unwritten = (size_t)s->unwritten,
        .nonfinite = (size_t)s->nonfinite,
        .misplaced = (size_t)s->misplaced,
        .unequal = (size_t)s->unequal,
        .not_close = (size_t)(s->far + s->unwritten + (is_float(dtype) ? 0 : s->unequal))};
}

static kg_block_loop loop_of(int dtype) {
    const kg_loops *loops = kg_compare_loops();
    switch (dtype) {
    case KG_F32:
        return loops->f32;
    case KG_F16:
        return loops->f16;
    case KG_BF16:
        return loops->bf16;
    default:
        return loops->f64;
    }
}

int kg_compare(int dtype, const void *out, const void *oracle, size_t n, uint64_t poison,
               size_t threads, kg_comparison *result, kg_error *err) {
    if (kg_dtype_size(dtype) == 0)
        return kg_fail(err, KG_EINVAL, "dtype %d is none", dtype);
    bool floats = is_float(dtype);
    compare_job j = {.dtype = dtype,
                     .out = out,
                     .oracle = oracle,
                     .poison = kg_low_bytes(dtype, poison),
                     .range = kg_range_of(dtype),
                     .size = kg_dtype_size(dtype)};
    if (floats)
        j.loop = loop_of(dtype);
    /* A thread costs 20 us, what a block of this size does too. */
    kg_parallel(n, 64 * (size_t)BLOCK, threads, floats ? compare_floats : compare_integers, &j);
    kg_sums all = {0};
    for (size_t i = 0; i < KG_MAX_PARTS; i++)
        kg_add_sums(&all, &j.parts[i].sums);
    *result = kg_comparison_of(dtype, n, &all);
    return KG_OK;
}

bool kg_element_wrong(int dtype, const void *out, const void *oracle, size_t i, uint64_t poison,
                      double limit) {
    if (!is_float(dtype)) {
        int64_t r = ((const int64_t *)oracle)[i];
        return integer(dtype, out, i) != r && !kg_any_integer(r);
    }
    if (bits_of(dtype, out, i) == kg_low_bytes(dtype, poison))
        return true;
    double x = element(dtype, out, i), r = ((const double *)oracle)[i];
    kg_fit f = kg_fit_of(x, r, kg_range_of(dtype).largest);
    return f == KG_FIT_FINITE ? fabs(x - r) > limit : f != KG_FIT_SAME;
}

void kg_index_of(const kg_tensor *shape, size_t at, int64_t index[KG_MAX_RANK]) {
    for (int32_t d = 0; d < shape->ndim; d++) {
        int64_t stride = shape->stride[d] > 0 ? shape->stride[d] : 1;
        index[d] = shape->size[d] > 1 ? (int64_t)at / stride % shape->size[d] : 0;
    }
}

/* Whether none of GLANCE elements is wrong, told by their largest error without looking at each. */
static bool none_wrong(kg_block_loop loop, const void *out, const double *oracle, double largest,
                       double limit) {
    kg_block b = {0};
    loop(out, oracle, GLANCE, 0, &b);
    return !b.odd && b.scale <= largest && b.worst <= limit;
}

/* Folds 64 places onto a shorter period. */
static uint64_t folded(uint64_t bits, int period) {
    for (int half = 32; half >= period; half /= 2)
        bits = (bits | bits >> half) & ((UINT64_C(1) << half) - 1);
    return bits;
}

int kg_period_of(const kg_mismatches *m, int32_t dim, uint64_t *bits) {
    /* Of so many elements at random half of the places stay free once in 2^16 outputs at most. */
    enum { ELEMENTS = 16, PERIODS = 4 };
    int found = 0, wrong = 1;
    for (int period = 2; period <= 64; period *= 2) {
        uint64_t b = folded(m->remainders[dim], period);
        int n = __builtin_popcountll(b);
        bool enough = m->high[dim] - m->low[dim] >= (int64_t)PERIODS * (period - 1) &&
                      m->count >= 2 * (size_t)period + ELEMENTS;
        /* The sparsest; of those the shortest. */
        if (!enough || 2 * n > period || (found && n * found >= wrong * period))
            continue;
        found = period;
        wrong = n;
        *bits = b;
    }
    return found;
}

void kg_find_more(const kg_tensor *shape, const void *out, const void *oracle, size_t first,
                  size_t n, uint64_t poison, double limit, kg_mismatches *found) {
    /* After that many, every 61st element tells where they lie well enough. */
    enum { EXACT = 1 << 20, STEP = 61 };
    kg_mismatches *m = found;
    size_t step = m->count > EXACT ? STEP : 1, size = kg_dtype_size(shape->dtype);
    kg_block_loop loop = is_float(shape->dtype) ? loop_of(shape->dtype) : NULL;
    double largest = kg_range_of(shape->dtype).largest;
    for (size_t i = 0; i < n; i += step) {
        if (loop && step == 1 && i % GLANCE == 0 && n - i >= GLANCE &&
            none_wrong(loop, (const char *)out + i * size, (const double *)oracle + i, largest,
                       limit)) {
            i += GLANCE - 1;
            continue;
        }
        if (!kg_element_wrong(shape->dtype, out, oracle, i, poison, limit))
            continue;
        int64_t index[KG_MAX_RANK];
        kg_index_of(shape, first + i, index);
        for (int32_t d = 0; d < shape->ndim; d++) {
            if (m->count == 0 || index[d] < m->low[d])
                m->low[d] = index[d];
            if (m->count == 0 || index[d] > m->high[d])
                m->high[d] = index[d];
            m->remainders[d] |= UINT64_C(1) << (index[d] % 64);
        }
        if (m->shown < KG_MAX_MISMATCHES) {
            m->got[m->shown] = bits_of(shape->dtype, out, i);
            m->expected[m->shown] = ((const uint64_t *)oracle)[i];
            memcpy(m->index[m->shown++], index, sizeof index);
        }
        m->count += step;
        step = m->count > EXACT ? STEP : 1;
    }
}

typedef struct bulk {
    char *to;
    const char *from;
    size_t size;
    uint64_t pattern;
    int64_t first[KG_MAX_PARTS];
} bulk;

static void fill_part(size_t part, size_t begin, size_t end, void *ctx) {
    bulk *b = ctx;
    (void)part;
    unsigned char unit[8];
    for (size_t i = 0; i < 8; i++)
        unit[i] = (unsigned char)(b->pattern >> (i % b->size * 8));
    uint64_t word;
    memcpy(&word, unit, 8);
    char *p = b->to + begin;
    size_t n = end - begin, i = 0;
    for (; i + 8 <= n; i += 8)
        memcpy(p + i, &word, 8);
    memcpy(p + i, unit, n - i);
}

void kg_fill_parallel(void *to, int dtype, size_t n, uint64_t pattern, size_t threads) {
    bulk b = {.to = to, .size = kg_dtype_size(dtype), .pattern = pattern};
    kg_parallel(n * b.size, 1 << 20, threads, fill_part, &b);
}

static void copy_part(size_t part, size_t begin, size_t end, void *ctx) {
    bulk *b = ctx;
    (void)part;
    memcpy(b->to + begin, b->from + begin, end - begin);
}

#if defined(__x86_64__)
/* Past the caches, which would first read what is then written over; memcpy does so only when it
 * copies more than what it takes for the machine's cache, of which a virtual machine has a part. */
static void stream_part(size_t part, size_t begin, size_t end, void *ctx) {
    bulk *b = ctx;
    (void)part;
    char *to = b->to + begin;
    const char *from = b->from + begin;
    size_t n = end - begin, head = (size_t)(-(uintptr_t)to & 15), i = head < n ? head : n;
    memcpy(to, from, i);
    for (; i + 64 <= n; i += 64)
        for (size_t k = i; k < i + 64; k += 16)
            _mm_stream_si128((__m128i *)(void *)(to + k),
                             _mm_loadu_si128((const __m128i *)(const void *)(from + k)));
    _mm_sfence();
    memcpy(to + i, from + i, n - i);
}
#else
#define stream_part copy_part
#endif

void kg_copy_parallel(void *to, const void *from, size_t bytes, size_t threads) {
    bulk b = {.to = to, .from = from};
    kg_parallel(bytes, 1 << 20, threads, bytes < LARGE_COPY ? copy_part : stream_part, &b);
}

static void differ_part(size_t part, size_t begin, size_t end, void *ctx) {
    enum { STRIDE = 64 << 10 };
    bulk *b = ctx;
    for (size_t i = begin; i < end; i += STRIDE) {
        size_t n = end - i < STRIDE ? end - i : STRIDE;
        if (memcmp(b->to + i, b->from + i, n) == 0)
            continue;
        while (b->to[i] == b->from[i])
            i++;
        b->first[part] = (int64_t)i;
        return;
    }
}

int64_t kg_differ_parallel(const void *a, const void *b, size_t bytes, size_t threads) {
    bulk job = {.to = (char *)(uintptr_t)a, .from = b};
    for (size_t i = 0; i < KG_MAX_PARTS; i++)
        job.first[i] = -1;
    kg_parallel(bytes, 1 << 20, threads, differ_part, &job);
    for (size_t i = 0; i < KG_MAX_PARTS; i++)
        if (job.first[i] >= 0)
            return job.first[i];
    return -1;
}
