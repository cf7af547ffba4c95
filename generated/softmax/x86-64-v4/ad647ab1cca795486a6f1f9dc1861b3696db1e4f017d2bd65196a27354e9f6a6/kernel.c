/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "tunables": {"STREAM": [8, 0], "AHEAD": [1, 0, 2], "UNROLL": [4, 2, 8], "FIT": [65536, 16384]},
  "specialize": ["N"],
  "require": "input.dtype != float64 && K == 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))",
    "args": ["input", "output", {"i64": "M"}, {"i64": "N"}]}] }
*/
/* Softmax over contiguous rows, one trip to memory.
 *
 * A row that fits the scratch buffer (FIT floats) is read from memory once (maximum), exponentiated
 * into scratch while the next row is prefetched, and written scaled; outputs of STREAM MiB or more
 * bypass the cache, which saves reading what is overwritten. Longer rows go block by block with a
 * running maximum and are read twice.
 *
 * Traffic: 2 * M * N elements for rows that fit. Floor: that over the rate of a copy.
 *
 * A row with NaN or +inf, and a row of -inf, comes out as NaN. Refuses strided rows: columns.c is
 * for those. */
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

/* Past the cache; y + i * SIZE is a multiple of the size of what is stored. */
INLINE void stream(char *y, int64_t i, vf f) {
    stored v = narrow(f);
    void *to = y + i * SIZE;
#if VL == 16 && !HALF
    _mm512_stream_ps(to, v);
#elif VL == 16
    _mm256_stream_si256(to, (__m256i)v);
#elif VL == 8 && !HALF
    _mm256_stream_ps(to, v);
#elif VL == 8
    _mm_stream_si128(to, (__m128i)v);
#else
    memcpy(to, &v, sizeof v);
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

/* e[i] = e^(x[i] - peak), when e is not NULL; returns the sum. ahead is prefetched alongside. */
INLINE float row_exp(const char *x, float *e, int64_t n, float peak, const char *ahead) {
    vf part[UNROLL];
    int64_t i = 0;
    FULLY for (int u = 0; u < UNROLL; u++) part[u] = (vf){0};
    for (; i + UNROLL * VL <= n; i += UNROLL * VL)
        FULLY for (int u = 0; u < UNROLL; u++) {
            vf p = exp_below(load(x, i + u * VL), peak);
            if (AHEAD && ahead && (i + u * VL) * SIZE % 64 == 0)
                __builtin_prefetch(ahead + (i + u * VL) * SIZE, 0, AHEAD == 1 ? 3 : 2);
            if (e)
                memcpy(e + i + u * VL, &p, sizeof p);
            part[u] += p;
        }
    for (; i < n; i += VL) {
        vf p = exp_below(i + VL <= n ? load(x, i) : load_tail(x, i, n), peak);
        if (e)
            memcpy(e + i, &p, sizeof p);
        part[0] += p;
    }
    FULLY for (int u = 1; u < UNROLL; u++) part[0] += part[u];
    return sum_of(part[0]);
}

INLINE vf scratch(const float *e, int64_t i) {
    vf v;
    memcpy(&v, e + i, sizeof v);
    return v;
}

INLINE void row_write(char *y, const float *e, int64_t n, float scale, int streamed) {
    int64_t i = 0;
    const vf s = splat(scale);
    if (streamed) {
        int64_t skew = (int64_t)((uintptr_t)y % sizeof(stored)) / SIZE;
        if (skew && n > VL) {
            store(y, 0, scratch(e, 0) * s);
            i = VL - skew;
        }
        for (; i + VL <= n; i += VL)
            stream(y, i, scratch(e, i) * s);
    } else {
        for (; i + VL <= n; i += VL)
            store(y, i, scratch(e, i) * s);
    }
    if (i < n)
        store_tail(y, i, n, scratch(e, i) * s);
}

/* What a sum against the maximum `from` is multiplied with to stand against `to`: the quotient of
 * exp_below's. */
INLINE double rescale(float from, float to) {
    return exp2((double)(from - to) * (double)LOG2E);
}

/* Rows that do not fit: blocks with a running maximum, then a second reading. */
static __attribute__((noinline)) void long_row(const char *x, char *y, int64_t n, float *e,
                                               int streamed) {
    float peak = -INFINITY;
    double sum = 0;
    for (int64_t i = 0; i < n; i += FIT) {
        const int64_t part = n - i < FIT ? n - i : FIT;
        const float top = row_peak(x + i * SIZE, part), now = top > peak ? top : peak;
        const float low = now == -INFINITY ? 0 : now;
        sum = sum * rescale(peak, low) + (double)row_exp(x + i * SIZE, 0, part, low, 0);
        peak = now;
    }
    const float scale = (float)(1 / sum);
    for (int64_t i = 0; i < n; i += FIT) {
        const int64_t part = n - i < FIT ? n - i : FIT;
        row_exp(x + i * SIZE, e, part, peak, 0);
        row_write(y + i * SIZE, e, part, scale, streamed);
    }
}

void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t m, int64_t n);

void softmax_rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                  int64_t m, int64_t n) {
    float e[FIT + VL] __attribute__((aligned(64)));
#if KG_EXACT_N
    n = N;
#endif
    const int streamed = STREAM && m * n * SIZE >= STREAM * INT64_C(1048576);
    for (int64_t i = begin; i < end; i++) {
        const char *x = (const char *)input + i * n * SIZE;
        char *y = (char *)output + i * n * SIZE;
        if (n > FIT) {
            long_row(x, y, n, e, streamed);
        } else {
            const float peak = row_peak(x, n);
            const float sum = row_exp(x, e, n, peak, i + 1 < end ? x + n * SIZE : 0);
            row_write(y, e, n, 1 / sum, streamed);
        }
    }
#if VL > 4
    if (streamed)
        _mm_sfence();
#endif
}
