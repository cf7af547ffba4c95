/* kgen
{ "format": 1, "op": "attention", "target": "cuda", "min_arch": "sm_90",
  "tunables": {"WARPS": [4, 8, 2], "STAGES": [3, 4, 2, 6], "WAVES": [2, 1, 4], "HEAD": [128, 64, 256]},
  "specialize": ["D", "DV"],
  "require": "(query.dtype == float16 || query.dtype == bfloat16) && HQ / max(HKV, 1) * SQ <= 16 && max(D, DV) <= HEAD && (query.stride(3) == 1 || D == 1) && D % 8 == 0 && DV % 8 == 0 && SQ >= 1 && SK >= 1 && SQ <= 4194304 && SK <= 4194304 && min(align(key), align(value)) >= 16 && key.stride(3) == 1 && value.stride(3) == 1 && (SK == 1 || key.stride(2) % 8 == 0 && key.stride(2) > 0) && (HKV == 1 || key.stride(1) % 8 == 0 && key.stride(1) > 0) && (B == 1 || key.stride(0) % 8 == 0 && key.stride(0) >= 0) && (SK == 1 || value.stride(2) % 8 == 0 && value.stride(2) > 0) && (HKV == 1 || value.stride(1) % 8 == 0 && value.stride(1) > 0) && (B == 1 || value.stride(0) % 8 == 0 && value.stride(0) >= 0) && WARPS * STAGES * HEAD <= 3072",
  "workspace": {"partial": {"dtype": "float32", "shape": ["max(1, min(ceil_div(WAVES * NUM_SMS, max(B * HKV, 1)), ceil_div(SK, WARPS * 64))) > 1 ? B * HQ * SQ * max(1, min(ceil_div(WAVES * NUM_SMS, max(B * HKV, 1)), ceil_div(SK, WARPS * 64))) : 0", "DV + 2"]}},
  "holes": ["SCORE", "MASK"],
  "tensor_maps": {
    "keys": {"tensor": "key", "dims": ["D", "SK", "HKV", "key.stride(0) == 0 ? 1 : B"], "box": [64, 16, 1, 1], "swizzle": 128, "l2": 256,
             "strides": ["SK == 1 ? 16 : key.stride(2) * 2", "HKV == 1 ? 16 : key.stride(1) * 2", "B == 1 || key.stride(0) == 0 ? 16 : key.stride(0) * 2"]},
    "values": {"tensor": "value", "dims": ["DV", "SK", "HKV", "value.stride(0) == 0 ? 1 : B"], "box": [64, 16, 1, 1], "swizzle": 128, "l2": 256,
               "strides": ["SK == 1 ? 16 : value.stride(2) * 2", "HKV == 1 ? 16 : value.stride(1) * 2", "B == 1 || value.stride(0) == 0 ? 16 : value.stride(0) * 2"]}},
  "launches": [
    {"kernel": "attention_part", "grid": ["B * HKV * max(1, min(ceil_div(WAVES * NUM_SMS, max(B * HKV, 1)), ceil_div(SK, WARPS * 64)))"], "block": ["WARPS * 32"],
     "shared": "1024 + WARPS * STAGES * 64 * HEAD + 16 * (HEAD + 8) * 2 + WARPS * STAGES * 8 + (HAS_MASK ? 8 * ceil_div(ceil_div(SK, WARPS * 16), 32) : 0)",
     "args": ["query", {"map": "keys"}, {"map": "values"}, "output", "lse", "partial", "programs", {"i32": "max(1, min(ceil_div(WAVES * NUM_SMS, max(B * HKV, 1)), ceil_div(SK, WARPS * 64)))"},
              {"i32": "HQ"}, {"i32": "HKV"}, {"i32": "SQ"}, {"i32": "SK"}, {"i32": "D"}, {"i32": "DV"},
              {"i32": "key.stride(0) == 0 ? 0 : 1"}, {"i32": "value.stride(0) == 0 ? 0 : 1"},
              {"i64": "query.stride(0)"}, {"i64": "query.stride(1)"}, {"i64": "query.stride(2)"}, {"f32": "scale"}]},
    {"kernel": "attention_join", "grid": ["B * HQ * SQ"], "block": [512], "when": "max(1, min(ceil_div(WAVES * NUM_SMS, max(B * HKV, 1)), ceil_div(SK, WARPS * 64))) > 1", "pdl": true,
     "args": ["output", "lse", "partial", {"i32": "max(1, min(ceil_div(WAVES * NUM_SMS, max(B * HKV, 1)), ceil_div(SK, WARPS * 64)))"}, {"i32": "HQ / HKV * SQ"}, {"i32": "DV"}]}] }
*/
/* Attention for few queries on Hopper: decode.cu with its keys and values by TMA.
 *
 * What a block and its warps do is decode.cu's: the queries of all heads that share one head of keys are
 * the rows of one tile of mma.sync, a block takes a part of the keys, each of its warps every WARPS-th 16
 * of them, through STAGES buffers of its own. Here one lane asks for a stage in four or eight boxes of 64
 * columns and the warp waits on a barrier of its own, so that no thread computes addresses or waits for
 * others' copies; boxes are swizzled, and their rows past the last key are zeros.
 *
 * Keys of stride 0 from entry to entry are one cache for all of them, of which a mask says whose a page is.
 *
 * The launch that joins the parts is let in at once and waits for the others' end on the device, so that
 * its start costs nothing; its threads fetch the parts' maxima and sums together.
 *
 * Traffic: K and V once, 2 * B * HKV * SK * (D + DV) bytes. Floor: that over the rate of reading. In
 * flight at the defaults and D 128: 96 KiB a block, two blocks a multiprocessor.
 *
 * Launch bounds: WARPS * 32. Refuses what decode.cu refuses, and tensors that TMA cannot address. */
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
#define ROW ((HEAD + 8) * 2)          /* bytes of a query in shared memory */
#define HALF_STAGE (16 * HEAD * 2)    /* 16 keys, in blocks of 64 columns; their values follow */
#define STAGE (2 * HALF_STAGE)
#define Q_AT (WARPS * STAGES * STAGE)
#define BARRIERS_AT (Q_AT + 16 * ROW)
#define WORDS_AT (BARRIERS_AT + WARPS * STAGES * 8)
#define JOINERS 4 /* groups of 128 threads */
#define COLUMNS ((HEAD + 127) / 128)
#define SLACK 8.0f /* how far scores may outgrow the maximum in use, in log2 */

typedef unsigned short half_bits;
struct alignas(64) tensor_map { unsigned long long opaque[16]; };

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

DEV void barrier_init(unsigned bar, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}

DEV void barrier_wait(unsigned bar, unsigned parity) {
    unsigned over = 0;
    while (!over)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(over) : "r"(bar), "r"(parity) : "memory");
}

/* 16 rows of a head from `row` on, as blocks of 64 columns one after another, of which each is 16 rows of
 * 128 bytes with the 128-byte swizzle. By one lane. */
DEV void load_16(unsigned to, const tensor_map *m, unsigned bar, int row, int h, int b) {
#pragma unroll
    for (int i = 0; i < HEAD / 64; i++)
        asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                     " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to + i * 16 * 128), "l"(m), "r"(bar),
                     "r"(i * 64), "r"(row), "r"(h), "r"(b) : "memory");
}

/* Keys and values of a head, where they go, and when they are there. */
struct source {
    const tensor_map *keys, *values;
    unsigned to, bars; /* of this warp's stages */
    int h, k_entry, v_entry;
};

/* Stage i, by the first lane of a warp that is done with what it held. */
DEV void load_stage(const struct source &s, int i, int row) {
    if (threadIdx.x % 32 != 0)
        return;
    const unsigned bar = s.bars + i * 8;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(STAGE) : "memory");
    load_16(s.to + i * STAGE, s.keys, bar, row, s.h, s.k_entry);
    load_16(s.to + i * STAGE + HALF_STAGE, s.values, bar, row, s.h, s.v_entry);
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
    /* Rows of 128 bytes; the 16 bytes numbered c of row r lie at c ^ r % 8. */
    const unsigned key = stage + (lane / 16 * 8 + lane % 8) * 128, key_at = lane / 8 % 2, turned = lane % 8;
    const unsigned value = stage + HALF_STAGE + lane % 16 * 128, value_at = lane / 16;
    float score[2][4] = {};
#pragma unroll
    for (int k = 0; k < K_STEPS; k++) {
        unsigned b[4];
        load4(b, key + k / 4 * (16 * 128) + ((k % 4 * 2 + key_at) ^ turned) * 16);
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
        load4_turned(b, value + o / 8 * (16 * 128) + ((o % 8 + value_at) ^ turned) * 16);
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
    attention_part(const KG_T_query *query, const __grid_constant__ tensor_map keys,
                   const __grid_constant__ tensor_map values, KG_T_output *output, KG_T_lse *lse,
                   KG_T_partial *partial, KG_PROGRAMS programs, int parts, int hq, int hkv, int sq, int sk,
                   int d, int dv, int k_batch, int v_batch, long long q_batch, long long q_head, long long q_row, float scale) {
    extern __shared__ unsigned char raw[];
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#if KG_EXACT_D
    d = D;
#endif
#if KG_EXACT_DV
    dv = DV;
#endif
    const unsigned begin = (unsigned)__cvta_generic_to_shared(raw), shared = (begin + 1023) & ~1023u;
    unsigned char *const at_shared = raw + (shared - begin);
    const int group = (int)blockIdx.x / parts, b = group / hkv, hk = group % hkv;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int all = (sk + BLOCK_N - 1) / BLOCK_N, each = (all + parts - 1) / parts;
    const int first = min(all, (int)blockIdx.x % parts * each), tiles = min(each, all - first);
    unsigned *const words = (unsigned *)(at_shared + WORDS_AT);
    const struct source from = {&keys, &values, shared + warp * STAGES * STAGE, shared + BARRIERS_AT + warp * STAGES * 8,
                                hk, b * k_batch, b * v_batch};
    struct place at;
    at.b = b, at.first = hk * (hq / hkv), at.sq = sq, at.sk = sk, at.scale = scale;
    at.rows = hq / hkv * sq;
    if (lane == 0) {
        for (int i = 0; i < STAGES; i++)
            barrier_init(from.bars + i * 8, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
#if KG_HAS_MASK
    survey(programs, words, at, first, tiles);
    __syncthreads();
#endif
    __syncwarp();
    int ahead = next_tile(words, 0, tiles), tile = ahead, stage = 0;
    unsigned phase = 0;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++)
        if (ahead < tiles) {
            load_stage(from, i, (first + ahead) * BLOCK_N + warp * 16);
            ahead = next_tile(words, ahead + 1, tiles);
        }
    /* The queries by element: they are few, and their heads are q_head apart. */
    for (int i = (int)threadIdx.x; i < 16 * D_PAD; i += THREADS) {
        const int r = i / D_PAD, c = i % D_PAD;
        half_bits bits = 0;
        if (r < at.rows && c < d)
            bits = query[b * q_batch + (at.first + r / sq) * q_head + r % sq * q_row + c];
        *(half_bits *)(at_shared + Q_AT + r * ROW + c * 2) = bits;
    }
    __syncthreads();
    unsigned fragment[K_STEPS][4];
    const unsigned flip = !KG_HAS_SCORE && scale < 0.0f ? 0x80008000u : 0u;
#pragma unroll
    for (int k = 0; k < K_STEPS; k++) {
        load4(fragment[k], shared + Q_AT + lane % 16 * ROW + lane / 16 * 16 + k * 32);
#pragma unroll
        for (int i = 0; i < 4; i++)
            fragment[k][i] ^= flip;
    }
    /* A scale of zero must not turn the -inf of a masked score into NaN. */
    float factor = KG_HAS_SCORE ? LOG2E : fabsf(scale) * LOG2E;
    factor = factor < 1e-37f ? 1e-37f : factor;
    struct state s = {};
    s.base[0] = s.base[1] = -infinity();
    while (tile < tiles) {
        const int k0 = (first + tile) * BLOCK_N + warp * 16;
        if (ahead < tiles) {
            load_stage(from, stage == 0 ? STAGES - 1 : stage - 1, (first + ahead) * BLOCK_N + warp * 16);
            ahead = next_tile(words, ahead + 1, tiles);
        }
        barrier_wait(from.bars + stage * 8, phase);
        attend(programs, at, s, fragment, from.to + stage * STAGE, k0, !is_whole(words, tile) || k0 + 16 > sk,
               factor);
        __syncwarp();
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        phase ^= stage == 0;
        tile = next_tile(words, tile + 1, tiles);
    }
    __syncthreads();
    leave(s, (float *)at_shared + warp * 16 * (DV_PAD + 2));
    __syncthreads();
    const long long block = blockIdx.x;
    join_warps((const float *)at_shared, at, output, lse,
               parts > 1 ? partial + block * at.rows * (dv + 2) : (float *)0,
               (long long)group * at.rows, dv);
}

/* Block: one row of the output. rows: of a part. The parts go by 128: their maxima and sums one a thread,
 * their outputs among JOINERS groups of threads. */
extern "C" __global__ void __launch_bounds__(JOINERS * 128)
    attention_join(KG_T_output *output, KG_T_lse *lse, KG_T_partial *partial, int parts, int rows,
                   int dv) {
    __shared__ float weight[128];
    __shared__ float ends[2][4];
    __shared__ float outs[JOINERS][HEAD];
    asm volatile("griddepcontrol.wait;" ::: "memory");
    const long long row = blockIdx.x, step = (long long)rows * (dv + 2);
    const float *from = partial + (row / rows * parts * rows + row % rows) * (dv + 2);
    const int t = (int)threadIdx.x, c = t % 128;
    float base = -infinity(), sum = 0.0f, out[COLUMNS] = {};
    for (int first = 0; first < parts; first += 128) {
        const int n = min(128, parts - first);
        const float *part = from + (first + min(c, n - 1)) * step + dv;
        const float top = c < n ? part[0] : -infinity(), own = c < n ? part[1] : 0.0f;
        float most = top;
#pragma unroll
        for (int i = 16; i > 0; i /= 2)
            most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, i));
        if (t < 128 && t % 32 == 0)
            ends[0][t / 32] = most;
        __syncthreads();
        most = fmaxf(fmaxf(fmaxf(ends[0][0], ends[0][1]), fmaxf(ends[0][2], ends[0][3])), base);
        const float low = most == -infinity() ? 0.0f : most, w = exp2f(top - low), decay = exp2f(base - low);
        float all = own * w;
#pragma unroll
        for (int i = 16; i > 0; i /= 2)
            all += __shfl_xor_sync(0xffffffff, all, i);
        if (t < 128)
            weight[t] = w;
        if (t < 128 && t % 32 == 0)
            ends[1][t / 32] = all;
        __syncthreads();
        base = most, sum = sum * decay + (ends[1][0] + ends[1][1] + ends[1][2] + ends[1][3]);
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            float x = out[j] * decay;
#pragma unroll 8
            for (int i = t / 128; i < n; i += JOINERS)
                x += from[(first + i) * step + min(c + j * 128, dv - 1)] * weight[i];
            out[j] = x;
        }
        __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
        if (c + j * 128 < HEAD)
            outs[t / 128][c + j * 128] = out[j];
    __syncthreads();
    const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
    if (t < dv) {
        float all = 0.0f;
#pragma unroll
        for (int i = 0; i < JOINERS; i++)
            all += outs[i][t];
        output[row * dv + t] = (half_bits)pack2(all * scale, 0.0f);
    }
    if (t == 0)
        write_lse(lse, row, base, sum);
}
