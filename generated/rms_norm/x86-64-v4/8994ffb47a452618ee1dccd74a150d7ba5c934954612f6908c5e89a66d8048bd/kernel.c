/* kgen
{ "format": 1, "op": "rms_norm", "target": "cpu",
  "tunables": {"STREAM": [8, 0], "AHEAD": [1, 0], "UNROLL": [4, 2, 8]},
  "specialize": ["N"],
  "require": "output.contiguous && (!present(weight) || weight.contiguous)",
  "launches": [{"kernel": "rms_norm_rows", "range": "M", "grain": "max(1, 16384 / max(N, 1))",
    "args": ["input", "weight", "output", {"i64": "M"}, {"i64": "N"}, {"f64": "eps"}]}] }
*/
/* RMSNorm over contiguous rows, one trip to memory: the squares, then the output, the row being in
 * cache at the second reading, and the next one prefetched while this one is written. Outputs of
 * STREAM MiB or more bypass the cache, which saves reading what is overwritten.
 *
 * Sums go in runs of RUN elements in float and from run to run in double.
 *
 * Traffic: 2 * M * N elements, and weight and bias once. Floor: that over the rate of a copy.
 *
 * NaN and infinity spread over their row as they do in torch. A row longer than the cache is read
 * from memory twice. */
#define CENTERED 0
#define ROWS rms_norm_rows
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
#define RUN 4096

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));
typedef uint16_t vh __attribute__((vector_size(2 * VL)));

INLINE vf splat(float x) {
    return x - (vf){0};
}

INLINE vf fma_(vf a, vf b, vf c) {
#if VL == 16
    return _mm512_fmadd_ps(a, b, c);
#elif VL == 8
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
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

/* VL elements at element i; past n they read as 0. */
INLINE vf load(const char *x, int64_t i) {
    stored v;
    memcpy(&v, x + i * SIZE, sizeof v);
    return widen(v);
}

INLINE vf load_tail(const char *x, int64_t i, int64_t n) {
#if VL == 16 && HALF
    const __mmask16 lanes = (__mmask16)((1u << (n - i)) - 1);
    return widen((vh)_mm256_maskz_loadu_epi16(lanes, x + i * SIZE));
#elif VL == 16
    return _mm512_maskz_loadu_ps((__mmask16)((1u << (n - i)) - 1), x + i * SIZE);
#else
    stored v = {0};
    memcpy(&v, x + i * SIZE, (size_t)((n - i) * SIZE));
    return widen(v);
#endif
}

/* The first `n` lanes of v, 0 in the others. */
INLINE vf first(vf v, int64_t n) {
    vi lane;
    FULLY for (int k = 0; k < VL; k++) lane[k] = k;
    return (vf)((vi)v & (lane < (int32_t)n));
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

typedef struct sums {
    double sum, square;
} sums;

/* Of x - shift, and of its square; what nobody looks at is not computed. */
INLINE sums run_sums(const char *x, int64_t n, float shift) {
    vf sum[UNROLL], square[UNROLL];
    int64_t i = 0;
    FULLY for (int u = 0; u < UNROLL; u++) sum[u] = square[u] = (vf){0};
    for (; i + UNROLL * VL <= n; i += UNROLL * VL)
        FULLY for (int u = 0; u < UNROLL; u++) {
            const vf d = load(x, i + u * VL) - shift;
            sum[u] += d;
            square[u] = fma_(d, d, square[u]);
        }
    for (; i < n; i += VL) {
        const vf d = i + VL <= n ? load(x, i) - shift : first(load_tail(x, i, n) - shift, n - i);
        sum[0] += d;
        square[0] = fma_(d, d, square[0]);
    }
    FULLY for (int u = 1; u < UNROLL; u++) sum[0] += sum[u], square[0] += square[u];
    return (sums){(double)sum_of(sum[0]), (double)sum_of(square[0])};
}

INLINE sums row_sums(const char *x, int64_t n, float shift) {
    sums all = {0, 0};
    for (int64_t i = 0; i < n; i += RUN) {
        const sums s = run_sums(x + i * SIZE, n - i < RUN ? n - i : RUN, shift);
        all.sum += s.sum;
        all.square += s.square;
    }
    return all;
}

/* An element becomes ((x - shift) * scale + offset) * weight + bias. */
typedef struct map {
    float shift, scale, offset;
    const char *weight, *bias; /* NULL: none */
} map;

INLINE map row_map(const char *x, int64_t n, double eps, const char *weight, const char *bias) {
    map m = {0, 0, 0, weight, bias};
    const double count = (double)n;
#if CENTERED
    const int64_t run = n < RUN ? n : RUN;
    m.shift = (float)(run_sums(x, run, 0).sum / (double)run);
    sums s = row_sums(x, n, m.shift);
    double rest = s.sum / count;
    if (4 * rest * rest > s.square / count) { /* the first run says little of the row */
        m.shift = (float)((double)m.shift + rest);
        s = row_sums(x, n, m.shift);
        rest = s.sum / count;
    }
    const double variance = s.square / count - rest * rest;
    const double scale = 1 / sqrt((variance < 0 ? 0 : variance) + eps);
    m.offset = (float)(-rest * scale);
#else
    const double scale = 1 / sqrt(row_sums(x, n, 0).square / count + eps);
#endif
    m.scale = (float)scale;
    return m;
}

INLINE vf mapped(const map *m, vf x, int64_t i, int64_t n, int weighted, int biased) {
    const int whole = i + VL <= n;
#if CENTERED
    vf y = fma_(x - m->shift, splat(m->scale), splat(m->offset));
#else
    vf y = x * m->scale;
#endif
    if (weighted)
        y *= whole ? load(m->weight, i) : load_tail(m->weight, i, n);
    if (biased)
        y += whole ? load(m->bias, i) : load_tail(m->bias, i, n);
    return y;
}

INLINE void row_write(const map *m, const char *x, char *y, int64_t n, const char *ahead,
                      int streamed, int weighted, int biased) {
    int64_t i = 0;
    const int64_t skew = (int64_t)((uintptr_t)y % sizeof(stored)) / SIZE;
    if (streamed && skew && n > VL) {
        store(y, 0, mapped(m, load(x, 0), 0, n, weighted, biased));
        i = VL - skew;
    }
    for (; i + VL <= n; i += VL) {
        const vf v = mapped(m, load(x, i), i, n, weighted, biased);
        if (AHEAD && ahead && (i * SIZE) % 64 < VL * SIZE)
            __builtin_prefetch(ahead + i * SIZE);
        if (streamed && (!skew || n > VL))
            stream(y, i, v);
        else
            store(y, i, v);
    }
    if (i < n)
        store_tail(y, i, n, mapped(m, load_tail(x, i, n), i, n, weighted, biased));
}

#if CENTERED
#define PARAMETERS                                                                                 \
    int64_t begin, int64_t end, const KG_T_input *input, const KG_T_weight *weight,                \
        const KG_T_bias *bias, KG_T_output *output, int64_t m, int64_t n, double eps
#else
#define PARAMETERS                                                                                 \
    int64_t begin, int64_t end, const KG_T_input *input, const KG_T_weight *weight,                \
        KG_T_output *output, int64_t m, int64_t n, double eps
#endif

void ROWS(PARAMETERS);

void ROWS(PARAMETERS) {
#if !CENTERED
    const char *bias = 0;
#endif
#if KG_EXACT_N
    n = N;
#endif
    const int streamed = STREAM && m * n * SIZE >= STREAM * INT64_C(1048576);
    for (int64_t i = begin; i < end; i++) {
        const char *x = (const char *)input + i * n * SIZE;
        char *y = (char *)output + i * n * SIZE;
        const char *ahead = i + 1 < end ? x + n * SIZE : 0;
        const map f = row_map(x, n, eps, (const char *)weight, (const char *)bias);
        if (weight && bias)
            row_write(&f, x, y, n, ahead, streamed, 1, 1);
        else if (weight)
            row_write(&f, x, y, n, ahead, streamed, 1, 0);
        else
            row_write(&f, x, y, n, ahead, streamed, 0, bias != 0);
    }
#if VL > 4
    if (streamed)
        _mm_sfence();
#endif
}
