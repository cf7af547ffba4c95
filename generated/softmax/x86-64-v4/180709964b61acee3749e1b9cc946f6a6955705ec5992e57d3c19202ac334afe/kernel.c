/* kgen
{ "format": 1, "op": "softmax", "target": "cpu",
  "tunables": {"WIDTH": [128, 64, 256, 32], "STREAM": [8, 0]},
  "specialize": ["N", "K"],
  "require": "input.dtype != float64 && K > 1 && input.contiguous && output.contiguous",
  "launches": [{"kernel": "softmax_columns", "range": "M * ceil_div(K, WIDTH)",
    "grain": "max(1, 16384 / max(N * min(K, WIDTH), 1))",
    "args": ["input", "output", {"i64": "M"}, {"i64": "N"}, {"i64": "K"}]}] }
*/
/* Softmax over a dim that is not the last: columns of N elements, K apart.
 *
 * An item is WIDTH neighbouring columns, which lie along the vector lanes, so that nothing is
 * reduced across lanes. When they fit the scratch buffer each element is read once from memory and
 * exponentiated once; else the rows go in chunks with a running maximum and are read twice. With K
 * below two vectors a whole [N][K] block is one item: VL rows are K whole vectors, vector v of each
 * such group holds the same columns, and K accumulators see all of them.
 *
 * Traffic: 2 * M * N * K elements for what fits. Floor: that over the rate of a copy.
 *
 * A column with NaN or +inf, and one of -inf, comes out as NaN. Refuses K == 1: rows.c is for that.
 */
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
/* Floats of scratch. */
#define FIT 32768
/* Rows that are summed on their own. */
#define RUN 64
/* Rows shorter than two vectors go lane by lane through whole vectors (narrow_block). */
#define NARROW (2 * VL)
#define LOG2E 1.44269504088896341f

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));
typedef uint16_t vh __attribute__((vector_size(2 * VL)));

INLINE vf splat(float x) {
    return x - (vf){0};
}

INLINE vf pick(vi mask, vf a, vf b) {
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
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

/* e^(x - low) for x <= low. The difference comes first: x * log2e overflows where x is as low as a
 * mask makes it, and a column of nothing else would be NaN. */
INLINE vf exp_below(vf x, vf low) {
    return exp2_((x - low) * LOG2E);
}

/* What sums against `from` are multiplied with to stand against `to`. */
INLINE vf quotient(vf from, vf to) {
    return exp2_((from - to) * LOG2E);
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

INLINE vf fetch(const char *x, int64_t i, int lanes) {
    return lanes == VL ? load(x, i) : load_tail(x, i, i + lanes);
}

INLINE void put(char *y, int64_t i, vf v, int lanes, int streamed) {
    if (lanes < VL)
        store_tail(y, i, i + lanes, v);
    else if (streamed)
        stream(y, i, v);
    else
        store(y, i, v);
}

INLINE vf scratch(const float *e, int64_t i) {
    vf v;
    memcpy(&v, e + i, sizeof v);
    return v;
}

/* Maximum of rows [0, n) at x, which are k elements apart. */
INLINE void block_peak(const int vectors, const int lanes, const char *x, int64_t n, int64_t k,
                       vf *top) {
    for (int64_t r = 0; r < n; r++)
        FULLY for (int v = 0; v < vectors; v++) top[v] =
            max_(top[v], fetch(x, r * k + v * VL, lanes));
}

/* Adds the exponentials of rows [0, n) to sum, in short runs so that rounding does not grow with n.
 */
INLINE void block_sum(const int vectors, const int lanes, const char *x, int64_t n, int64_t k,
                      const vf *low, float *e, vf *sum) {
    for (int64_t r0 = 0; r0 < n; r0 += RUN) {
        const int64_t r1 = n - r0 < RUN ? n : r0 + RUN;
        vf part[WIDTH / VL];
        FULLY for (int v = 0; v < vectors; v++) part[v] = (vf){0};
        for (int64_t r = r0; r < r1; r++)
            FULLY for (int v = 0; v < vectors; v++) {
                vf p = exp_below(fetch(x, r * k + v * VL, lanes), low[v]);
                if (e)
                    memcpy(e + (r * vectors + v) * VL, &p, sizeof p);
                part[v] += p;
            }
        FULLY for (int v = 0; v < vectors; v++) sum[v] += part[v];
    }
}

/* `vectors` vectors of columns, of which the last may have fewer than VL lanes (then vectors is 1).
 */
INLINE void column_block(const int vectors, const int lanes, const char *x, char *y, int64_t n,
                         int64_t k, float *e, int streamed) {
    const int64_t chunk = FIT / (vectors * VL);
    vf peak[WIDTH / VL], low[WIDTH / VL], sum[WIDTH / VL];
    FULLY for (int v = 0; v < vectors; v++) peak[v] = splat(-INFINITY), low[v] = sum[v] = (vf){0};
    for (int64_t r = 0; r < n; r += chunk) {
        const int64_t rows = n - r < chunk ? n - r : chunk;
        vf top[WIDTH / VL];
        FULLY for (int v = 0; v < vectors; v++) top[v] = splat(-INFINITY);
        block_peak(vectors, lanes, x + r * k * SIZE, rows, k, top);
        FULLY for (int v = 0; v < vectors; v++) {
            const vf now = max_(peak[v], top[v]);
            const vf next = r + rows < n ? pick(now == -INFINITY, (vf){0}, now) : now;
            sum[v] = pick(sum[v] == 0, (vf){0}, sum[v] * quotient(low[v], next));
            peak[v] = now, low[v] = next;
        }
        FULLY for (int v = 0; v < vectors; v++) top[v] = (vf){0};
        block_sum(vectors, lanes, x + r * k * SIZE, rows, k, low, e, top);
        FULLY for (int v = 0; v < vectors; v++) sum[v] += top[v];
    }
    FULLY for (int v = 0; v < vectors; v++) sum[v] = 1 / sum[v];
    for (int64_t r = 0; r < n; r++)
        FULLY for (int v = 0; v < vectors; v++) {
            vf p = n <= chunk ? scratch(e, (r * vectors + v) * VL)
                              : exp_below(fetch(x, r * k + v * VL, lanes), low[v]);
            put(y, r * k + v * VL, p * sum[v], lanes, streamed);
        }
}

/* Joins the lanes of one column (as maximum or sum) and gives each of them the result; flat[i] is
 * column i % k. */
INLINE void join_lanes(float *flat, int64_t used, int64_t k, int64_t total, int sums) {
    float col[NARROW];
    for (int64_t c = 0; c < k; c++)
        col[c] = flat[c];
    for (int64_t i = k, c = 0; i < used; i++, c = c + 1 < k ? c + 1 : 0) {
        const float f = flat[i];
        col[c] = sums ? col[c] + f : col[c] > f ? col[c] : f;
    }
    for (int64_t i = 0, c = 0; i < total; i++, c = c + 1 < k ? c + 1 : 0)
        flat[i] = col[c];
}

/* All of an [n][k] block, k below two vectors. */
static __attribute__((noinline)) void narrow_block(const char *x, char *y, int64_t n, int64_t k,
                                                   float *e, int streamed) {
    union {
        vf v[NARROW];
        float f[NARROW * VL];
    } low, sum;
    vf part[NARROW];
    const int64_t total = n * k, used = n < VL ? total : k * VL, vectors = (used + VL - 1) / VL;
    const int fits = total <= FIT;
    for (int64_t v = 0; v < vectors; v++)
        low.v[v] = splat(-INFINITY), sum.v[v] = part[v] = (vf){0};
    for (int64_t i = 0, v = 0; i < total; i += VL, v = v + 1 < vectors ? v + 1 : 0)
        low.v[v] = max_(low.v[v], i + VL <= total ? load(x, i) : load_tail(x, i, total));
    join_lanes(low.f, used, k, vectors * VL, 0);
    for (int64_t i = 0, v = 0, run = 0; i < total; i += VL) {
        vf p = exp_below(i + VL <= total ? load(x, i) : load_tail(x, i, total), low.v[v]);
        if (fits)
            memcpy(e + i, &p, sizeof p);
        part[v] += p;
        v = v + 1 < vectors ? v + 1 : 0;
        if (v == 0 && ++run == RUN) {
            for (int64_t u = 0; u < vectors; u++)
                sum.v[u] += part[u], part[u] = (vf){0};
            run = 0;
        }
    }
    for (int64_t v = 0; v < vectors; v++)
        sum.v[v] += part[v];
    join_lanes(sum.f, used, k, vectors * VL, 1);
    for (int64_t v = 0; v < vectors; v++)
        sum.v[v] = 1 / sum.v[v];
    for (int64_t i = 0, v = 0; i < total; i += VL, v = v + 1 < vectors ? v + 1 : 0) {
        const int lanes = total - i < VL ? (int)(total - i) : VL;
        vf p = fits ? scratch(e, i) : exp_below(fetch(x, i, lanes), low.v[v]);
        put(y, i, p * sum.v[v], lanes, streamed);
    }
}

void softmax_columns(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                     int64_t m, int64_t n, int64_t k);

void softmax_columns(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output,
                     int64_t m, int64_t n, int64_t k) {
    float e[FIT + VL] __attribute__((aligned(64)));
#if KG_EXACT_N
    n = N;
#endif
#if KG_EXACT_K
    k = K;
#endif
    const int64_t blocks = (k + WIDTH - 1) / WIDTH;
    const int large = STREAM && m * n * k * SIZE >= STREAM * INT64_C(1048576);
    const int whole = (uintptr_t)output % sizeof(stored) == 0;
    for (int64_t i = begin; i < end; i++) {
        const int64_t at = i / blocks * n * k, left = i % blocks * WIDTH;
        const char *x = (const char *)input + (at + left) * SIZE;
        char *y = (char *)output + (at + left) * SIZE;
        if (k < NARROW && k % VL) {
            narrow_block(x, y, n, k, e, large && whole && n * k % VL == 0);
            continue;
        }
        const int streamed = large && whole && k % VL == 0;
        const int64_t columns = k - left < WIDTH ? k - left : WIDTH;
        int64_t c = 0;
        if (columns == WIDTH) {
            column_block(WIDTH / VL, VL, x, y, n, k, e, streamed);
            continue;
        }
        for (; c + VL <= columns; c += VL)
            column_block(1, VL, x + c * SIZE, y + c * SIZE, n, k, e, streamed);
        if (c < columns)
            column_block(1, (int)(columns - c), x + c * SIZE, y + c * SIZE, n, k, e, 0);
    }
#if VL > 4
    if (large)
        _mm_sfence();
#endif
}
