/* kgen
{ "format": 1, "op": "attention", "target": "cpu",
  "tunables": {"BLOCK_M": [64, 128, 32, 16], "BLOCK_N": [64, 128], "MR": [4, 8, 6, 12], "NR": [2, 4, 1]},
  "specialize": ["D", "DV"],
  "require": "query.dtype != float64 && D <= 256 && DV <= 256 && (query.stride(3) == 1 || D == 1) && (key.stride(3) == 1 || D == 1) && (value.stride(3) == 1 || DV == 1) && BLOCK_M % (NR * (ARCH >= 4 ? 16 : ARCH == 3 ? 8 : 4)) == 0 && MR * NR <= (ARCH >= 4 ? 24 : 12) && MR * NR >= 8 && (NR > 1 || BLOCK_M == 16) && BLOCK_M + BLOCK_N <= 192",
  "holes": ["SCORE", "MASK"],
  "launches": [{"kernel": "attention_flash", "range": "B * HQ * ceil_div(SQ, BLOCK_M)",
    "grain": "ceil_div(32768, max(1, BLOCK_M * SK * (D + DV)))",
    "args": ["query", "key", "value", "output", "lse", "programs",
             {"i64": "HQ"}, {"i64": "HKV"}, {"i64": "SQ"}, {"i64": "SK"}, {"i64": "D"}, {"i64": "DV"},
             {"i64": "query.stride(0)"}, {"i64": "query.stride(1)"}, {"i64": "query.stride(2)"},
             {"i64": "key.stride(0)"}, {"i64": "key.stride(1)"}, {"i64": "key.stride(2)"},
             {"i64": "value.stride(0)"}, {"i64": "value.stride(1)"}, {"i64": "value.stride(2)"},
             {"f32": "scale"}]}] }
*/
/* Flash attention with the query index along the vector lanes.
 *
 * One item is BLOCK_M queries of one head. Everything is kept transposed: the queries as [d][lane],
 * the scores of a tile as [kv][lane], the output as [dv][lane]. Keys and values are then read as
 * they lie, one broadcast an element, nothing is packed (half types are widened once a tile), and
 * maximum, sum and rescaling are plain vector operations without one reduction across lanes. A
 * panel is NR vectors of queries; the micro-kernels hold MR x NR sums in registers over the whole
 * of d (scores) or the whole tile (values).
 *
 * Traffic: K and V of a head once an item, out of L2; flops 2 * SQ * SK * (D + DV) a head, less the
 * tiles that the mask empties. Floor: flops over the fp32 FMA peak.
 *
 * Refuses head sizes over 256 (its stack buffers) and tensors whose innermost stride is not 1. Few
 * queries (SQ below about 16) waste lanes: decode.c is for those. */
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
#define UNROLL PRAGMA(clang loop unroll(full))
#else
#define UNROLL PRAGMA(GCC unroll 16)
#endif

#define PANEL (NR * VL)
#define PANELS (BLOCK_M / PANEL)
#define HALF (KG_DTYPE_query != KG_F32)
#define SIZE ((int64_t)sizeof(KG_T_query))
#if KG_EXACT_D
#define D_MAX ((D + VL - 1) / VL * VL)
#else
#define D_MAX 256
#endif
#if KG_EXACT_DV
#define DV_MAX ((DV + VL - 1) / VL * VL)
#else
#define DV_MAX 256
#endif
#define LONGEST(a, b) ((a) > (b) ? (a) : (b))
#define LOG2E 1.44269504088896341f
#define LN2 0.693147180559945309f
/* A row stride that is a multiple of this many bytes puts a tile's rows in a few sets of the
 * first-level cache. */
#define SET_STRIDE 1024
/* A Program that looks something up by kv keeps a pointer in its row. Such tables are mostly
 * indexed [q][kv], so it runs along the keys, on the turned tile; any other runs along the queries,
 * on the tile as it lies. */
#define ALONG_KEYS(kind) (_Alignof(struct kg_##kind##_row) >= _Alignof(void *))

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));
typedef uint16_t vh __attribute__((vector_size(2 * VL)));
typedef float panel[PANEL];
#define ALIGNED __attribute__((aligned(64)))

struct strides {
    int64_t batch, head, row;
};

struct problem {
    const char *query, *key, *value;
    char *output;
    float *lse;
    struct kg_programs programs;
    int64_t hq, hkv, sq, sk, d, dv;
    struct strides q, k, v;
    float scale;
};

/* What one item keeps while it walks over the tiles; the state of lane i of panel p is at [p][i].
 */
struct item {
    panel query[PANELS][D_MAX] ALIGNED;
    panel output[PANELS][DV_MAX] ALIGNED;
    panel peak[PANELS] ALIGNED; /* running maximum, times log2(e) */
    panel sum[PANELS] ALIGNED;
    panel score[BLOCK_N] ALIGNED;
    panel keep[KG_HAS_MASK ? BLOCK_N : 1] ALIGNED; /* 1 where the mask is true, else 0 */
    float turned[VL][LONGEST(BLOCK_N, LONGEST(D_MAX, DV_MAX))] ALIGNED;
    float key[HALF ? BLOCK_N * D_MAX : 1] ALIGNED;
    float value[BLOCK_N * DV_MAX] ALIGNED;
};

/* A panel against a tile: queries q0 + lane, keys k0 + t for t in [first, last). */
struct tile {
    int32_t b, h, q0, k0;
    int first, last;
    const float *key, *value;
    int64_t key_stride, value_stride;
};

INLINE vf splat(float x) {
    return x - (vf){0};
}

INLINE vf load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vf v) {
    memcpy(p, &v, sizeof v);
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

/* b where either is NaN, so that a running maximum keeps no NaN and the exponential brings it up.
 */
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
    vf p = splat(0x1.5bda7ap-10f);
    p = fma_(p, r, splat(0x1.3ce8b0p-7f));
    p = fma_(p, r, splat(0x1.c6b6d8p-5f));
    p = fma_(p, r, splat(0x1.ebf9c2p-3f));
    p = fma_(p, r, splat(0x1.62e42ap-1f));
    return fma_(p, r, splat(1.0f));
}

/* 2^x for x up to 127; 0 below -126, NaN for NaN; relative error 2e-7. */
INLINE vf exp2_(vf x) {
#if VL == 16
    vf n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vf r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    /* Nothing below the normal numbers: products with such weights take an assist on some CPUs. */
    __mmask16 normal = _mm512_cmp_ps_mask(x, splat(-126.0f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(normal, poly(r), n);
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

#if HALF
INLINE vf widen(vh h) {
#if KG_DTYPE_query == KG_BF16
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
#if KG_DTYPE_query == KG_BF16
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
#endif

/* A VL x VL block: to[i][j] = from[j][i]. */
#if VL == 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif VL == 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

INLINE void turn(float *to, int64_t to_stride, const float *from, int64_t from_stride) {
    vf a[VL], b[VL];
    UNROLL for (int i = 0; i < VL; i++) a[i] = load(from + i * from_stride);
    UNROLL for (int step = 1; step < VL; step *= 4) {
        UNROLL for (int i = 0; i < VL / 2; i++) {
            b[2 * i] = SHUFFLE(a[i], a[i + VL / 2], LOW);
            b[2 * i + 1] = SHUFFLE(a[i], a[i + VL / 2], HIGH);
        }
        if (2 * step < VL)
            UNROLL for (int i = 0; i < VL / 2; i++) {
                a[2 * i] = SHUFFLE(b[i], b[i + VL / 2], LOW);
                a[2 * i + 1] = SHUFFLE(b[i], b[i + VL / 2], HIGH);
            }
        else
            UNROLL for (int i = 0; i < VL; i++) a[i] = b[i];
    }
    UNROLL for (int i = 0; i < VL; i++) store(to + i * to_stride, a[i]);
}

/* n elements of the tensors' type at p, as floats. */
INLINE void read_row(float *to, const char *p, int64_t n) {
#if HALF
    int64_t i = 0;
    vh h = {0};
    for (; i + VL <= n; i += VL) {
        memcpy(&h, p + SIZE * i, sizeof h);
        store(to + i, widen(h));
    }
    if (i < n) {
        h = (vh){0};
        memcpy(&h, p + SIZE * i, (size_t)((n - i) * SIZE));
        vf f = widen(h);
        memcpy(to + i, &f, (size_t)(n - i) * 4);
    }
#else
    memcpy(to, p, (size_t)n * 4);
#endif
}

INLINE void write_row(char *to, const float *p, int64_t n) {
#if HALF
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vh h = narrow(load(p + i));
        memcpy(to + SIZE * i, &h, sizeof h);
    }
    if (i < n) {
        vf tail = {0};
        memcpy(&tail, p + i, (size_t)(n - i) * 4);
        vh h = narrow(tail);
        memcpy(to + SIZE * i, &h, (size_t)((n - i) * SIZE));
    }
#else
    memcpy(to, p, (size_t)n * 4);
#endif
}

/* score[i][.] = key[i] . query for `rows` keys (a constant). */
INLINE void score_rows(const int rows, panel *score, const panel *query, const float *key,
                       int64_t stride, int64_t d) {
    vf acc[MR][NR];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < NR; j++) acc[i][j] = (vf){0};
    for (int64_t c = 0; c < d; c++) {
        vf q[NR];
        UNROLL for (int j = 0; j < NR; j++) q[j] = load(&query[c][j * VL]);
        UNROLL for (int i = 0; i < rows; i++) {
            vf k = splat(key[i * stride + c]);
            UNROLL for (int j = 0; j < NR; j++) acc[i][j] = fma_(k, q[j], acc[i][j]);
        }
    }
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < NR; j++)
        store(&score[i][j * VL], acc[i][j]);
}

/* output[i][.] = output[i][.] * decay + sum over n keys of value[t][i] * score[t][.] for `cols`
 * columns. */
INLINE void value_cols(const int cols, panel *output, const panel *score, const float *value,
                       int64_t stride, int n, const vf *decay) {
    vf acc[MR][NR];
    UNROLL for (int i = 0; i < cols; i++) UNROLL for (int j = 0; j < NR; j++) acc[i][j] =
        load(&output[i][j * VL]) * decay[j];
    for (int t = 0; t < n; t++) {
        vf p[NR];
        UNROLL for (int j = 0; j < NR; j++) p[j] = load(&score[t][j * VL]);
        UNROLL for (int i = 0; i < cols; i++) {
            vf v = splat(value[t * stride + i]);
            UNROLL for (int j = 0; j < NR; j++) acc[i][j] = fma_(v, p[j], acc[i][j]);
        }
    }
    UNROLL for (int i = 0; i < cols; i++) UNROLL for (int j = 0; j < NR; j++)
        store(&output[i][j * VL], acc[i][j]);
}

INLINE void tile_scores(const struct problem *pr, struct item *it, const struct tile *t, int p) {
    const float *key = t->key;
    const int64_t s = t->key_stride;
    int i = t->first;
    for (; i + MR <= t->last; i += MR)
        score_rows(MR, it->score + i, it->query[p], key + i * s, s, pr->d);
    for (; MR > 4 && i + 4 <= t->last; i += 4)
        score_rows(4, it->score + i, it->query[p], key + i * s, s, pr->d);
    for (; MR > 2 && i + 2 <= t->last; i += 2)
        score_rows(2, it->score + i, it->query[p], key + i * s, s, pr->d);
    for (; i < t->last; i++)
        score_rows(1, it->score + i, it->query[p], key + i * s, s, pr->d);
}

INLINE void tile_values(const struct problem *pr, struct item *it, const struct tile *t, int p,
                        const vf *decay) {
    const panel *score = it->score + t->first;
    const float *value = t->value + t->first * t->value_stride;
    const int64_t s = t->value_stride;
    const int n = t->last - t->first;
    int64_t c = 0;
    for (; c + MR <= pr->dv; c += MR)
        value_cols(MR, it->output[p] + c, score, value + c, s, n, decay);
    for (; MR > 4 && c + 4 <= pr->dv; c += 4)
        value_cols(4, it->output[p] + c, score, value + c, s, n, decay);
    for (; MR > 2 && c + 2 <= pr->dv; c += 2)
        value_cols(2, it->output[p] + c, score, value + c, s, n, decay);
    for (; c < pr->dv; c++)
        value_cols(1, it->output[p] + c, score, value + c, s, n, decay);
}

/* Scores to probabilities against the new maximum; decay is what the old sums must be multiplied
 * with. */
INLINE void tile_softmax(panel *score, int n, float *peak, float *sum, vf *decay) {
    vf top[NR], low[NR], part[NR];
    UNROLL for (int j = 0; j < NR; j++) top[j] = splat(-INFINITY);
    for (int t = 0; t < n; t++)
        UNROLL for (int j = 0; j < NR; j++) top[j] = max_(top[j], load(&score[t][j * VL]));
    UNROLL for (int j = 0; j < NR; j++) {
        vf old = load(peak + j * VL), now = max_(old, top[j] * LOG2E);
        low[j] = pick(now == -INFINITY, (vf){0}, now);
        decay[j] = exp2_(old - low[j]);
        store(peak + j * VL, now);
        part[j] = (vf){0};
    }
    for (int t = 0; t < n; t++)
        UNROLL for (int j = 0; j < NR; j++) {
            vf p = exp2_(fma_(load(&score[t][j * VL]), splat(LOG2E), -low[j]));
            store(&score[t][j * VL], p);
            part[j] += p;
        }
    UNROLL for (int j = 0; j < NR; j++)
        store(sum + j * VL, fma_(load(sum + j * VL), decay[j], part[j]));
}

#if KG_HAS_SCORE
INLINE void apply_score(const struct kg_programs *programs, struct item *it, const struct tile *t) {
    if (!ALONG_KEYS(score)) {
        for (int k = t->first; k < t->last; k++)
            for (int i = 0; i < PANEL; i++) {
                const struct kg_score_row row = kg_score_row(programs, t->b, t->h, t->q0 + i);
                it->score[k][i] =
                    kg_score(programs, row, it->score[k][i], t->b, t->h, t->q0 + i, t->k0 + k);
            }
        return;
    }
    const int first = t->first / VL * VL;
    for (int i0 = 0; i0 < PANEL; i0 += VL) {
        for (int k = first; k < t->last; k += VL)
            turn(&it->turned[0][k], sizeof *it->turned / 4, &it->score[k][i0], PANEL);
        for (int i = 0; i < VL; i++) {
            const struct kg_score_row row = kg_score_row(programs, t->b, t->h, t->q0 + i0 + i);
            for (int k = first; k < t->last; k += VL)
                for (int l = k; l < k + VL; l++)
                    it->turned[i][l] = kg_score(programs, row, it->turned[i][l], t->b, t->h,
                                                t->q0 + i0 + i, t->k0 + l);
        }
        for (int k = first; k < t->last; k += VL)
            turn(&it->score[k][i0], PANEL, &it->turned[0][k], sizeof *it->turned / 4);
    }
}
#endif

#if KG_HAS_MASK
/* Fills keep and narrows the tile to the keys that any of the queries sees. */
INLINE void find_mask(const struct kg_programs *programs, struct item *it, struct tile *t) {
    const int n = t->last;
    if (!ALONG_KEYS(mask)) {
        for (int k = 0; k < n; k++)
            for (int i = 0; i < PANEL; i++) {
                const struct kg_mask_row row = kg_mask_row(programs, t->b, t->h, t->q0 + i);
                it->keep[k][i] = (float)kg_mask(programs, row, t->b, t->h, t->q0 + i, t->k0 + k);
            }
    } else {
        for (int i0 = 0; i0 < PANEL; i0 += VL) {
            for (int i = 0; i < VL; i++) {
                const struct kg_mask_row row = kg_mask_row(programs, t->b, t->h, t->q0 + i0 + i);
                for (int k = 0; k < n; k += VL)
                    for (int l = k; l < k + VL; l++)
                        it->turned[i][l] =
                            (float)kg_mask(programs, row, t->b, t->h, t->q0 + i0 + i, t->k0 + l);
            }
            for (int k = 0; k < n; k += VL)
                turn(&it->keep[k][i0], PANEL, &it->turned[0][k], sizeof *it->turned / 4);
        }
    }
    t->first = n, t->last = 0;
    for (int k = 0; k < n; k++) {
        vf any = (vf){0};
        UNROLL for (int j = 0; j < NR; j++) any += load(&it->keep[k][j * VL]);
        float sum = 0;
        for (int l = 0; l < VL; l++)
            sum += any[l];
        if (sum > 0)
            t->first = k < t->first ? k : t->first, t->last = k + 1;
    }
}

INLINE void apply_mask(struct item *it, const struct tile *t) {
    for (int k = t->first; k < t->last; k++)
        UNROLL for (int j = 0; j < NR; j++) {
            vf s = load(&it->score[k][j * VL]), keep = load(&it->keep[k][j * VL]);
            store(&it->score[k][j * VL], pick(keep != (vf){0}, s, splat(-INFINITY)));
        }
}
#endif

INLINE void panel_tile(const struct problem *pr, struct item *it, int p, struct tile t,
                       int masked) {
    vf decay[NR];
#if KG_HAS_MASK
    if (masked)
        find_mask(&pr->programs, it, &t);
    if (t.first >= t.last)
        return;
#endif
    tile_scores(pr, it, &t, p);
#if KG_HAS_SCORE
    apply_score(&pr->programs, it, &t);
#endif
#if KG_HAS_MASK
    if (masked)
        apply_mask(it, &t);
#endif
    (void)masked;
    tile_softmax(it->score + t.first, t.last - t.first, it->peak[p], it->sum[p], decay);
    tile_values(pr, it, &t, p, decay);
}

/* Queries past `rows` are zeros, and what comes of them is not written. */
INLINE void start_item(const struct problem *pr, struct item *it, const char *query, int rows) {
    const vf scale = splat(pr->scale);
    for (int i = 0; i < BLOCK_M; i += VL) {
        panel *to = it->query[i / PANEL];
        for (int l = 0; l < VL; l++) {
            if (i + l < rows)
                read_row(it->turned[l], query + (i + l) * pr->q.row * SIZE, pr->d);
            else
                memset(it->turned[l], 0, (size_t)pr->d * 4);
        }
        for (int64_t c = 0; c < pr->d; c += VL)
            turn(&to[c][i % PANEL], PANEL, &it->turned[0][c], sizeof *it->turned / 4);
        for (int64_t c = 0; c < pr->d; c++)
            store(&to[c][i % PANEL], load(&to[c][i % PANEL]) * scale);
    }
    for (int p = 0; p < PANELS; p++) {
        memset(it->output[p], 0, sizeof(panel) * (size_t)pr->dv);
        for (int i = 0; i < PANEL; i++)
            it->peak[p][i] = -INFINITY, it->sum[p][i] = 0;
    }
}

INLINE void finish_item(const struct problem *pr, struct item *it, char *output, float *lse,
                        int rows) {
    for (int i = 0; i < rows; i += VL) {
        const int p = i / PANEL, lane = i % PANEL;
        const vf sum = load(&it->sum[p][lane]), scale = 1 / sum;
        panel *from = it->output[p];
        for (int64_t c = 0; c < pr->dv; c++)
            store(&from[c][lane], pick(sum == (vf){0}, sum, load(&from[c][lane]) * scale));
        for (int64_t c = 0; c < pr->dv; c += VL)
            turn(&it->turned[0][c], sizeof *it->turned / 4, &from[c][lane], PANEL);
        for (int l = 0; l < VL && i + l < rows; l++) {
            write_row(output + (i + l) * pr->dv * SIZE, it->turned[l], pr->dv);
            if (lse)
                lse[i + l] = sum[l] == 0 ? -INFINITY : it->peak[p][lane + l] * LN2 + logf(sum[l]);
        }
    }
}

/* What the mask makes of each panel against n keys: 0 nothing, 1 all, 2 it differs. Returns whether
 * any is not 0. */
INLINE int plan_tile(const struct problem *pr, const struct tile *t, int n, int *code) {
    int any = 0;
    for (int p = 0; p < PANELS; p++) {
        const int32_t from = t->q0 + p * PANEL,
                      to = from + PANEL < pr->sq ? from + PANEL : (int32_t)pr->sq;
#if KG_HAS_MASK
        code[p] =
            from < to ? kg_mask_range(&pr->programs, t->b, t->h, from, to, t->k0, t->k0 + n) : 0;
#else
        code[p] = from < to;
#endif
        any |= code[p];
    }
    (void)n;
    return any;
}

/* Where the tile's keys and values are as floats: in place, or in the item's copies. */
INLINE void fetch_tile(const struct problem *pr, struct item *it, struct tile *t, const char *key,
                       const char *value) {
    t->key = (const float *)(const void *)key, t->key_stride = pr->k.row;
    t->value = (const float *)(const void *)value, t->value_stride = pr->v.row;
#if HALF
    for (int i = 0; i < t->last; i++)
        read_row(it->key + i * pr->d, key + i * pr->k.row * SIZE, pr->d);
    t->key = it->key, t->key_stride = pr->d;
#endif
    if (HALF || pr->v.row * SIZE % SET_STRIDE == 0) {
        for (int i = 0; i < t->last; i++)
            read_row(it->value + i * pr->dv, value + i * pr->v.row * SIZE, pr->dv);
        t->value = it->value, t->value_stride = pr->dv;
    }
}

INLINE void attend(const struct problem *pr, struct item *it, int32_t b, int32_t h, int32_t q0) {
    const int64_t hk = h / (pr->hq / pr->hkv), out = (b * pr->hq + h) * pr->sq + q0;
    const char *query = pr->query + (b * pr->q.batch + h * pr->q.head + q0 * pr->q.row) * SIZE;
    const char *key = pr->key + (b * pr->k.batch + hk * pr->k.head) * SIZE;
    const char *value = pr->value + (b * pr->v.batch + hk * pr->v.head) * SIZE;
    const int rows = pr->sq - q0 < BLOCK_M ? (int)(pr->sq - q0) : BLOCK_M;
    start_item(pr, it, query, rows);
    for (int64_t k0 = 0; k0 < pr->sk; k0 += BLOCK_N) {
        struct tile t = {.b = b, .h = h, .q0 = q0, .k0 = (int32_t)k0};
        int code[PANELS];
        t.last = pr->sk - k0 < BLOCK_N ? (int)(pr->sk - k0) : BLOCK_N;
        if (!plan_tile(pr, &t, t.last, code))
            continue;
        fetch_tile(pr, it, &t, key + k0 * pr->k.row * SIZE, value + k0 * pr->v.row * SIZE);
        for (int p = 0; p < PANELS; p++) {
            t.q0 = q0 + p * PANEL;
            if (code[p])
                panel_tile(pr, it, p, t, code[p] == 2);
        }
    }
    finish_item(pr, it, pr->output + out * pr->dv * SIZE, pr->lse ? pr->lse + out : 0, rows);
}

void attention_flash(int64_t begin, int64_t end, const KG_T_query *query, const KG_T_key *key,
                     const KG_T_value *value, KG_T_output *output, KG_T_lse *lse,
                     KG_PROGRAMS programs, int64_t hq, int64_t hkv, int64_t sq, int64_t sk,
                     int64_t d, int64_t dv, int64_t q0, int64_t q1, int64_t q2, int64_t k0,
                     int64_t k1, int64_t k2, int64_t v0, int64_t v1, int64_t v2, float scale);

void attention_flash(int64_t begin, int64_t end, const KG_T_query *query, const KG_T_key *key,
                     const KG_T_value *value, KG_T_output *output, KG_T_lse *lse,
                     KG_PROGRAMS programs, int64_t hq, int64_t hkv, int64_t sq, int64_t sk,
                     int64_t d, int64_t dv, int64_t q0, int64_t q1, int64_t q2, int64_t k0,
                     int64_t k1, int64_t k2, int64_t v0, int64_t v1, int64_t v2, float scale) {
    struct item it;
    struct problem pr = {
        .query = (const char *)query,
        .key = (const char *)key,
        .value = (const char *)value,
        .output = (char *)output,
        .lse = lse,
#if KG_HAS_SCORE || KG_HAS_MASK
        .programs = *programs,
#endif
        .hq = hq,
        .hkv = hkv,
        .sq = sq,
        .sk = sk,
        .d = d,
        .dv = dv,
        .q = {q0, q1, q2},
        .k = {k0, k1, k2},
        .v = {v0, v1, v2},
        .scale = scale
    };
    const int64_t blocks = (sq + BLOCK_M - 1) / BLOCK_M;
    (void)programs;
#if KG_EXACT_D
    pr.d = D;
#endif
#if KG_EXACT_DV
    pr.dv = DV;
#endif
    for (int64_t i = begin; i < end; i++) {
        const int64_t head = i / blocks, r = i % blocks;
        /* First and last block in turn, so that any even run of items costs the same under a causal
         * mask. */
        const int64_t block = r & 1 ? blocks - 1 - r / 2 : r / 2;
        attend(&pr, &it, (int32_t)(head / hq), (int32_t)(head % hq), (int32_t)(block * BLOCK_M));
    }
}
