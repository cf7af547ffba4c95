/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "tunables": {"BLOCK": [16384, 8192, 32768], "UNROLL": [4, 8]},
  "specialize": ["N"],
  "require": "input.dtype != float64 && K == 1 && input.contiguous && output.contiguous && N >= 2 * BLOCK && M < NUM_THREADS",
  "workspace": {"partial": {"dtype": "float32", "shape": ["M * ceil_div(N, BLOCK)", "2"]}},
  "launches": [
    {"kernel": "softmax_part", "range": "M * ceil_div(N, BLOCK)", "args": ["input", "output", "partial", {"i64": "N"}]},
    {"kernel": "softmax_join", "range": "M * ceil_div(N, BLOCK)", "args": ["input", "output", "partial", {"i64": "N"}]}] }
*/
/* Softmax over few long rows (the logits of one token): BLOCK elements of a row are an item, so
 * that all threads have work.
 *
 * The first launch leaves each block's maximum and sum in the workspace and, for float outputs, its
 * exponentials in the output; the second joins the blocks of the row and scales. Half outputs would
 * round twice, so their exponentials are computed again.
 *
 * Traffic: 3 or 4 times M * N elements, out of the cache that a few rows fit. Refuses what rows.c
 * does as well: many rows, short rows. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define VL 16
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define VL 8
#else
#define VL 4
#endif
#define INLINE static inline __attribute__((always_inline, unused))
#define PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define FULLY PRAGMA(clang loop unroll(full))
#else
#define FULLY PRAGMA(GCC unroll 16)
#endif

#define HALF (KG_DTYPE_input != KG_F32)
#define SIZE ((int64_t)sizeof(KG_T_input))
#define LOG2E 1.44269504088896341f

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));
typedef uint16_t vh __attribute__((vector_size(2 * VL)));

INLINE vf splat(float x) {
    return x - (vf){0};
}

#if VL == 4
INLINE vf pick(vi mask, vf a, vf b) {
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}
#endif

INLINE vf fma_(vf a, vf b, vf c) {
#if VL == 16
    return _mm512_fmadd_ps(a, b, c);
#elif VL == 8
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

/* b where either is NaN: a NaN reaches the result through its exponential. */
INLINE vf max_(vf a, vf b) {
#if VL == 16
    return _mm512_max_ps(a, b);
#elif VL == 8
    return _mm256_max_ps(a, b);
#else
    return pick(a > b, a, b);
#endif
}

INLINE float peak_of(vf v) {
#if VL == 16
    __m256 a = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
#elif VL == 8
    __m256 a = v;
#endif
#if VL > 4
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
#else
    float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
#endif
}

INLINE float sum_of(vf v) {
#if VL == 16
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
#elif VL == 8
    __m256 a = v;
#endif
#if VL > 4
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
#else
    return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

INLINE vf poly(vf r) {
    vf p = splat(0x1.416b54p-13f);
    p = fma_(p, r, splat(0x1.5f082ep-10f));
    p = fma_(p, r, splat(0x1.3b2de0p-7f));
    p = fma_(p, r, splat(0x1.c6af7cp-5f));
    p = fma_(p, r, splat(0x1.ebfbdcp-3f));
    p = fma_(p, r, splat(0x1.62e430p-1f));
    return fma_(p, r, splat(1.0f));
}

/* 2^x for x up to 127; 0 for -inf, NaN for NaN; within 1 ulp. */
INLINE vf exp2_(vf x) {
#if VL == 16
    vf n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vf r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_scalef_ps(poly(r), n);
#else
    x = max_(splat(-127.0f), x);
#if VL == 8
    vf n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vi e = (vi)_mm256_cvtps_epi32(n);
#else
    vf n = (x + 0x1.8p23f) - 0x1.8p23f;
    vi e = __builtin_convertvector(pick(n == n, n, (vf){0}), vi);
#endif
    return poly(x - n) * (vf)((e + 127) << 23);
#endif
}

/* e^(x - peak) for x <= peak. The difference comes first: x * log2e overflows where x is as low as a
 * mask makes it, and a row of nothing else would be NaN. */
INLINE vf exp_below(vf x, float peak) {
    return exp2_((x - peak) * LOG2E);
}

#if HALF
INLINE vf widen(vh h) {
#if KG_DTYPE_input == KG_BF16
    return (vf)(__builtin_convertvector(h, vu) << 16);
#elif VL == 16
    return _mm512_cvtph_ps((__m256i)h);
#elif VL == 8
    return _mm256_cvtph_ps((__m128i)h);
#else
    vu u = __builtin_convertvector(h, vu), rest = u & 0x7fff;
    vu special = (vu)(rest >= 0x7c00) & 0x7f800000;
    return (vf)((vu)((vf)(rest << 13) * 0x1p112f) | special | (u & 0x8000) << 16);
#endif
}

INLINE vh narrow(vf f) {
    vu u = (vu)f;
#if KG_DTYPE_input == KG_BF16
    vu nan = (vu)(f != f), even = u + 0x7fff + (u >> 16 & 1);
    return __builtin_convertvector((nan & 0x7fc0) | (~nan & even >> 16), vh);
#elif VL == 16
    (void)u;
    return (vh)_mm512_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif VL == 8
    (void)u;
    return (vh)_mm256_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    vu a = u & 0x7fffffff, sign = u >> 16 & 0x8000;
    vu big = (vu)(a >= 0x47800000), tiny = (vu)(a < 0x38800000);
    vu special = 0x7c00 | ((vu)(a > 0x7f800000) & 0x200);
    vu subnormal = (vu)((vf)a + 0.5f) - 0x3f000000;
    vu normal = (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13;
    vu r = (big & special) | (tiny & subnormal) | (~big & ~tiny & normal);
    return __builtin_convertvector(r | sign, vh);
#endif
}
typedef vh stored;
#else
INLINE vf widen(vf f) {
    return f;
}
INLINE vf narrow(vf f) {
    return f;
}
typedef vf stored;
#endif

/* VL elements at element i; past n they read as -inf, which adds nothing. */
INLINE vf load(const char *x, int64_t i) {
    stored v;
    memcpy(&v, x + i * SIZE, sizeof v);
    return widen(v);
}

INLINE vf load_tail(const char *x, int64_t i, int64_t n) {
    const vf none = splat(-INFINITY);
#if VL == 16 && HALF
    const __mmask16 lanes = (__mmask16)((1u << (n - i)) - 1);
    return widen((vh)_mm256_mask_loadu_epi16((__m256i)narrow(none), lanes, x + i * SIZE));
#elif VL == 16
    return _mm512_mask_loadu_ps(none, (__mmask16)((1u << (n - i)) - 1), x + i * SIZE);
#else
    stored v = narrow(none);
    memcpy(&v, x + i * SIZE, (size_t)((n - i) * SIZE));
    return widen(v);
#endif
}

INLINE void store(char *y, int64_t i, vf f) {
    stored v = narrow(f);
    memcpy(y + i * SIZE, &v, sizeof v);
}

INLINE void store_tail(char *y, int64_t i, int64_t n, vf f) {
#if VL == 16 && HALF
    const __mmask16 lanes = (__mmask16)((1u << (n - i)) - 1);
    _mm256_mask_storeu_epi16(y + i * SIZE, lanes, (__m256i)narrow(f));
#elif VL == 16
    _mm512_mask_storeu_ps(y + i * SIZE, (__mmask16)((1u << (n - i)) - 1), f);
#else
    stored v = narrow(f);
    memcpy(y + i * SIZE, &v, (size_t)((n - i) * SIZE));
#endif
}

INLINE float row_peak(const char *x, int64_t n) {
    vf top[UNROLL];
    int64_t i = 0;
    FULLY for (int u = 0; u < UNROLL; u++) top[u] = splat(-INFINITY);
    for (; i + UNROLL * VL <= n; i += UNROLL * VL)
        FULLY for (int u = 0; u < UNROLL; u++) top[u] = max_(top[u], load(x, i + u * VL));
    for (; i + VL <= n; i += VL)
        top[0] = max_(top[0], load(x, i));
    if (i < n)
        top[0] = max_(top[0], load_tail(x, i, n));
    FULLY for (int u = 1; u < UNROLL; u++) top[0] = max_(top[0], top[u]);
    return peak_of(top[0]);
}

/* What a sum against the maximum `from` is multiplied with to stand against `to`: the quotient of
 * exp_below's. */
INLINE double rescale(float from, float to) {
    return exp2((double)(from - to) * (double)LOG2E);
}

/* Sum of e^(x[i] - peak) over n elements, each of which is also written to y times scale, when y is
 * not NULL. */
INLINE float row_exp(const char *x, char *y, int64_t n, float peak, float scale) {
    vf part[UNROLL];
    int64_t i = 0;
    FULLY for (int u = 0; u < UNROLL; u++) part[u] = (vf){0};
    for (; i + UNROLL * VL <= n; i += UNROLL * VL)
        FULLY for (int u = 0; u < UNROLL; u++) {
            vf p = exp_below(load(x, i + u * VL), peak);
            if (y)
                store(y, i + u * VL, p * scale);
            part[u] += p;
        }
    for (; i + VL <= n; i += VL) {
        vf p = exp_below(load(x, i), peak);
        if (y)
            store(y, i, p * scale);
        part[0] += p;
    }
    if (i < n) {
        vf p = exp_below(load_tail(x, i, n), peak);
        if (y)
            store_tail(y, i, n, p * scale);
        part[0] += p;
    }
    FULLY for (int u = 1; u < UNROLL; u++) part[0] += part[u];
    return sum_of(part[0]);
}

INLINE void row_scale(char *y, int64_t n, float scale) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL)
        store(y, i, load(y, i) * scale);
    if (i < n)
        store_tail(y, i, n, load_tail(y, i, n) * scale);
}

void softmax_part(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  KG_T_partial *partial, int64_t n);
void softmax_join(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  KG_T_partial *partial, int64_t n);

void softmax_part(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  KG_T_partial *partial, int64_t n) {
#if KG_EXACT_N
    n = N;
#endif
    const int64_t blocks = (n + BLOCK - 1) / BLOCK;
    for (int64_t i = begin; i < end; i++) {
        const int64_t from = i % blocks * BLOCK, part = n - from < BLOCK ? n - from : BLOCK;
        const char *x = (const char *)input + (i / blocks * n + from) * SIZE;
        char *y = (char *)output + (i / blocks * n + from) * SIZE;
        const float peak = row_peak(x, part);
        partial[2 * i] = peak;
        partial[2 * i + 1] = row_exp(x, HALF ? 0 : y, part, peak == -INFINITY ? 0 : peak, 1);
    }
}

void softmax_join(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  KG_T_partial *partial, int64_t n) {
#if KG_EXACT_N
    n = N;
#endif
    const int64_t blocks = (n + BLOCK - 1) / BLOCK;
    for (int64_t i = begin; i < end; i++) {
        const int64_t from = i % blocks * BLOCK, part = n - from < BLOCK ? n - from : BLOCK;
        const char *x = (const char *)input + (i / blocks * n + from) * SIZE;
        char *y = (char *)output + (i / blocks * n + from) * SIZE;
        const float *row = partial + 2 * (i / blocks * blocks), own = partial[2 * i];
        float peak = -INFINITY;
        double sum = 0;
        for (int64_t b = 0; b < blocks; b++)
            peak = row[2 * b] > peak ? row[2 * b] : peak;
        for (int64_t b = 0; b < blocks; b++) {
            const float low = row[2 * b] == -INFINITY ? 0 : row[2 * b];
            sum += row[2 * b + 1] == 0 ? 0 : (double)row[2 * b + 1] * rescale(low, peak);
        }
        if (HALF)
            row_exp(x, y, part, peak, (float)(1 / sum));
        else
            row_scale(y, part, (float)(rescale(own == -INFINITY ? peak : own, peak) / sum));
    }
}
