/* kgen
{ "format": 1, "op": "attention", "target": "cuda", "min_arch": "sm_80",
  "tunables": {"WARPS": [4, 8, 2], "STAGES": [3, 4, 2], "WAVES": [2, 1, 4], "HEAD": [128, 64, 256]},
  "specialize": ["D", "DV"],
  "require": "(query.dtype == float16 || query.dtype == bfloat16) && HQ / max(HKV, 1) * SQ <= 16 && max(D, DV) <= HEAD && SK <= 4194304 && (query.stride(3) == 1 || D == 1) && (key.stride(3) == 1 || D == 1) && (value.stride(3) == 1 || DV == 1) && WARPS * STAGES * HEAD <= 2048 && WARPS * STAGES >= 8",
  "workspace": {"partial": {"dtype": "float32", "shape": ["max(1, min(ceil_div(WAVES * NUM_SMS, max(B * HKV, 1)), ceil_div(SK, WARPS * 64))) > 1 ? B * HQ * SQ * max(1, min(ceil_div(WAVES * NUM_SMS, max(B * HKV, 1)), ceil_div(SK, WARPS * 64))) : 0", "DV + 2"]}},
  "holes": ["SCORE", "MASK"],
  "launches": [
    {"kernel": "attention_part", "grid": ["B * HKV * max(1, min(ceil_div(WAVES * NUM_SMS, max(B * HKV, 1)), ceil_div(SK, WARPS * 64)))"], "block": ["WARPS * 32"],
     "shared": "(16 + WARPS * STAGES * 32) * (HEAD + 8) * 2 + (HAS_MASK ? 8 * ceil_div(ceil_div(SK, WARPS * 16), 32) : 0)",
     "args": ["query", "key", "value", "output", "lse", "partial", "programs", {"i32": "max(1, min(ceil_div(WAVES * NUM_SMS, max(B * HKV, 1)), ceil_div(SK, WARPS * 64)))"},
              {"i32": "HQ"}, {"i32": "HKV"}, {"i32": "SQ"}, {"i32": "SK"}, {"i32": "D"}, {"i32": "DV"},
              {"i64": "query.stride(0)"}, {"i64": "query.stride(1)"}, {"i64": "query.stride(2)"},
              {"i64": "key.stride(0)"}, {"i64": "key.stride(1)"}, {"i64": "key.stride(2)"},
              {"i64": "value.stride(0)"}, {"i64": "value.stride(1)"}, {"i64": "value.stride(2)"},
              {"f32": "scale"}]},
    {"kernel": "attention_join", "grid": ["B * HQ * SQ"], "block": [128], "when": "max(1, min(ceil_div(WAVES * NUM_SMS, max(B * HKV, 1)), ceil_div(SK, WARPS * 64))) > 1",
     "args": ["output", "lse", "partial", {"i32": "max(1, min(ceil_div(WAVES * NUM_SMS, max(B * HKV, 1)), ceil_div(SK, WARPS * 64)))"}, {"i32": "HQ / HKV * SQ"}, {"i32": "DV"}]}] }
*/
/* Attention for few queries: decoding, with or without grouped heads.
 *
 * The queries of all heads that share one head of keys, at most 16, are the rows of one tile of
 * mma.sync, so that K and V are read once for all of them. A block takes one of the parts into
 * which the keys are cut (WAVES blocks a multiprocessor in all) and each of its warps every
 * WARPS-th 16 keys, through STAGES buffers of its own filled by cp.async: warps never wait for each
 * other while they read. At the end they join maxima, sums and outputs through shared memory, and a
 * second launch joins the parts.
 *
 * Traffic: K and V once, 2 * B * HKV * SK * (D + DV) bytes. Floor: that over the rate of reading.
 * In flight at the defaults and D 128: 68 KiB a block, two blocks a multiprocessor. Tiles that the
 * mask empties are not read.
 *
 * Launch bounds: WARPS * 32. Refuses more than 16 queries a head of keys and fp32 (flash.cu,
 * fma.cu), head sizes over 256, tensors whose innermost stride is not 1. Any alignment: rows that
 * are not at multiples of 16 bytes go by element. */
#define DEV static __device__ __forceinline__
#define LOG2E 1.44269504088896341f
#define LN2 0.693147180559945309f
#define THREADS (WARPS * 32)
#define BLOCK_N (WARPS * 16)
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
#define O_TILES (DV_PAD / 8)
#define ROW ((HEAD + 8) * 2) /* bytes of a row in shared memory */
#define STAGE (32 * ROW)     /* 16 keys, then their values */
#define WORDS_AT ((16 + WARPS * STAGES * 32) * ROW)
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

/* Until all but the newest STAGES - 1 groups have come. */
DEV void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
}

DEV void copy_drain() {
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

/* 16 rows from `first` on into shared memory at `to`, padded with zeros to 16 x PAD, by one warp.
 * One pointer walks down where lanes make whole rows, so that no address is kept a chunk. */
template <int PAD> DEV void copy_vectors(unsigned to, const struct rows &r, int first) {
    constexpr int CHUNKS = PAD / 8, WAVE = 32 / CHUNKS;
    const int lane = (int)threadIdx.x % 32;
    if constexpr (WAVE > 0 && 32 % CHUNKS == 0) {
        const int row = lane / CHUNKS, c = lane % CHUNKS * 8, bytes = c < r.width ? 16 : 0;
        const half_bits *from = r.at + (first + row) * r.stride + c;
        to += row * ROW + c * 2;
#pragma unroll
        for (int i = 0; i < 16; i += WAVE) {
            copy_async(to + i * ROW, from, first + row + i < r.n ? bytes : 0);
            from += WAVE * r.stride;
        }
    } else {
        for (int k = lane; k < 16 * CHUNKS; k += 32) {
            const int row = k / CHUNKS, c = k % CHUNKS * 8;
            copy_async(to + row * ROW + c * 2, r.at + (first + row) * r.stride + c,
                       first + row < r.n && c < r.width ? 16 : 0);
        }
    }
}

template <int PAD> DEV void copy_16(unsigned char *to, const struct rows &r, int first) {
    if (r.vectors) {
        copy_vectors<PAD>((unsigned)__cvta_generic_to_shared(to), r, first);
        return;
    }
#pragma unroll 1
    for (int k = (int)threadIdx.x % 32; k < 16 * PAD / 8; k += 32) {
        const int row = k / (PAD / 8), c = k % (PAD / 8) * 8;
        const int n = first + row < r.n ? r.width - c : 0;
        *(uint4 *)(to + row * ROW + c * 2) = load_partial(r.at + (first + row) * r.stride + c, n);
    }
}

/* What a warp keeps of its 16 rows; element i of a tile is of row lane / 4 + i / 2 * 8. */
struct state {
    float out[O_TILES][4];
    float base[2]; /* the maximum in use, in log2 */
    float sum[2];  /* of this thread's columns */
};

/* Moves the maxima in use where the tile demands it. factor: from scores to log2. */
DEV void raise(struct state &s, const float (&score)[2][4], float factor) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = fmaxf(fmaxf(score[0][2 * half], score[0][2 * half + 1]),
                          fmaxf(score[1][2 * half], score[1][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2)) * factor;
        if (!__any_sync(0xffffffff, top > s.base[half] + SLACK))
            continue;
        const float now = top > s.base[half] + SLACK ? top : s.base[half];
        const float decay = now == s.base[half] ? 1.0f : exp2_(s.base[half] - now);
        s.base[half] = now;
        s.sum[half] *= decay;
#pragma unroll
        for (int o = 0; o < O_TILES; o++) {
            s.out[o][2 * half] *= decay;
            s.out[o][2 * half + 1] *= decay;
        }
    }
}

/* Weights against the maxima in use, as the left factor of the second product. */
DEV void weigh(struct state &s, unsigned (&a)[4], const float (&score)[2][4], float factor) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float base = s.base[half] == -infinity() ? 0.0f : s.base[half];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const float left = exp2_(fmaf(score[n][2 * half], factor, -base));
            const float right = exp2_(fmaf(score[n][2 * half + 1], factor, -base));
            s.sum[half] += left + right;
            a[2 * n + half] = pack2(left, right);
        }
    }
}

/* Row r of a block is query r % sq of head first + r / sq. */
struct place {
    int b, first, sq, sk, rows;
    float scale;
};

/* k0: of the thread's first key. masked: the mask must be asked, or keys hang over the last. The
 * row structs are made anew each time: registers are dearer here than instructions. */
DEV void apply_programs(KG_ARGS p, const struct place &at, float (&score)[2][4], int k0,
                        bool masked) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int r = (int)threadIdx.x % 32 / 4 + half * 8;
        const int h = at.first + min(r, at.rows - 1) / at.sq, q = min(r, at.rows - 1) % at.sq;
        const struct kg_score_row score_row = kg_score_row(p, at.b, h, q);
        const struct kg_mask_row mask_row = kg_mask_row(p, at.b, h, q);
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int kv = k0 + n * 8 + i;
                float v = score[n][2 * half + i];
#if KG_HAS_SCORE
                v = kg_score(p, score_row, v * at.scale, at.b, h, q, kv);
#endif
                if (masked)
                    v = (kv < at.sk) & kg_mask(p, mask_row, at.b, h, q, kv) ? v : -infinity();
                score[n][2 * half + i] = v;
            }
        (void)score_row, (void)mask_row;
    }
}

/* 0 when no row sees a key of [k0, k1), 1 when each sees all, else 2. */
DEV int survey_tile(KG_ARGS p, const struct place &at, int k0, int k1) {
    int any = 0, whole = 1;
    for (int h = at.first; h < at.first + at.rows / at.sq; h++) {
        const int code = kg_mask_range(p, at.b, h, 0, at.sq, k0, k1);
        any |= code != 0, whole &= code == 1;
    }
    return any ? 2 - whole : 0;
}

/* Two words for 32 tiles of the part, which begins at tile `first`. */
DEV void survey(KG_ARGS p, unsigned *words, const struct place &at, int first, int tiles) {
    for (int t = (int)threadIdx.x; t / 32 * 32 < tiles; t += THREADS) {
        const int k0 = (first + t) * BLOCK_N;
        const int code = t < tiles ? survey_tile(p, at, k0, min(k0 + BLOCK_N, at.sk)) : 0;
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

/* Scores of 16 keys, what the Programs make of them, weights, and their share of the output. */
DEV void attend(KG_ARGS p, const struct place &at, struct state &s,
                const unsigned (&query)[K_STEPS][4], unsigned stage, int k0, bool masked,
                float factor) {
    const int lane = (int)threadIdx.x % 32;
    const unsigned key = stage + (lane / 16 * 8 + lane % 8) * ROW + lane / 8 % 2 * 16;
    const unsigned value = stage + (16 + lane % 16) * ROW + lane / 16 * 16;
    float score[2][4] = {};
#pragma unroll
    for (int k = 0; k < K_STEPS; k++) {
        unsigned b[4];
        load4(b, key + k * 32);
        product(score[0], query[k], b[0], b[1]);
        product(score[1], query[k], b[2], b[3]);
    }
    unsigned a[4];
    apply_programs(p, at, score, k0 + lane % 4 * 2, masked);
    raise(s, score, factor);
    weigh(s, a, score, factor);
#pragma unroll
    for (int o = 0; o < O_TILES; o += 2) {
        unsigned b[4];
        load4_turned(b, value + o * 16);
        product(s.out[o], a, b[0], b[1]);
        product(s.out[o + 1], a, b[2], b[3]);
    }
}

/* The warp's rows into shared memory: outputs, maximum and sum, DV_PAD + 2 floats a row. */
DEV void leave(struct state &s, float *to) {
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float *row = to + (lane / 4 + half * 8) * (DV_PAD + 2);
        float sum = s.sum[half];
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
#pragma unroll
        for (int o = 0; o < O_TILES; o++) {
            row[o * 8 + lane % 4 * 2] = s.out[o][2 * half];
            row[o * 8 + lane % 4 * 2 + 1] = s.out[o][2 * half + 1];
        }
        if (lane % 4 == 0)
            row[DV_PAD] = s.base[half], row[DV_PAD + 1] = sum;
    }
}

/* n rows, `step` floats apart, each of outputs, maximum (at `width`) and sum, as one: the maximum
 * of all, and in `sum` the sum against it. */
DEV float join_ends(const float *rows, int n, long long step, int width, float &sum) {
    float top = -infinity();
    for (int i = 0; i < n; i++)
        top = fmaxf(top, rows[i * step + width]);
    const float low = top == -infinity() ? 0.0f : top;
    sum = 0.0f;
    for (int i = 0; i < n; i++)
        sum += rows[i * step + width + 1] * exp2f(rows[i * step + width] - low);
    return top;
}

DEV float join_column(const float *rows, int n, long long step, int width, float top, int c) {
    const float low = top == -infinity() ? 0.0f : top;
    float all = 0.0f;
    for (int i = 0; i < n; i++)
        all += rows[i * step + c] * exp2f(rows[i * step + width] - low);
    return all;
}

DEV void write_lse(float *lse, long long row, float top, float sum) {
    if (lse)
        lse[row] = sum == 0.0f ? -infinity() : (top + log2f(sum)) * LN2;
}

/* The block's warps as one: into output and lse, or into partial when there are other parts. */
DEV void join_warps(const float *rows, const struct place &at, half_bits *output, float *lse,
                    float *partial, long long first, int dv) {
    for (int r = (int)threadIdx.x / 32; r < at.rows; r += WARPS) {
        const float *from = rows + r * (DV_PAD + 2);
        float sum, top = join_ends(from, WARPS, 16 * (DV_PAD + 2), DV_PAD, sum);
        const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
        for (int c = (int)threadIdx.x % 32; c < dv; c += 32) {
            const float all = join_column(from, WARPS, 16 * (DV_PAD + 2), DV_PAD, top, c);
            if (partial)
                partial[r * (dv + 2) + c] = all;
            else
                output[(first + r) * dv + c] = (half_bits)pack2(all * scale, 0.0f);
        }
        if (threadIdx.x % 32 != 0)
            continue;
        if (partial)
            partial[r * (dv + 2) + dv] = top, partial[r * (dv + 2) + dv + 1] = sum;
        else
            write_lse(lse, first + r, top, sum);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_part(const KG_T_query *query, const KG_T_key *key, const KG_T_value *value,
                   KG_T_output *output, KG_T_lse *lse, KG_T_partial *partial, KG_PROGRAMS programs,
                   int parts, int hq, int hkv, int sq, int sk, int d, int dv, long long q_batch,
                   long long q_head, long long q_row, long long k_batch, long long k_head,
                   long long k_row, long long v_batch, long long v_head, long long v_row,
                   float scale) {
    extern __shared__ unsigned char shared[];
#if KG_EXACT_D
    d = D;
#endif
#if KG_EXACT_DV
    dv = DV;
#endif
    const int group = (int)blockIdx.x / parts, b = group / hkv, hk = group % hkv;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int all = (sk + BLOCK_N - 1) / BLOCK_N, each = (all + parts - 1) / parts;
    const int first = min(all, (int)blockIdx.x % parts * each), tiles = min(each, all - first);
    unsigned *const words = (unsigned *)(shared + WORDS_AT);
    unsigned char *const mine = shared + 16 * ROW + warp * STAGES * STAGE;
    const struct rows keys = rows_of(key + b * k_batch + hk * k_head, k_row, sk, d);
    const struct rows vals = rows_of(value + b * v_batch + hk * v_head, v_row, sk, dv);
    struct place at;
    at.b = b, at.first = hk * (hq / hkv), at.sq = sq, at.sk = sk, at.scale = scale;
    at.rows = hq / hkv * sq;
    /* The queries by element: they are few, and their heads are q_head apart. */
    for (int i = (int)threadIdx.x; i < 16 * D_PAD; i += THREADS) {
        const int r = i / D_PAD, c = i % D_PAD;
        half_bits bits = 0;
        if (r < at.rows && c < d)
            bits = query[b * q_batch + (at.first + r / sq) * q_head + r % sq * q_row + c];
        *(half_bits *)(shared + r * ROW + c * 2) = bits;
    }
#if KG_HAS_MASK
    survey(programs, words, at, first, tiles);
#endif
    __syncthreads();
    unsigned fragment[K_STEPS][4];
    const unsigned flip = !KG_HAS_SCORE && scale < 0.0f ? 0x80008000u : 0u;
#pragma unroll
    for (int k = 0; k < K_STEPS; k++) {
        load4(fragment[k], (unsigned)__cvta_generic_to_shared(shared) + lane % 16 * ROW +
                               lane / 16 * 16 + k * 32);
#pragma unroll
        for (int i = 0; i < 4; i++)
            fragment[k][i] ^= flip;
    }
    /* A scale of zero must not turn the -inf of a masked score into NaN. */
    float factor = KG_HAS_SCORE ? LOG2E : fabsf(scale) * LOG2E;
    factor = factor < 1e-37f ? 1e-37f : factor;
    struct state s = {};
    s.base[0] = s.base[1] = -infinity();
    int ahead = next_tile(words, 0, tiles), tile = ahead, stage = 0;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (ahead < tiles) {
            const int k0 = (first + ahead) * BLOCK_N + warp * 16;
            copy_16<D_PAD>(mine + i * STAGE, keys, k0);
            copy_16<DV_PAD>(mine + i * STAGE + 16 * ROW, vals, k0);
            ahead = next_tile(words, ahead + 1, tiles);
        }
        copy_commit();
    }
    while (tile < tiles) {
        const int k0 = (first + tile) * BLOCK_N + warp * 16;
        if (ahead < tiles) {
            const int k1 = (first + ahead) * BLOCK_N + warp * 16;
            unsigned char *to = mine + (stage == 0 ? STAGES - 1 : stage - 1) * STAGE;
            copy_16<D_PAD>(to, keys, k1);
            copy_16<DV_PAD>(to + 16 * ROW, vals, k1);
            ahead = next_tile(words, ahead + 1, tiles);
        }
        copy_commit();
        copy_wait();
        __syncwarp();
        attend(programs, at, s, fragment, (unsigned)__cvta_generic_to_shared(mine) + stage * STAGE,
               k0, !is_whole(words, tile) || k0 + 16 > sk, factor);
        __syncwarp();
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        tile = next_tile(words, tile + 1, tiles);
    }
    copy_drain();
    __syncthreads();
    leave(s, (float *)(shared + 16 * ROW) + warp * 16 * (DV_PAD + 2));
    __syncthreads();
    const long long block = blockIdx.x;
    join_warps((const float *)(shared + 16 * ROW), at, output, lse,
               parts > 1 ? partial + block * at.rows * (dv + 2) : (float *)0,
               (long long)group * at.rows, dv);
}

/* Block: one row of the output. rows: of a part. */
extern "C" __global__ void __launch_bounds__(128)
    attention_join(KG_T_output *output, KG_T_lse *lse, KG_T_partial *partial, int parts, int rows,
                   int dv) {
    const long long row = blockIdx.x, step = (long long)rows * (dv + 2);
    const float *from = partial + (row / rows * parts * rows + row % rows) * (dv + 2);
    float sum, top = join_ends(from, parts, step, dv, sum);
    const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (int c = (int)threadIdx.x; c < dv; c += 128)
        output[row * dv + c] =
            (half_bits)pack2(join_column(from, parts, step, dv, top, c) * scale, 0.0f);
    if (threadIdx.x == 0)
        write_lse(lse, row, top, sum);
}
