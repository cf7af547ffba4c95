/* kgen
{ "format": 1, "op": "attention", "target": "cpu",
  "tunables": {"BLOCK_M": [64, 32, 128, 16], "BLOCK_N": [64, 128, 32], "MR": [6, 4, 8, 12], "NR": [2, 4, 1]},
  "specialize": ["D", "DV"],
  "require": "D <= 256 && DV <= 256 && (query.stride(3) == 1 || D == 1) && (key.stride(3) == 1 || D == 1) && (value.stride(3) == 1 || DV == 1) && BLOCK_M % (NR * (ARCH >= 4 ? 16 : ARCH == 3 ? 8 : 4)) == 0 && MR * NR <= (ARCH >= 4 ? 24 : 12)",
  "holes": ["SCORE", "MASK"],
  "launches": [{"kernel": "attention_flash", "range": "B * HQ * ceil_div(SQ, BLOCK_M)",
    "args": ["query", "key", "value", "output", "lse", "programs",
             {"i64": "HQ"}, {"i64": "HKV"}, {"i64": "SQ"}, {"i64": "SK"}, {"i64": "D"}, {"i64": "DV"},
             {"i64": "query.stride(0)"}, {"i64": "query.stride(1)"}, {"i64": "query.stride(2)"},
             {"i64": "key.stride(0)"}, {"i64": "key.stride(1)"}, {"i64": "key.stride(2)"},
             {"i64": "value.stride(0)"}, {"i64": "value.stride(1)"}, {"i64": "value.stride(2)"},
             {"f32": "scale"}]}] }
*/
/* Flash attention with the query index along the vector lanes.
 *
 * One item is BLOCK_M queries of one head. Everything is kept transposed: the queries as [d][lane], the scores of
 * a tile as [kv][lane], the output as [dv][lane]. Keys and values are then read as they lie, one broadcast an
 * element, nothing is packed (half types are widened once a tile), and maximum, sum and rescaling are plain
 * vector operations without one reduction across lanes. A panel is NR vectors of queries; the micro-kernels hold
 * MR x NR sums in registers over the whole of d (scores) or the whole tile (values).
 *
 * Traffic: K and V of a head once an item, out of L2; flops 2 * SQ * SK * (D + DV) a head, less the tiles that the
 * mask empties. Floor: flops over the fp32 FMA peak.
 *
 * Refuses head sizes over 256 (its stack buffers) and tensors whose innermost stride is not 1. Short queries
 * (SQ below about 16) waste lanes: decode.c is for those. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define VL 16
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define VL 8
#else
#define VL 4
#endif
#define INLINE static inline __attribute__((always_inline))
#define PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define UNROLL PRAGMA(unroll)
#else
#define UNROLL PRAGMA(GCC unroll 16)
#endif

#define PANEL (NR * VL)
#define PANELS (BLOCK_M / PANEL)
#define HALF (KG_DTYPE_query != KG_F32)
#if KG_EXACT_D
#define D_MAX D
#else
#define D_MAX 256
#endif
#if KG_EXACT_DV
#define DV_MAX DV
#else
#define DV_MAX 256
#endif
#define LOG2E 1.44269504088896341f
#define LN2 0.693147180559945309f

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
    KG_PROGRAMS programs;
    int64_t hq, hkv, sq, sk, d, dv;
    struct strides q, k, v;
    float scale;
};

/* What one item keeps while it walks over the tiles; state of lane i of panel p is at [p][i]. */
struct item {
    panel query[PANELS][D_MAX] ALIGNED;
    panel output[PANELS][DV_MAX] ALIGNED;
    panel peak[PANELS] ALIGNED; /* running maximum, times log2(e) */
    panel sum[PANELS] ALIGNED;
    panel score[BLOCK_N] ALIGNED;
#if KG_HAS_MASK
    int32_t keep[BLOCK_N][PANEL] ALIGNED;
#endif
#if HALF
    float key[BLOCK_N * D_MAX] ALIGNED;
#endif
    float value[BLOCK_N * DV_MAX] ALIGNED;
};

INLINE vf splat(float x) { return x - (vf){0}; }

INLINE vf load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }

INLINE vf pick(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

INLINE vf fma_(vf a, vf b, vf c) {
#if VL == 16
    return _mm512_fmadd_ps(a, b, c);
#elif VL == 8
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

/* b where either is NaN, so that a running maximum keeps no NaN and the exponential brings it up. */
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

/* 2^x for x up to 127; 0 for -inf, NaN for NaN; relative error 2e-7. */
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

/* n elements of the tensors' type at p, as floats. */
INLINE void read_row(float *to, const char *p, int64_t n) {
#if HALF
    int64_t i = 0;
    vh h;
    for (; i + VL <= n; i += VL) {
        memcpy(&h, p + 2 * i, sizeof h);
        store(to + i, widen(h));
    }
    if (i < n) {
        vh tail = {0};
        memcpy(&tail, p + 2 * i, (size_t)(n - i) * 2);
        vf f = widen(tail);
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
        memcpy(to + 2 * i, &h, sizeof h);
    }
    if (i < n) {
        vf tail = {0};
        memcpy(&tail, p + i, (size_t)(n - i) * 4);
        vh h = narrow(tail);
        memcpy(to + 2 * i, &h, (size_t)(n - i) * 2);
    }
#else
    memcpy(to, p, (size_t)n * 4);
#endif
}

/* score[i][.] = key[i] . query for `rows` keys (a constant). */
INLINE void score_rows(const int rows, panel *score, const panel *query, const float *key, int64_t stride,
                       int64_t d) {
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
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < NR; j++) store(&score[i][j * VL], acc[i][j]);
}

/* output[i][.] = output[i][.] * decay + sum over the tile of value[t][i] * score[t][.] for `cols` columns. */
INLINE void value_cols(const int cols, panel *output, const panel *score, const float *value, int64_t stride,
                       int n, const vf *decay) {
    vf acc[MR][NR];
    UNROLL for (int i = 0; i < cols; i++) UNROLL for (int j = 0; j < NR; j++)
        acc[i][j] = load(&output[i][j * VL]) * decay[j];
    for (int t = 0; t < n; t++) {
        vf p[NR];
        UNROLL for (int j = 0; j < NR; j++) p[j] = load(&score[t][j * VL]);
        UNROLL for (int i = 0; i < cols; i++) {
            vf v = splat(value[t * stride + i]);
            UNROLL for (int j = 0; j < NR; j++) acc[i][j] = fma_(v, p[j], acc[i][j]);
        }
    }
    UNROLL for (int i = 0; i < cols; i++) UNROLL for (int j = 0; j < NR; j++) store(&output[i][j * VL], acc[i][j]);
}

/* Scores to probabilities against the new maximum; decay is what the old sums must be multiplied with. */
INLINE void softmax_tile(panel *score, int n, float *peak, float *sum, vf *decay) {
    vf top[NR], low[NR], part[NR];
    UNROLL for (int j = 0; j < NR; j++) top[j] = splat(-INFINITY);
    for (int t = 0; t < n; t++) UNROLL for (int j = 0; j < NR; j++) top[j] = max_(top[j], load(&score[t][j * VL]));
    UNROLL for (int j = 0; j < NR; j++) {
        vf old = load(peak + j * VL), now = max_(old, top[j] * LOG2E);
        low[j] = pick(now == -INFINITY, (vf){0}, now);
        decay[j] = exp2_(old - low[j]);
        store(peak + j * VL, now);
        part[j] = (vf){0};
    }
    for (int t = 0; t < n; t++) UNROLL for (int j = 0; j < NR; j++) {
        vf p = exp2_(fma_(load(&score[t][j * VL]), splat(LOG2E), -low[j]));
        store(&score[t][j * VL], p);
        part[j] += p;
    }
    UNROLL for (int j = 0; j < NR; j++) store(sum + j * VL, fma_(load(sum + j * VL), decay[j], part[j]));
}

#if KG_HAS_MASK
/* Fills keep for keys k0 .. k0+n-1 and narrows *first, *last to the keys that any query sees. */
INLINE void mask_tile(struct item *it, KG_PROGRAMS programs, int32_t b, int32_t h, int32_t q0, int32_t k0,
                      int *first, int *last) {
    int lo = *last, hi = 0;
    for (int t = *first; t < *last; t++) {
        int32_t any = 0;
        for (int i = 0; i < PANEL; i++) {
            int32_t seen = kg_mask(programs, kg_mask_row(programs, b, h, q0 + i), b, h, q0 + i, k0 + t);
            it->keep[t][i] = -(seen != 0);
            any |= seen;
        }
        lo = any && t < lo ? t : lo;
        hi = any ? t + 1 : hi;
    }
    *first = lo;
    *last = hi;
}
#endif

/* One panel against keys [first, last) of a tile. */
INLINE void panel_tile(const struct problem *pr, struct item *it, int p, int32_t b, int32_t h, int32_t q0,
                       int32_t k0, int first, int last, const float *key, int64_t key_stride,
                       const float *value, int64_t value_stride, int masked) {
#if KG_HAS_MASK
    if (masked) mask_tile(it, pr->programs, b, h, q0, k0, &first, &last);
    if (first >= last) return;
#endif
    int t = first;
    for (; t + MR <= last; t += MR)
        score_rows(MR, it->score + t, it->query[p], key + t * key_stride, key_stride, pr->d);
    for (; t < last; t++) score_rows(1, it->score + t, it->query[p], key + t * key_stride, key_stride, pr->d);
#if KG_HAS_SCORE
    for (t = first; t < last; t++) {
        float *s = it->score[t];
        for (int i = 0; i < PANEL; i++)
            s[i] = kg_score(pr->programs, kg_score_row(pr->programs, b, h, q0 + i), s[i], b, h, q0 + i, k0 + t);
    }
#endif
#if KG_HAS_MASK
    if (masked)
        for (t = first; t < last; t++) UNROLL for (int j = 0; j < NR; j++) {
            vi keep;
            memcpy(&keep, &it->keep[t][j * VL], sizeof keep);
            store(&it->score[t][j * VL], pick(keep, load(&it->score[t][j * VL]), splat(-INFINITY)));
        }
#endif
    vf decay[NR];
    softmax_tile(it->score + first, last - first, it->peak[p], it->sum[p], decay);
    int64_t c = 0;
    const float *v = value + first * value_stride;
    for (; c + MR <= pr->dv; c += MR)
        value_cols(MR, it->output[p] + c, it->score + first, v + c, value_stride, last - first, decay);
    for (; c < pr->dv; c++)
        value_cols(1, it->output[p] + c, it->score + first, v + c, value_stride, last - first, decay);
    (void)masked, (void)b, (void)h, (void)q0, (void)k0;
}

INLINE void start_item(const struct problem *pr, struct item *it, const char *query, int rows) {
    float row[D_MAX];
    for (int i = 0; i < BLOCK_M; i++) {
        if (i < rows) read_row(row, query + i * pr->q.row * (int64_t)sizeof(KG_T_query), pr->d);
        for (int64_t c = 0; c < pr->d; c++) it->query[i / PANEL][c][i % PANEL] = i < rows ? row[c] * pr->scale : 0;
    }
    for (int p = 0; p < PANELS; p++) {
        memset(it->output[p], 0, sizeof(panel) * (size_t)pr->dv);
        for (int i = 0; i < PANEL; i++) it->peak[p][i] = -INFINITY, it->sum[p][i] = 0;
    }
}

INLINE void finish_item(const struct problem *pr, struct item *it, char *output, float *lse, int rows) {
    float row[DV_MAX];
    for (int i = 0; i < rows; i++) {
        int p = i / PANEL, lane = i % PANEL;
        float sum = it->sum[p][lane], scale = 1 / sum;
        for (int64_t c = 0; c < pr->dv; c++) row[c] = sum == 0 ? 0 : it->output[p][c][lane] * scale;
        write_row(output + i * pr->dv * (int64_t)sizeof(KG_T_query), row, pr->dv);
        if (lse) lse[i] = sum == 0 ? -INFINITY : it->peak[p][lane] * LN2 + logf(sum);
    }
}

/* The state of each panel against the tile: 0 nothing, 1 all, 2 the mask decides. Returns whether any is not 0. */
INLINE int plan_tile(const struct problem *pr, int32_t b, int32_t h, int32_t q0, int32_t k0, int n, int *code) {
    int any = 0;
    for (int p = 0; p < PANELS; p++) {
        int32_t from = q0 + p * PANEL, to = from + PANEL < pr->sq ? from + PANEL : (int32_t)pr->sq;
#if KG_HAS_MASK
        code[p] = from < to ? kg_mask_range(pr->programs, b, h, from, to, k0, k0 + n) : 0;
#else
        code[p] = from < to;
#endif
        any |= code[p];
    }
    (void)b, (void)h, (void)k0, (void)n;
    return any;
}

/* A row stride that is a multiple of this many bytes puts a tile's rows in a few sets of the first-level cache. */
#define SET_STRIDE 1024

static __attribute__((noinline)) void attend(const struct problem *pr, struct item *it, int32_t b, int32_t h, int32_t q0) {
    const int64_t size = (int64_t)sizeof(KG_T_query), hk = h / (pr->hq / pr->hkv);
    const char *key = pr->key + (b * pr->k.batch + hk * pr->k.head) * size;
    const char *value = pr->value + (b * pr->v.batch + hk * pr->v.head) * size;
    const int rows = pr->sq - q0 < BLOCK_M ? (int)(pr->sq - q0) : BLOCK_M;
    const int copy = HALF || pr->v.row * size % SET_STRIDE == 0;
    start_item(pr, it, pr->query + (b * pr->q.batch + h * pr->q.head + q0 * pr->q.row) * size, rows);
    for (int64_t k0 = 0; k0 < pr->sk; k0 += BLOCK_N) {
        const int n = pr->sk - k0 < BLOCK_N ? (int)(pr->sk - k0) : BLOCK_N;
        int code[PANELS];
        if (!plan_tile(pr, b, h, q0, (int32_t)k0, n, code)) continue;
        const char *kt = key + k0 * pr->k.row * size, *vt = value + k0 * pr->v.row * size;
        const float *kf = (const float *)(const void *)kt, *vf_ = (const float *)(const void *)vt;
        int64_t ks = pr->k.row, vs = pr->v.row;
#if HALF
        for (int t = 0; t < n; t++) read_row(it->key + t * pr->d, kt + t * ks * size, pr->d);
        kf = it->key, ks = pr->d;
#endif
        if (copy) {
            for (int t = 0; t < n; t++) read_row(it->value + t * pr->dv, vt + t * vs * size, pr->dv);
            vf_ = it->value, vs = pr->dv;
        }
        for (int p = 0; p < PANELS; p++)
            if (code[p])
                panel_tile(pr, it, p, b, h, q0 + p * PANEL, (int32_t)k0, 0, n, kf, ks, vf_, vs, code[p] == 2);
    }
    const int64_t row = (b * pr->hq + h) * pr->sq + q0;
    finish_item(pr, it, pr->output + row * pr->dv * size, pr->lse ? pr->lse + row : 0, rows);
}

void attention_flash(int64_t begin, int64_t end, const KG_T_query *query, const KG_T_key *key,
                     const KG_T_value *value, KG_T_output *output, KG_T_lse *lse, KG_PROGRAMS programs,
                     int64_t hq, int64_t hkv, int64_t sq, int64_t sk, int64_t d, int64_t dv, int64_t q0,
                     int64_t q1, int64_t q2, int64_t k0, int64_t k1, int64_t k2, int64_t v0, int64_t v1,
                     int64_t v2, float scale);

void attention_flash(int64_t begin, int64_t end, const KG_T_query *query, const KG_T_key *key,
                     const KG_T_value *value, KG_T_output *output, KG_T_lse *lse, KG_PROGRAMS programs,
                     int64_t hq, int64_t hkv, int64_t sq, int64_t sk, int64_t d, int64_t dv, int64_t q0,
                     int64_t q1, int64_t q2, int64_t k0, int64_t k1, int64_t k2, int64_t v0, int64_t v1,
                     int64_t v2, float scale) {
    const struct problem pr = {.query = (const char *)query,
                               .key = (const char *)key,
                               .value = (const char *)value,
                               .output = (char *)output,
                               .lse = lse,
                               .programs = programs,
                               .hq = hq,
                               .hkv = hkv,
                               .sq = sq,
                               .sk = sk,
#if KG_EXACT_D
                               .d = D,
#else
                               .d = d,
#endif
#if KG_EXACT_DV
                               .dv = DV,
#else
                               .dv = dv,
#endif
                               .q = {q0, q1, q2},
                               .k = {k0, k1, k2},
                               .v = {v0, v1, v2},
                               .scale = scale};
    struct item it;
    const int64_t blocks = (sq + BLOCK_M - 1) / BLOCK_M;
    (void)d, (void)dv;
    for (int64_t i = begin; i < end; i++) {
        const int64_t head = i / blocks, r = i % blocks;
        /* First and last block in turn, so that any even run of items costs the same under a causal mask. */
        const int64_t block = r & 1 ? blocks - 1 - r / 2 : r / 2;
        attend(&pr, &it, (int32_t)(head / hq), (int32_t)(head % hq), (int32_t)(block * BLOCK_M));
    }
}
