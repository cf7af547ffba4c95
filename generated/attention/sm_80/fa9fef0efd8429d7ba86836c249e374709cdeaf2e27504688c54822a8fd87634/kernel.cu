/* kgen
{ "format": 1, "op": "attention", "target": "cuda", "min_arch": "sm_80",
  "tunables": {"MT": [1, 2], "WARPS": [8, 4], "BLOCK_N": [64, 32, 128], "HEAD": [128, 64, 256], "MIN_BLOCKS": [1, 2]},
  "specialize": ["D", "DV"],
  "require": "(query.dtype == float16 || query.dtype == bfloat16) && max(D, DV) <= HEAD && SQ < 1073741824 && SK <= 4194304 && (query.stride(3) == 1 || D == 1) && (key.stride(3) == 1 || D == 1) && (value.stride(3) == 1 || DV == 1) && MT * HEAD * BLOCK_N <= 16384 && (MIN_BLOCKS == 1 || MT * WARPS * HEAD <= 1024)",
  "holes": ["SCORE", "MASK"],
  "launches": [{"kernel": "attention_flash", "grid": ["B * HQ * ceil_div(SQ, MT * WARPS * 16)"], "block": ["WARPS * 32"],
    "shared": "(MT * WARPS * 16 + 2 * BLOCK_N) * (HEAD + 8) * 2 + (HAS_MASK ? 8 * ceil_div(ceil_div(SK, BLOCK_N), 32) : 0)",
    "args": ["query", "key", "value", "output", "lse", "programs",
             {"i32": "HQ"}, {"i32": "HKV"}, {"i32": "SQ"}, {"i32": "SK"}, {"i32": "D"}, {"i32": "DV"},
             {"i64": "query.stride(0)"}, {"i64": "query.stride(1)"}, {"i64": "query.stride(2)"},
             {"i64": "key.stride(0)"}, {"i64": "key.stride(1)"}, {"i64": "key.stride(2)"},
             {"i64": "value.stride(0)"}, {"i64": "value.stride(1)"}, {"i64": "value.stride(2)"},
             {"f32": "scale"}]}] }
*/
/* Flash attention for half types by mma.sync, from sm_80 on.
 *
 * A block does MT * WARPS * 16 queries of one head, each warp MT tiles of 16 for itself; scores,
 * weights and output stay in its registers. Keys and values pass through one shared buffer each,
 * BLOCK_N at a time, by cp.async: a tile of values is on its way while its scores are computed,
 * the next tile of keys while softmax and the second product run. Shared rows are padded by 16
 * bytes, so that ldmatrix meets no bank twice. Which tiles the mask empties or leaves whole is
 * asked once, before the walk, one tile a thread; empty ones are never loaded, whole ones never
 * masked. Blocks of one head are neighbours, the last queries first: under a causal mask the
 * longest start first.
 *
 * The running maximum of a row moves only when it would grow by more than 8 (in log2), so weights
 * are at most 256 and the output is rescaled a few times a row, not once a tile.
 *
 * Traffic: K and V of a head once a block, out of L2; flops 2 * SQ * SK * (D + DV) a head, less the
 * tiles that the mask empties. Floor: flops over the rate of mma.sync, about 0.6 of the tensor
 * cores' peak on sm_90. An MT of 1 reads 256 bytes of shared memory a product of 16 x 8 x 16, which
 * caps it near 2048 flops a clock and multiprocessor; an MT of 2 reads half.
 *
 * Launch bounds: WARPS * 32. Refuses fp32 (fma.cu), head sizes over 256, tensors whose innermost
 * stride is not 1. Any alignment: rows that are not at multiples of 16 bytes go by element. */
#define DEV static __device__ __forceinline__
#define LOG2E 1.44269504088896341f
#define LN2 0.693147180559945309f
#define THREADS (WARPS * 32)
#define BLOCK_M (MT * WARPS * 16)
#if KG_EXACT_D
#define D_PAD ((D + 15) / 16 * 16)
#else
#define D_PAD HEAD
#endif
#if KG_EXACT_DV
#define DV_PAD ((DV + 15) / 16 * 16)
#else
#define DV_PAD HEAD
#endif
#define K_STEPS (D_PAD / 16)
#define N_TILES (BLOCK_N / 8)
#define O_TILES (DV_PAD / 8)
#define D_ROW ((D_PAD + 8) * 2) /* bytes of a row in shared memory */
#define DV_ROW ((DV_PAD + 8) * 2)
#define K_AT (BLOCK_M * D_ROW)
#define V_AT (K_AT + BLOCK_N * D_ROW)
#define WORDS_AT ((BLOCK_M + 2 * BLOCK_N) * (HEAD + 8) * 2) /* as the plan counts */
#define SLACK 8.0f /* how far scores may outgrow the maximum in use, in log2 */

typedef unsigned short half_bits;

DEV float infinity() {
    return __int_as_float(0x7f800000);
}

DEV float exp2_(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#if KG_DTYPE_query == KG_BF16
DEV unsigned pack2(float low, float high) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
#else
DEV unsigned pack2(float low, float high) {
    unsigned r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
#endif

/* d += a b, 16 x 8 x 16. */
DEV void product(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if KG_DTYPE_query == KG_BF16
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

DEV void load4(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

DEV void load4_turned(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* 16 bytes, of which the first `bytes` are read and the rest are zero. */
DEV void copy_async(unsigned to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}

DEV void copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

DEV void copy_wait() {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
}

/* Rows of one head: elements between rows, how many of each exist, and whether rows are made of
 * whole aligned 16 bytes. */
struct rows {
    const half_bits *at;
    long long stride;
    int n, width;
    bool vectors;
};

DEV struct rows rows_of(const half_bits *at, long long stride, int n, int width) {
    struct rows r;
    r.at = at, r.stride = stride, r.n = n, r.width = width;
    r.vectors =
        (((unsigned long long)at | (unsigned long long)stride * 2) & 15) == 0 && width % 8 == 0;
    return r;
}

/* The first n of 8 elements, zeros for the rest. */
DEV uint4 load_partial(const half_bits *from, int n) {
    unsigned word[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        word[i] = 2 * i < n ? from[2 * i] : 0u;
        word[i] |= (2 * i + 1 < n ? from[2 * i + 1] : 0u) << 16;
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

/* ROWS rows from `first` on into shared memory at `to`, padded with zeros to ROWS x PAD. Where the
 * threads make whole rows, one pointer walks down: addresses that are kept for the next tile would
 * cost two registers a chunk. */
template <int ROWS, int PAD> DEV void copy_vectors(unsigned to, const struct rows &r, int first) {
    constexpr int CHUNKS = PAD / 8, WAVE = THREADS / CHUNKS;
    if constexpr (THREADS % CHUNKS == 0) {
        const int row = (int)threadIdx.x / CHUNKS, c = (int)threadIdx.x % CHUNKS * 8;
        const half_bits *from = r.at + (first + row) * r.stride + c;
        const int bytes = c < r.width ? 16 : 0;
        to += row * (PAD + 8) * 2 + c * 2;
#pragma unroll
        for (int i = 0; i < ROWS; i += WAVE) {
            if (ROWS % WAVE == 0 || row + i < ROWS)
                copy_async(to + i * (PAD + 8) * 2, from, first + row + i < r.n ? bytes : 0);
            from += WAVE * r.stride;
        }
    } else {
        for (int k = (int)threadIdx.x; k < ROWS * CHUNKS; k += THREADS) {
            const int row = k / CHUNKS, c = k % CHUNKS * 8;
            copy_async(to + row * (PAD + 8) * 2 + c * 2, r.at + (first + row) * r.stride + c,
                       first + row < r.n && c < r.width ? 16 : 0);
        }
    }
}

template <int ROWS, int PAD>
DEV void copy_elements(unsigned char *to, const struct rows &r, int first) {
#pragma unroll 1
    for (int k = (int)threadIdx.x; k < ROWS * PAD / 8; k += THREADS) {
        const int row = k / (PAD / 8), c = k % (PAD / 8) * 8;
        const int n = first + row < r.n ? r.width - c : 0;
        *(uint4 *)(to + row * (PAD + 8) * 2 + c * 2) =
            load_partial(r.at + (first + row) * r.stride + c, n);
    }
}

template <int ROWS, int PAD>
DEV void copy_rows(unsigned char *to, const struct rows &r, int first) {
    if (r.vectors)
        copy_vectors<ROWS, PAD>((unsigned)__cvta_generic_to_shared(to), r, first);
    else
        copy_elements<ROWS, PAD>(to, r, first);
}

/* What a warp keeps of its MT x 16 queries; element i of a tile is of row lane / 4 + i / 2 * 8. */
struct state {
    float out[MT][O_TILES][4];
    float base[MT][2]; /* the maximum in use, in log2 */
    float sum[MT][2];  /* of this thread's columns */
};

/* score = queries x keys. flip: what the bits of the queries are changed by. */
DEV void scores(float (&score)[MT][N_TILES][4], unsigned query, unsigned key, unsigned flip) {
#pragma unroll
    for (int k = 0; k < K_STEPS; k++) {
        unsigned a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            load4(a[m], query + m * 16 * D_ROW + k * 32);
            if (!KG_HAS_SCORE)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    a[m][i] ^= flip;
        }
#pragma unroll
        for (int n = 0; n < N_TILES; n += 2) {
            unsigned b[4];
            load4(b, key + n * 8 * D_ROW + k * 32);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                product(score[m][n], a[m], b[0], b[1]);
                product(score[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* Moves the maxima in use where the tile demands it. factor: from scores to log2. */
DEV void raise(struct state &s, const float (&score)[MT][N_TILES][4], float factor) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = -infinity();
#pragma unroll
            for (int n = 0; n < N_TILES; n++)
                top = fmaxf(top, fmaxf(score[m][n][2 * half], score[m][n][2 * half + 1]));
            top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2)) * factor;
            if (!__any_sync(0xffffffff, top > s.base[m][half] + SLACK))
                continue;
            const float now = top > s.base[m][half] + SLACK ? top : s.base[m][half];
            const float decay = now == s.base[m][half] ? 1.0f : exp2_(s.base[m][half] - now);
            s.base[m][half] = now;
            s.sum[m][half] *= decay;
#pragma unroll
            for (int o = 0; o < O_TILES; o++) {
                s.out[m][o][2 * half] *= decay;
                s.out[m][o][2 * half + 1] *= decay;
            }
        }
}

/* Scores become weights against the maxima in use; sums grow by them. */
DEV void weigh(struct state &s, float (&score)[MT][N_TILES][4], float factor) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float base = s.base[m][half] == -infinity() ? 0.0f : s.base[m][half];
#pragma unroll
            for (int n = 0; n < N_TILES; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    score[m][n][i] = exp2_(fmaf(score[m][n][i], factor, -base));
                    s.sum[m][half] += score[m][n][i];
                }
        }
}

/* out += weights x values. */
DEV void values(struct state &s, const float (&weight)[MT][N_TILES][4], unsigned value) {
#pragma unroll
    for (int k = 0; k < BLOCK_N / 16; k++) {
        unsigned a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[m][i] = pack2(weight[m][2 * k + i / 2][i % 2 * 2],
                                weight[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int o = 0; o < O_TILES; o += 2) {
            unsigned b[4];
            load4_turned(b, value + k * 16 * DV_ROW + o * 16);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                product(s.out[m][o], a[m], b[0], b[1]);
                product(s.out[m][o + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* Where a warp's scores stand, and what the Programs keep of its rows. */
struct place {
    int b, h, q, sk; /* q: of this thread's first row */
    float scale;
    struct kg_score_row score[MT][2];
    struct kg_mask_row mask[MT][2];
};

DEV struct place place_of(KG_ARGS p, int b, int h, int q, int sk, float scale) {
    struct place at;
    at.b = b, at.h = h, at.q = q, at.sk = sk, at.scale = scale;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            at.score[m][half] = kg_score_row(p, b, h, q + m * 16 + half * 8);
            at.mask[m][half] = kg_mask_row(p, b, h, q + m * 16 + half * 8);
        }
    return at;
}

/* masked: the mask must be asked, or the tile hangs over the last key. */
DEV void apply_programs(KG_ARGS p, const struct place &at, float (&score)[MT][N_TILES][4], int k0,
                        bool masked) {
#if KG_HAS_SCORE
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < N_TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                score[m][n][i] = kg_score(p, at.score[m][i / 2], score[m][n][i] * at.scale, at.b,
                                          at.h, at.q + m * 16 + i / 2 * 8, k0 + n * 8 + i % 2);
#endif
    if (!masked)
        return;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < N_TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int kv = k0 + n * 8 + i % 2;
                int keep = kv < at.sk;
#if KG_HAS_MASK
                keep &= kg_mask(p, at.mask[m][i / 2], at.b, at.h, at.q + m * 16 + i / 2 * 8, kv);
#endif
                score[m][n][i] = keep ? score[m][n][i] : -infinity();
            }
}

/* Two words for 32 tiles of keys: bit t of the first is 1 when anybody sees tile t, of the second
 * when everybody sees all of it. */
DEV void survey(KG_ARGS p, unsigned *words, int b, int h, int q0, int q1, int sk, int tiles) {
    for (int t = (int)threadIdx.x; t / 32 * 32 < tiles; t += THREADS) {
        const int k0 = t * BLOCK_N;
        const int code = t < tiles ? kg_mask_range(p, b, h, q0, q1, k0, min(k0 + BLOCK_N, sk)) : 0;
        const unsigned any = __ballot_sync(0xffffffff, code != 0);
        const unsigned whole = __ballot_sync(0xffffffff, code == 1);
        if (t % 32 == 0)
            words[t / 32 * 2] = any, words[t / 32 * 2 + 1] = whole;
    }
}

/* The first tile from t on that anybody sees; `tiles` when there is none. */
DEV int next_tile(const unsigned *words, int t, int tiles) {
#if KG_HAS_MASK
    while (t < tiles) {
        const unsigned left = words[t / 32 * 2] >> t % 32;
        if (left != 0)
            return t + __ffs((int)left) - 1;
        t = t / 32 * 32 + 32;
    }
    return tiles;
#else
    (void)words;
    return min(t, tiles);
#endif
}

DEV bool is_whole(const unsigned *words, int t) {
#if KG_HAS_MASK
    return (words[t / 32 * 2 + 1] >> t % 32 & 1) != 0;
#else
    (void)words, (void)t;
    return true;
#endif
}

DEV void write_pair(half_bits *to, unsigned pair, int left) {
    if (left >= 2 && (unsigned long long)to % 4 == 0) {
        *(unsigned *)to = pair;
        return;
    }
    if (left > 0)
        to[0] = (half_bits)pair;
    if (left > 1)
        to[1] = (half_bits)(pair >> 16);
}

/* output and lse: of row 0 of the head; q: of this thread's first row. */
DEV void finish(struct state &s, half_bits *output, float *lse, int q, int sq, int dv) {
    const int column = (int)threadIdx.x % 4 * 2;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = s.sum[m][half];
            sum += __shfl_xor_sync(0xffffffff, sum, 1);
            sum += __shfl_xor_sync(0xffffffff, sum, 2);
            const int row = q + m * 16 + half * 8;
            const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
            if (row >= sq)
                continue;
            half_bits *to = output + (long long)row * dv;
#pragma unroll
            for (int o = 0; o < O_TILES; o++)
                write_pair(to + o * 8 + column,
                           pack2(s.out[m][o][2 * half] * scale, s.out[m][o][2 * half + 1] * scale),
                           dv - o * 8 - column);
            if (lse && column == 0)
                lse[row] = sum == 0.0f ? -infinity() : (s.base[m][half] + log2f(sum)) * LN2;
        }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    attention_flash(const KG_T_query *query, const KG_T_key *key, const KG_T_value *value,
                    KG_T_output *output, KG_T_lse *lse, KG_PROGRAMS programs, int hq, int hkv,
                    int sq, int sk, int d, int dv, long long q_batch, long long q_head,
                    long long q_row, long long k_batch, long long k_head, long long k_row,
                    long long v_batch, long long v_head, long long v_row, float scale) {
    extern __shared__ unsigned char shared[];
#if KG_EXACT_D
    d = D;
#endif
#if KG_EXACT_DV
    dv = DV;
#endif
    const int blocks = (sq + BLOCK_M - 1) / BLOCK_M, group = (int)blockIdx.x / blocks;
    const int q0 = (blocks - 1 - (int)blockIdx.x % blocks) * BLOCK_M;
    const int b = group / hq, h = group % hq, hk = h / (hq / hkv);
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int tiles = (sk + BLOCK_N - 1) / BLOCK_N;
    unsigned *const words = (unsigned *)(shared + WORDS_AT);
    const struct rows keys = rows_of(key + b * k_batch + hk * k_head, k_row, sk, d);
    const struct rows vals = rows_of(value + b * v_batch + hk * v_head, v_row, sk, dv);
    copy_rows<BLOCK_M, D_PAD>(shared, rows_of(query + b * q_batch + h * q_head, q_row, sq, d), q0);
#if KG_HAS_MASK
    survey(programs, words, b, h, q0, min(q0 + BLOCK_M, sq), sk, tiles);
    __syncthreads();
#endif
    const unsigned at = (unsigned)__cvta_generic_to_shared(shared);
    /* Lanes give the rows that ldmatrix reads: of A in order, of B keys 0-7 and 8-15 by turns. */
    const unsigned from_q = at + (warp * MT * 16 + lane % 16) * D_ROW + lane / 16 * 16;
    const unsigned from_k = at + K_AT + (lane / 16 * 8 + lane % 8) * D_ROW + lane / 8 % 2 * 16;
    const unsigned from_v = at + V_AT + lane % 16 * DV_ROW + lane / 16 * 16;
    const int q = q0 + warp * MT * 16 + lane / 4;
    const struct place here = place_of(programs, b, h, q, sk, scale);
    /* Without a score function, a negative scale goes into the sign of the queries, and a scale of
     * zero must not turn the -inf of a masked score into NaN. */
    const unsigned flip = scale < 0.0f ? 0x80008000u : 0u;
    float factor = KG_HAS_SCORE ? LOG2E : fabsf(scale) * LOG2E;
    factor = factor < 1e-37f ? 1e-37f : factor;
    struct state s = {};
#pragma unroll
    for (int m = 0; m < MT; m++)
        s.base[m][0] = s.base[m][1] = -infinity();
    int tile = next_tile(words, 0, tiles);
    if (tile < tiles)
        copy_rows<BLOCK_N, D_PAD>(shared + K_AT, keys, tile * BLOCK_N);
    copy_commit();
    while (tile < tiles) {
        float score[MT][N_TILES][4] = {};
        const int k0 = tile * BLOCK_N;
        const bool masked = !is_whole(words, tile) || k0 + BLOCK_N > sk;
        copy_wait();
        __syncthreads();
        copy_rows<BLOCK_N, DV_PAD>(shared + V_AT, vals, k0);
        copy_commit();
        scores(score, from_q, from_k, flip);
        tile = next_tile(words, tile + 1, tiles);
        copy_wait();
        __syncthreads();
        if (tile < tiles)
            copy_rows<BLOCK_N, D_PAD>(shared + K_AT, keys, tile * BLOCK_N);
        copy_commit();
        apply_programs(programs, here, score, k0 + lane % 4 * 2, masked);
        raise(s, score, factor);
        weigh(s, score, factor);
        values(s, score, from_v);
    }
    copy_wait();
    const long long row = (long long)group * sq;
    finish(s, output + row * dv, lse ? lse + row : lse, q, sq, dv);
}
