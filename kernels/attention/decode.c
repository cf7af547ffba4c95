/* kgen
{ "format": 1, "op": "attention", "target": "cpu",
  "tunables": {"SPLIT": [2, 1, 4, 8], "BLOCK_N": [256, 64, 128]},
  "specialize": ["D", "DV"],
  "require": "query.dtype != float64 && HQ / HKV * SQ <= 16 && D <= 256 && DV <= 256 && (query.stride(3) == 1 || D == 1) && (key.stride(3) == 1 || D == 1) && (value.stride(3) == 1 || DV == 1)",
  "workspace": {"partial": {"dtype": "float32", "shape": ["SPLIT > 1 ? B * HQ * SQ * SPLIT : 1", "DV + 2"]}},
  "holes": ["SCORE", "MASK"],
  "launches": [
    {"kernel": "attention_part", "range": "B * HKV * SPLIT",
     "grain": "ceil_div(32768, max(1, HQ / HKV * SQ * ceil_div(SK, SPLIT) * (D + DV)))",
     "args": ["query", "key", "value", "output", "lse", "partial", "programs",
              {"i64": "HQ"}, {"i64": "HKV"}, {"i64": "SQ"}, {"i64": "SK"}, {"i64": "D"}, {"i64": "DV"},
              {"i64": "query.stride(0)"}, {"i64": "query.stride(1)"}, {"i64": "query.stride(2)"},
              {"i64": "key.stride(0)"}, {"i64": "key.stride(1)"}, {"i64": "key.stride(2)"},
              {"i64": "value.stride(0)"}, {"i64": "value.stride(1)"}, {"i64": "value.stride(2)"},
              {"f32": "scale"}]},
    {"kernel": "attention_join", "range": "B * HQ * SQ", "grain": 8, "when": "SPLIT > 1",
     "args": ["output", "lse", "partial", {"i64": "HQ"}, {"i64": "HKV"}, {"i64": "SQ"}, {"i64": "DV"}]}] }
*/
/* Attention for few queries: decoding, with or without grouped heads.
 *
 * One item is all queries of all heads that share one head of keys, against one of SPLIT parts of
 * the keys; the second launch joins the parts. d lies along the vector lanes: a score is d / VL
 * products and, for VL keys at a time, a tree of additions that leaves one score a lane. Keys and
 * values are read once, in order.
 *
 * Traffic: K and V once. Floor: their bytes over the rate of reading.
 *
 * Refuses more than 16 queries a head of keys (flash.c is for those), head sizes over 256 and
 * tensors whose innermost stride is not 1. */
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

#define ROWS 16
#define HALF (KG_DTYPE_query != KG_F32)
#define SIZE ((int64_t)sizeof(KG_T_query))
#define D_MAX 256
#define LOG2E 1.44269504088896341f
#define LN2 0.693147180559945309f
#define ALIGNED __attribute__((aligned(64)))

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));
typedef uint16_t vh __attribute__((vector_size(2 * VL)));
struct strides {
    int64_t batch, head, row;
};

struct problem {
    const char *query, *key, *value;
    struct kg_programs programs;
    int64_t hq, hkv, sq, sk, d, dv;
    struct strides q, k, v;
    float scale;
};

/* State of row r: query r % SQ of the group's head r / SQ. */
struct item {
    float query[ROWS][D_MAX] ALIGNED;
    float output[ROWS][D_MAX] ALIGNED;
    float score[ROWS][BLOCK_N] ALIGNED;
    float keep[KG_HAS_MASK ? BLOCK_N : 1] ALIGNED;
    float peak[ROWS], sum[ROWS]; /* peak: the running maximum, times log2(e) */
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

INLINE float peak_of(vf v) {
    float m = v[0];
    UNROLL for (int i = 1; i < VL; i++) m = m > v[i] ? m : v[i];
    return m;
}

INLINE float sum_of(vf v) {
    float s = 0;
    UNROLL for (int i = 0; i < VL; i++) s += v[i];
    return s;
}

/* VL elements of the tensors' type at element i; those at n and past it read as 0. */
INLINE vf fetch(const char *p, int64_t i, int64_t n) {
#if HALF
    vh v = {0};
#else
    vf v = {0};
#endif
    if (i + VL <= n) {
        memcpy(&v, p + i * SIZE, sizeof v);
    } else {
#if VL == 16 && HALF
        v = (vh)_mm256_maskz_loadu_epi16((__mmask16)((1u << (n - i)) - 1), p + i * SIZE);
#elif VL == 16
        v = _mm512_maskz_loadu_ps((__mmask16)((1u << (n - i)) - 1), p + i * SIZE);
#else
        memcpy(&v, p + i * SIZE, (size_t)((n - i) * SIZE));
#endif
    }
#if HALF
    return widen(v);
#else
    return v;
#endif
}

INLINE void write_row(char *to, const float *from, int64_t n) {
    for (int64_t i = 0; i < n; i += VL) {
        const size_t bytes = (size_t)((n - i < VL ? n - i : VL) * SIZE);
#if HALF
        vh v = narrow(load(from + i));
#else
        vf v = load(from + i);
#endif
        if (bytes == sizeof v)
            memcpy(to + i * SIZE, &v, sizeof v);
        else
            memcpy(to + i * SIZE, &v, bytes);
    }
}

/* Lane i of the result is the sum over the lanes of a[i]. */
INLINE vf sum_lanes(vf *a) {
    UNROLL for (int n = VL / 2; n > 0; n /= 2) UNROLL for (int i = 0; i < n; i++) a[i] =
        SHUFFLE(a[i], a[i + n], LOW) + SHUFFLE(a[i], a[i + n], HIGH);
    return a[0];
}

/* Scores of all rows against keys [0, n) at key; -inf from n to the next multiple of VL. */
INLINE void tile_scores(const struct problem *pr, struct item *it, int rows, const char *key,
                        int n) {
    for (int t = 0; t < n; t += VL) {
        const char *at[VL];
        UNROLL for (int i = 0; i < VL; i++) at[i] =
            key + (t + i < n ? t + i : n - 1) * pr->k.row * SIZE;
        for (int r = 0; r < rows; r++) {
            vf part[VL];
            UNROLL for (int i = 0; i < VL; i++) {
                part[i] = (vf){0};
                for (int64_t c = 0; c < pr->d; c += VL)
                    part[i] = fma_(load(&it->query[r][c]), fetch(at[i], c, pr->d), part[i]);
            }
            store(&it->score[r][t], sum_lanes(part));
        }
    }
}

INLINE void apply_programs(const struct problem *pr, struct item *it, int r, int32_t b, int32_t h,
                           int32_t q, int32_t k0, int n, int masked) {
    float *score = it->score[r];
#if KG_HAS_SCORE
    const struct kg_score_row row = kg_score_row(&pr->programs, b, h, q);
    for (int t = 0; t < n; t += VL)
        for (int i = t; i < t + VL; i++)
            score[i] = kg_score(&pr->programs, row, score[i], b, h, q, k0 + i);
#endif
#if KG_HAS_MASK
    if (masked) {
        const struct kg_mask_row seen = kg_mask_row(&pr->programs, b, h, q);
        for (int t = 0; t < n; t += VL)
            for (int i = t; i < t + VL; i++)
                it->keep[i] = (float)kg_mask(&pr->programs, seen, b, h, q, k0 + i);
        for (int t = 0; t < n; t += VL)
            store(score + t,
                  pick(load(it->keep + t) != (vf){0}, load(score + t), splat(-INFINITY)));
    }
#endif
    for (int t = n; t % VL; t++)
        score[t] = -INFINITY;
    (void)pr, (void)b, (void)h, (void)q, (void)k0, (void)masked;
}

/* Scores to probabilities; returns what the old sums must be multiplied with. */
INLINE float tile_softmax(struct item *it, int r, int n) {
    float *score = it->score[r];
    vf top = splat(-INFINITY), part = (vf){0};
    for (int t = 0; t < n; t += VL)
        top = max_(top, load(score + t));
    const float peak = peak_of(top) * LOG2E, now = peak > it->peak[r] ? peak : it->peak[r];
    const float low = now == -INFINITY ? 0 : now, decay = exp2_(splat(it->peak[r] - low))[0];
    for (int t = 0; t < n; t += VL) {
        vf p = exp2_(fma_(load(score + t), splat(LOG2E), splat(-low)));
        store(score + t, p);
        part += p;
    }
    it->peak[r] = now;
    it->sum[r] = it->sum[r] * decay + sum_of(part);
    return decay;
}

/* `vectors` vectors of the output row from column c on. */
INLINE void value_cols(const int vectors, const struct problem *pr, float *output,
                       const float *score, const char *value, int n, int64_t c, float decay) {
    vf acc[8];
    UNROLL for (int j = 0; j < vectors; j++) acc[j] = load(output + c + j * VL) * decay;
    for (int t = 0; t < n; t++) {
        const vf p = splat(score[t]);
        UNROLL for (int j = 0; j < vectors; j++) acc[j] =
            fma_(p, fetch(value + t * pr->v.row * SIZE, c + j * VL, pr->dv), acc[j]);
    }
    UNROLL for (int j = 0; j < vectors; j++) store(output + c + j * VL, acc[j]);
}

INLINE void tile_values(const struct problem *pr, struct item *it, int r, const char *value, int n,
                        float decay) {
    int64_t c = 0;
    for (; c + 8 * VL <= pr->dv; c += 8 * VL)
        value_cols(8, pr, it->output[r], it->score[r], value, n, c, decay);
    for (; c + 4 * VL <= pr->dv; c += 4 * VL)
        value_cols(4, pr, it->output[r], it->score[r], value, n, c, decay);
    for (; c < pr->dv; c += VL)
        value_cols(1, pr, it->output[r], it->score[r], value, n, c, decay);
}

INLINE void start_item(const struct problem *pr, struct item *it, int rows, int64_t b,
                       int64_t head) {
    for (int r = 0; r < rows; r++) {
        const int64_t at =
            b * pr->q.batch + (head + r / pr->sq) * pr->q.head + r % pr->sq * pr->q.row;
        for (int64_t c = 0; c < pr->d; c += VL)
            store(&it->query[r][c], fetch(pr->query + at * SIZE, c, pr->d) * pr->scale);
        memset(it->output[r], 0, sizeof it->output[r]);
        it->peak[r] = -INFINITY, it->sum[r] = 0;
    }
}

/* Keys [k0, k1) of head hk. */
INLINE void attend(const struct problem *pr, struct item *it, int64_t b, int64_t hk, int64_t k0,
                   int64_t k1) {
    const int64_t head = hk * (pr->hq / pr->hkv);
    const int rows = (int)(pr->hq / pr->hkv * pr->sq);
    const char *key = pr->key + (b * pr->k.batch + hk * pr->k.head) * SIZE;
    const char *value = pr->value + (b * pr->v.batch + hk * pr->v.head) * SIZE;
    start_item(pr, it, rows, b, head);
    for (; k0 < k1; k0 += BLOCK_N) {
        const int n = k1 - k0 < BLOCK_N ? (int)(k1 - k0) : BLOCK_N;
        int code[ROWS], any = 0;
        for (int r = 0; r < rows; r++) {
#if KG_HAS_MASK
            const int32_t q = (int32_t)(r % pr->sq);
            code[r] = kg_mask_range(&pr->programs, (int32_t)b, (int32_t)(head + r / pr->sq), q,
                                    q + 1, (int32_t)k0, (int32_t)k0 + n);
#else
            code[r] = 1;
#endif
            any |= code[r];
        }
        if (!any)
            continue;
        tile_scores(pr, it, rows, key + k0 * pr->k.row * SIZE, n);
        for (int r = 0; r < rows; r++) {
            if (!code[r])
                continue;
            apply_programs(pr, it, r, (int32_t)b, (int32_t)(head + r / pr->sq),
                           (int32_t)(r % pr->sq), (int32_t)k0, n, code[r] == 2);
            const float decay = tile_softmax(it, r, n);
            tile_values(pr, it, r, value + k0 * pr->v.row * SIZE, n, decay);
        }
    }
}

/* row: the sums of exponentials times values, against the maximum peak (times log2(e)). */
INLINE void finish_row(char *output, float *lse, float *row, float peak, float sum, int64_t dv) {
    const vf scale = splat(sum == 0 ? 0 : 1 / sum);
    for (int64_t c = 0; c < dv; c += VL)
        store(row + c, sum == 0 ? (vf){0} : load(row + c) * scale);
    write_row(output, row, dv);
    if (lse)
        *lse = sum == 0 ? -INFINITY : peak * LN2 + logf(sum);
}

void attention_part(int64_t begin, int64_t end, const KG_T_query *query, const KG_T_key *key,
                    const KG_T_value *value, KG_T_output *output, KG_T_lse *lse,
                    KG_T_partial *partial, KG_PROGRAMS programs, int64_t hq, int64_t hkv,
                    int64_t sq, int64_t sk, int64_t d, int64_t dv, int64_t q0, int64_t q1,
                    int64_t q2, int64_t k0, int64_t k1, int64_t k2, int64_t v0, int64_t v1,
                    int64_t v2, float scale);
void attention_join(int64_t begin, int64_t end, KG_T_output *output, KG_T_lse *lse,
                    KG_T_partial *partial, int64_t hq, int64_t hkv, int64_t sq, int64_t dv);

void attention_part(int64_t begin, int64_t end, const KG_T_query *query, const KG_T_key *key,
                    const KG_T_value *value, KG_T_output *output, KG_T_lse *lse,
                    KG_T_partial *partial, KG_PROGRAMS programs, int64_t hq, int64_t hkv,
                    int64_t sq, int64_t sk, int64_t d, int64_t dv, int64_t q0, int64_t q1,
                    int64_t q2, int64_t k0, int64_t k1, int64_t k2, int64_t v0, int64_t v1,
                    int64_t v2, float scale) {
    struct item it;
    struct problem pr = {
        .query = (const char *)query,
        .key = (const char *)key,
        .value = (const char *)value,
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
    const int64_t rows = hq / hkv * sq, part = ((sk + SPLIT - 1) / SPLIT + VL - 1) / VL * VL;
    (void)programs;
#if KG_EXACT_D
    pr.d = D;
#endif
#if KG_EXACT_DV
    pr.dv = DV;
#endif
    for (int64_t i = begin; i < end; i++) {
        const int64_t group = i / SPLIT, from = i % SPLIT * part,
                      to = from + part < sk ? from + part : sk;
        attend(&pr, &it, group / hkv, group % hkv, from, to);
        for (int64_t r = 0; r < rows; r++) {
            if (SPLIT == 1) {
                char *to_row = (char *)output + (group * rows + r) * pr.dv * SIZE;
                finish_row(to_row, lse ? lse + group * rows + r : 0, it.output[r], it.peak[r],
                           it.sum[r], pr.dv);
            } else {
                float *to_row = partial + (i * rows + r) * (pr.dv + 2);
                memcpy(to_row, it.output[r], (size_t)pr.dv * 4);
                to_row[pr.dv] = it.peak[r], to_row[pr.dv + 1] = it.sum[r];
            }
        }
    }
}

void attention_join(int64_t begin, int64_t end, KG_T_output *output, KG_T_lse *lse,
                    KG_T_partial *partial, int64_t hq, int64_t hkv, int64_t sq, int64_t dv) {
    const int64_t rows = hq / hkv * sq;
    for (int64_t i = begin; i < end; i++) {
        const float *from = partial + (i / rows * SPLIT * rows + i % rows) * (dv + 2);
        const int64_t step = rows * (dv + 2);
        float row[D_MAX] ALIGNED = {0}, peak = -INFINITY, sum = 0;
        for (int s = 0; s < SPLIT; s++)
            peak = from[s * step + dv] > peak ? from[s * step + dv] : peak;
        for (int s = 0; s < SPLIT; s++) {
            const float low = peak == -INFINITY ? 0 : peak,
                        share = exp2f(from[s * step + dv] - low);
            for (int64_t c = 0; c < dv; c++)
                row[c] += from[s * step + c] * share;
            sum += from[s * step + dv + 1] * share;
        }
        finish_row((char *)output + i * dv * SIZE, lse ? lse + i : 0, row, peak, sum, dv);
    }
}
