/* kgen
{ "format": 1, "op": "attention", "target": "cuda", "min_arch": "sm_80",
  "tunables": {"TM": [8, 4, 2], "TN": [2, 4], "HEAD": [128, 64, 256]},
  "specialize": ["D", "DV"],
  "require": "query.dtype == float32 && max(D, DV) <= HEAD && SQ < 1073741824 && SK <= 4194304 && (query.stride(3) == 1 || D == 1) && (key.stride(3) == 1 || D == 1) && (value.stride(3) == 1 || DV == 1) && ((TM + 2 * TN) * (HEAD + 4) + 16 * TM * TN) * 64 <= 150000",
  "holes": ["SCORE", "MASK"],
  "launches": [{"kernel": "attention_fma", "grid": ["B * HQ * ceil_div(SQ, TM * 16)"], "block": [256],
    "shared": "((TM + 2 * TN) * (HEAD + 4) + 16 * TM * TN) * 64 + (HAS_MASK ? 8 * ceil_div(ceil_div(SK, TN * 16), 32) : 0)",
    "args": ["query", "key", "value", "output", "lse", "programs",
             {"i32": "HQ"}, {"i32": "HKV"}, {"i32": "SQ"}, {"i32": "SK"}, {"i32": "D"}, {"i32": "DV"},
             {"i64": "query.stride(0)"}, {"i64": "query.stride(1)"}, {"i64": "query.stride(2)"},
             {"i64": "key.stride(0)"}, {"i64": "key.stride(1)"}, {"i64": "key.stride(2)"},
             {"i64": "value.stride(0)"}, {"i64": "value.stride(1)"}, {"i64": "value.stride(2)"},
             {"f32": "scale"}]}] }
*/
/* Flash attention for fp32 by plain FMA: no tensor core takes fp32 without loss.
 *
 * A block of 16 x 16 threads does TM * 16 queries of one head against TN * 16 keys at a time. A
 * thread holds TM x TN scores (rows ty * TM + i, keys tx + 16 j) and, of the output, TM rows of 4
 * columns in each 64. The 16 threads of a row are half a warp: reductions are shuffles, and the
 * weights go to the second product through shared memory with no barrier but the warp's. Tiles of
 * values are on their way while scores are computed, tiles of keys during the second product. Which
 * tiles the mask empties or leaves whole is asked once, one tile a thread.
 *
 * Traffic: K and V of a head once a block, out of L2; flops 2 * SQ * SK * (D + DV) a head, less the
 * tiles that the mask empties. Floor: flops over the fp32 FMA peak.
 *
 * Launch bounds: 256. Refuses half types (flash.cu), head sizes over 256, tensors whose innermost
 * stride is not 1. Any alignment: rows that are not at multiples of 16 bytes go by element. */
#define DEV static __device__ __forceinline__
#define LOG2E 1.44269504088896341f
#define LN2 0.693147180559945309f
#define THREADS 256
#define BLOCK_M (TM * 16)
#define BLOCK_N (TN * 16)
#if KG_EXACT_D
#define D_PAD ((D + 3) / 4 * 4)
#else
#define D_PAD HEAD
#endif
#if KG_EXACT_DV
#define DV_PAD ((DV + 63) / 64 * 64)
#else
#define DV_PAD HEAD
#endif
#define D_ROW (HEAD + 4) /* floats of a row in shared memory */
#define O_PARTS (DV_PAD / 64)
#define K_AT (BLOCK_M * D_ROW)
#define V_AT (K_AT + BLOCK_N * D_ROW)
#define P_AT (V_AT + BLOCK_N * D_ROW)
#define WORDS_AT (P_AT + BLOCK_M * BLOCK_N)

DEV float infinity() {
    return __int_as_float(0x7f800000);
}

/* 16 bytes, of which the first `bytes` are read and the rest are zero. */
DEV void copy_async(float *to, const float *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(bytes)
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
    const float *at;
    long long stride;
    int n, width;
    bool vectors;
};

DEV struct rows rows_of(const float *at, long long stride, int n, int width) {
    struct rows r;
    r.at = at, r.stride = stride, r.n = n, r.width = width;
    r.vectors =
        (((unsigned long long)at | (unsigned long long)stride * 4) & 15) == 0 && width % 4 == 0;
    return r;
}

/* Chunk k of rows of PAD / 4 chunks: its row and first column. */
template <int PAD> DEV int2 chunk_at(int k) {
    return make_int2(k / (PAD / 4), k % (PAD / 4) * 4);
}

/* ROWS rows from `first` on into shared memory at `to`, padded with zeros to ROWS x PAD. */
template <int ROWS, int PAD> DEV void copy_rows(float *to, const struct rows &r, int first) {
    if (r.vectors) {
#pragma unroll 4
        for (int k = (int)threadIdx.x; k < ROWS * (PAD / 4); k += THREADS) {
            const int2 at = chunk_at<PAD>(k);
            copy_async(to + at.x * D_ROW + at.y, r.at + (first + at.x) * r.stride + at.y,
                       first + at.x < r.n && at.y < r.width ? 16 : 0);
        }
        return;
    }
#pragma unroll 1
    for (int k = (int)threadIdx.x; k < ROWS * (PAD / 4); k += THREADS) {
        const int2 at = chunk_at<PAD>(k);
        const int n = first + at.x < r.n ? r.width - at.y : 0;
        const float *from = r.at + (first + at.x) * r.stride + at.y;
        *(float4 *)(to + at.x * D_ROW + at.y) =
            make_float4(n > 0 ? from[0] : 0.0f, n > 1 ? from[1] : 0.0f, n > 2 ? from[2] : 0.0f,
                        n > 3 ? from[3] : 0.0f);
    }
}

DEV float row_max(float x) {
#pragma unroll
    for (int i = 8; i > 0; i /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, i));
    return x;
}

DEV float row_sum(float x) {
#pragma unroll
    for (int i = 8; i > 0; i /= 2)
        x += __shfl_xor_sync(0xffffffff, x, i);
    return x;
}

/* What a thread keeps of its TM rows. */
struct state {
    float out[TM][O_PARTS][4];
    float base[TM]; /* running maximum, in log2 */
    float sum[TM];  /* of this thread's keys */
};

/* score = queries x keys. query: the thread's first row; key: row tx. */
DEV void scores(float (&score)[TM][TN], const float *query, const float *key) {
#pragma unroll 4
    for (int d = 0; d < D_PAD; d += 4) {
        float4 a[TM];
#pragma unroll
        for (int i = 0; i < TM; i++)
            a[i] = *(const float4 *)(query + i * D_ROW + d);
#pragma unroll
        for (int j = 0; j < TN; j++) {
            const float4 b = *(const float4 *)(key + j * 16 * D_ROW + d);
#pragma unroll
            for (int i = 0; i < TM; i++) {
                score[i][j] = fmaf(a[i].x, b.x, score[i][j]);
                score[i][j] = fmaf(a[i].y, b.y, score[i][j]);
                score[i][j] = fmaf(a[i].z, b.z, score[i][j]);
                score[i][j] = fmaf(a[i].w, b.w, score[i][j]);
            }
        }
    }
}

/* Scores become weights, in shared memory at `weight` (the thread's first row); sums and outputs
 * are rescaled to the new maxima. */
DEV void weigh(struct state &s, const float (&score)[TM][TN], float *weight) {
    const int tx = (int)threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < TM; i++) {
        float top = score[i][0];
#pragma unroll
        for (int j = 1; j < TN; j++)
            top = fmaxf(top, score[i][j]);
        const float now = fmaxf(s.base[i], row_max(top) * LOG2E);
        const float low = now == -infinity() ? 0.0f : now, decay = exp2f(s.base[i] - low);
        s.base[i] = now;
        s.sum[i] *= decay;
#pragma unroll
        for (int o = 0; o < O_PARTS; o++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                s.out[i][o][c] *= decay;
#pragma unroll
        for (int j = 0; j < TN; j++) {
            const float p = exp2f(fmaf(score[i][j], LOG2E, -low));
            s.sum[i] += p;
            weight[i * BLOCK_N + j * 16 + tx] = p;
        }
    }
}

/* out += weights x values; value: this thread's columns of row 0. */
DEV void values(struct state &s, const float *weight, const float *value) {
#pragma unroll 2
    for (int k = 0; k < BLOCK_N; k += 4) {
        float p[TM][4];
#pragma unroll
        for (int i = 0; i < TM; i++) {
            const float4 v = *(const float4 *)(weight + i * BLOCK_N + k);
            p[i][0] = v.x, p[i][1] = v.y, p[i][2] = v.z, p[i][3] = v.w;
        }
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int o = 0; o < O_PARTS; o++) {
                const float4 v = *(const float4 *)(value + (k + e) * D_ROW + o * 64);
#pragma unroll
                for (int i = 0; i < TM; i++) {
                    s.out[i][o][0] = fmaf(p[i][e], v.x, s.out[i][o][0]);
                    s.out[i][o][1] = fmaf(p[i][e], v.y, s.out[i][o][1]);
                    s.out[i][o][2] = fmaf(p[i][e], v.z, s.out[i][o][2]);
                    s.out[i][o][3] = fmaf(p[i][e], v.w, s.out[i][o][3]);
                }
            }
    }
}

/* Where a thread's scores stand, and what the Programs keep of its rows. */
struct place {
    int b, h, q, sk; /* q: of the thread's first row */
    float scale;
    struct kg_score_row score[TM];
    struct kg_mask_row mask[TM];
};

DEV struct place place_of(KG_ARGS p, int b, int h, int q, int sk, float scale) {
    struct place at;
    at.b = b, at.h = h, at.q = q, at.sk = sk, at.scale = scale;
#pragma unroll
    for (int i = 0; i < TM; i++) {
        at.score[i] = kg_score_row(p, b, h, q + i);
        at.mask[i] = kg_mask_row(p, b, h, q + i);
    }
    return at;
}

/* k0: of the thread's first key. masked: the mask must be asked, or the tile hangs over the last
 * key. */
DEV void apply_programs(KG_ARGS p, const struct place &at, float (&score)[TM][TN], int k0,
                        bool masked) {
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++)
            score[i][j] =
                kg_score(p, at.score[i], score[i][j] * at.scale, at.b, at.h, at.q + i, k0 + j * 16);
    if (!masked)
        return;
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) {
            const int kv = k0 + j * 16;
            const int keep = (kv < at.sk) & kg_mask(p, at.mask[i], at.b, at.h, at.q + i, kv);
            score[i][j] = keep ? score[i][j] : -infinity();
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

/* output and lse: of row 0 of the head; q: of the thread's first row. */
DEV void finish(struct state &s, float *output, float *lse, int q, int sq, int dv) {
    const int tx = (int)threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < TM; i++) {
        const float sum = row_sum(s.sum[i]), scale = sum == 0.0f ? 0.0f : 1.0f / sum;
        if (q + i >= sq)
            continue;
        float *to = output + (long long)(q + i) * dv;
#pragma unroll
        for (int o = 0; o < O_PARTS; o++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                if (o * 64 + tx * 4 + c < dv)
                    to[o * 64 + tx * 4 + c] = s.out[i][o][c] * scale;
        if (lse && tx == 0)
            lse[q + i] = sum == 0.0f ? -infinity() : s.base[i] * LN2 + logf(sum);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_fma(const KG_T_query *query, const KG_T_key *key, const KG_T_value *value,
                  KG_T_output *output, KG_T_lse *lse, KG_PROGRAMS programs, int hq, int hkv, int sq,
                  int sk, int d, int dv, long long q_batch, long long q_head, long long q_row,
                  long long k_batch, long long k_head, long long k_row, long long v_batch,
                  long long v_head, long long v_row, float scale) {
    extern __shared__ float shared[];
#if KG_EXACT_D
    d = D;
#endif
#if KG_EXACT_DV
    dv = DV;
#endif
    const int blocks = (sq + BLOCK_M - 1) / BLOCK_M, group = (int)blockIdx.x / blocks;
    const int q0 = (blocks - 1 - (int)blockIdx.x % blocks) * BLOCK_M;
    const int b = group / hq, h = group % hq, hk = h / (hq / hkv);
    const int tx = (int)threadIdx.x % 16, row = (int)threadIdx.x / 16 * TM;
    const int tiles = (sk + BLOCK_N - 1) / BLOCK_N;
    unsigned *const words = (unsigned *)(shared + WORDS_AT);
    const struct rows keys = rows_of(key + b * k_batch + hk * k_head, k_row, sk, d);
    const struct rows vals = rows_of(value + b * v_batch + hk * v_head, v_row, sk, dv);
    copy_rows<BLOCK_M, D_PAD>(shared, rows_of(query + b * q_batch + h * q_head, q_row, sq, d), q0);
#if KG_HAS_MASK
    survey(programs, words, b, h, q0, min(q0 + BLOCK_M, sq), sk, tiles);
    __syncthreads();
#endif
    float *const weight = shared + P_AT + row * BLOCK_N;
    const struct place here = place_of(programs, b, h, q0 + row, sk, scale);
    struct state s = {};
#pragma unroll
    for (int i = 0; i < TM; i++)
        s.base[i] = -infinity();
    int tile = next_tile(words, 0, tiles);
    if (tile < tiles)
        copy_rows<BLOCK_N, D_PAD>(shared + K_AT, keys, tile * BLOCK_N);
    copy_commit();
    while (tile < tiles) {
        float score[TM][TN] = {};
        const int k0 = tile * BLOCK_N;
        const bool masked = !is_whole(words, tile) || k0 + BLOCK_N > sk;
        copy_wait();
        __syncthreads();
        copy_rows<BLOCK_N, DV_PAD>(shared + V_AT, vals, k0);
        copy_commit();
        scores(score, shared + row * D_ROW, shared + K_AT + tx * D_ROW);
        tile = next_tile(words, tile + 1, tiles);
        copy_wait();
        __syncthreads();
        if (tile < tiles)
            copy_rows<BLOCK_N, D_PAD>(shared + K_AT, keys, tile * BLOCK_N);
        copy_commit();
        apply_programs(programs, here, score, k0 + tx, masked);
        weigh(s, score, weight);
        __syncwarp();
        values(s, weight, shared + V_AT + tx * 4);
        __syncwarp();
    }
    copy_wait();
    const long long first = (long long)group * sq;
    finish(s, output + first * dv, lse ? lse + first : lse, q0 + row, sq, dv);
}
