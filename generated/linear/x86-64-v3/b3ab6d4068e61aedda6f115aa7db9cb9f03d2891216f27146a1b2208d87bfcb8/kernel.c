/* kgen
{ "format": 1, "op": "linear", "target": "cpu",
  "tunables": {"COLS": [16, 32, 64], "NR": [4, 8, 2], "BLOCK_K": [1024, 2048, 512]},
  "require": "M <= 16 && (input.stride(1) == 1 || K == 1) && (weight.stride(1) == 1 || K == 1) && COLS % NR == 0",
  "holes": ["EPILOGUE"],
  "launches": [{"kernel": "linear_few", "range": "ceil_div(N, COLS)", "grain": "max(1, 32768 / max(1, M * K * COLS / 16))",
    "args": ["input", "weight", "bias", "output", "programs", {"i64": "M"}, {"i64": "N"}, {"i64": "K"},
             {"i64": "input.stride(0)"}, {"i64": "weight.stride(0)"}, {"i64": "present(bias) ? bias.stride(0) : 0"}]}] }
*/
/* A linear layer of few rows, whose time is the trip of the weights from memory. One item is COLS
 * columns of the output, so COLS rows of the weight, NR of them at a time; each is multiplied with
 * all rows of the input as it goes by, in dot products along K, so that nothing is packed and no
 * weight is read twice from beyond the second cache. Sums stay vectors over the whole of K (a block
 * of K at a time when there is more than one row, so that the weights of a block stay in the first
 * cache) and are added across their lanes once; then bias and epilogue run over COLS columns.
 *
 * Traffic: N * K weights, once. Floor: that over the rate of a read.
 *
 * Refuses more than 16 rows, where packing the weights pays, and rows that are not contiguous. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define VL 16
#define MR 4
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define VL 8
#define MR 2
#else
#define VL 4
#define MR 2
#endif
#define INLINE static inline __attribute__((always_inline, unused))
#define PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define UNROLL PRAGMA(clang loop unroll(full))
#else
#define UNROLL PRAGMA(GCC unroll 16)
#endif
#define MAX_ROWS 16

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint16_t vh __attribute__((vector_size(2 * VL)));

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

INLINE float widen(KG_T_input x) {
#if KG_DTYPE_input == KG_BF16
    const uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
#else
    return (float)x;
#endif
}

INLINE vf load(const KG_T_input *p) {
#if KG_DTYPE_input == KG_F32
    vf v;
    memcpy(&v, p, sizeof(v));
    return v;
#elif KG_DTYPE_input == KG_BF16
    vh h;
    memcpy(&h, p, sizeof(h));
    return (vf)(__builtin_convertvector(h, vi) << 16);
#elif VL == 16
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif VL == 8
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    return (vf){(float)p[0], (float)p[1], (float)p[2], (float)p[3]};
#endif
}

/* The first n elements, n < VL; the others are 0. */
INLINE vf load_part(const KG_T_input *p, int64_t n) {
    KG_T_input part[VL];
    memset(part, 0, sizeof(part));
    for (int64_t i = 0; i < n; i++)
        part[i] = p[i];
    return load(part);
}

INLINE void store(KG_T_output *p, float x) {
#if KG_DTYPE_input == KG_BF16
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *p = (uint16_t)(x == x ? rounded : (bits >> 16) | 0x40);
#else
    *p = (KG_T_output)x;
#endif
}

/* sums[m][r] += x row m times w row r over K elements. */
INLINE void rows(const int nm, const int nr, const KG_T_input *x, int64_t xs, const KG_T_input *w,
                 int64_t ws, int64_t k, vf (*sums)[NR]) {
    vf acc[MR][NR];
    int64_t i = 0;
    UNROLL for (int m = 0; m < nm; m++) UNROLL for (int r = 0; r < nr; r++) acc[m][r] = sums[m][r];
    for (; i + VL <= k; i += VL) {
        vf b[NR];
        UNROLL for (int r = 0; r < nr; r++) b[r] = load(w + r * ws + i);
        UNROLL for (int m = 0; m < nm; m++) {
            const vf a = load(x + m * xs + i);
            UNROLL for (int r = 0; r < nr; r++) acc[m][r] = fma_(a, b[r], acc[m][r]);
        }
    }
    if (i < k) {
        vf b[NR];
        UNROLL for (int r = 0; r < nr; r++) b[r] = load_part(w + r * ws + i, k - i);
        UNROLL for (int m = 0; m < nm; m++) {
            const vf a = load_part(x + m * xs + i, k - i);
            UNROLL for (int r = 0; r < nr; r++) acc[m][r] = fma_(a, b[r], acc[m][r]);
        }
    }
    UNROLL for (int m = 0; m < nm; m++) UNROLL for (int r = 0; r < nr; r++) sums[m][r] = acc[m][r];
}

/* All rows of the input with nr rows of the weight. */
INLINE void panel(const int nr, const KG_T_input *x, int64_t xs, const KG_T_input *w, int64_t ws,
                  int64_t nrows, int64_t nk, vf (*sums)[NR]) {
    for (int64_t k = 0; k < nk; k += BLOCK_K) {
        const int64_t n = nrows > MR ? (nk - k < BLOCK_K ? nk - k : BLOCK_K) : nk;
        int64_t m = 0;
        for (; m + MR <= nrows; m += MR)
            rows(MR, nr, x + m * xs + k, xs, w + k, ws, n, sums + m);
#if MR == 4
        if (nrows - m == 3)
            rows(3, nr, x + m * xs + k, xs, w + k, ws, n, sums + m);
        else if (nrows - m == 2)
            rows(2, nr, x + m * xs + k, xs, w + k, ws, n, sums + m);
        else
#endif
            if (nrows - m == 1)
            rows(1, nr, x + m * xs + k, xs, w + k, ws, n, sums + m);
        if (n == nk)
            break;
    }
}

void linear_few(int64_t begin, int64_t end, const KG_T_input *input, const KG_T_weight *weight,
                const KG_T_bias *bias, KG_T_output *output, KG_PROGRAMS p, int64_t nrows, int64_t ncols,
                int64_t nk, int64_t input_step, int64_t weight_step, int64_t bias_step) {
    for (int64_t item = begin; item < end; item++) {
        const int64_t first = item * COLS;
        const int count = (int)(ncols - first < COLS ? ncols - first : COLS);
        float out[MAX_ROWS][COLS];
        for (int c = 0; c < count; c += NR) {
            const KG_T_weight *w = weight + (first + c) * weight_step;
            const int n = count - c < NR ? count - c : NR;
            vf sums[MAX_ROWS][NR];
            memset(sums, 0, (size_t)nrows * sizeof(sums[0]));
            if (n == NR)
                panel(NR, input, input_step, w, weight_step, nrows, nk, sums);
            else
                for (int r = 0; r < n; r++) {
                    vf one[MAX_ROWS][NR];
                    memset(one, 0, (size_t)nrows * sizeof(one[0]));
                    panel(1, input, input_step, w + r * weight_step, weight_step, nrows, nk, one);
                    for (int64_t m = 0; m < nrows; m++)
                        sums[m][r] = one[m][0];
                }
            for (int64_t m = 0; m < nrows; m++)
                for (int r = 0; r < n; r++)
                    out[m][c + r] = sum_of(sums[m][r]);
        }
        float add[COLS];
        for (int c = 0; c < COLS; c++)
            add[c] = bias != NULL && c < count ? widen(bias[(first + c) * bias_step]) : 0.0f;
        for (int64_t m = 0; m < nrows; m++) {
            const struct kg_epilogue_row row = kg_epilogue_row(p, 0, (int)m);
            float line[COLS];
            for (int c = 0; c < count; c++)
                line[c] = kg_epilogue(p, row, out[m][c] + add[c], 0, (int)m, (int)first + c);
            for (int c = 0; c < count; c++)
                store(output + m * ncols + first + c, line[c]);
        }
    }
}
