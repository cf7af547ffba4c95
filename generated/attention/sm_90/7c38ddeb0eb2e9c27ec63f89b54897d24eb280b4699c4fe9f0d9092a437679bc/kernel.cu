/* kgen
{ "format": 1, "op": "attention", "target": "cuda", "min_arch": "sm_90",
  "tunables": {"BLOCK_N": [128, 160, 176, 80, 64], "HEAD": [128, 64, 256], "CONSUMERS": [2, 3], "STAGES": [2, 3], "QUERIES": [1, 2],
               "PINGPONG": [0, 1], "QUICK": [1, 0]},
  "specialize": ["D", "DV"],
  "require": "(query.dtype == float16 || query.dtype == bfloat16) && max(D, DV) <= HEAD && D % 8 == 0 && DV % 8 == 0 && SQ >= 1 && SK >= 1 && SQ <= 4194304 && SK <= 4194304 && B * HQ * ceil_div(SQ, 64) <= 1073741824 && min(align(query), align(key), align(value)) >= 16 && query.stride(3) == 1 && key.stride(3) == 1 && value.stride(3) == 1 && (SQ == 1 || query.stride(2) % 8 == 0 && query.stride(2) > 0) && (HQ == 1 || query.stride(1) % 8 == 0 && query.stride(1) > 0) && (B == 1 || query.stride(0) % 8 == 0 && query.stride(0) > 0) && (SK == 1 || key.stride(2) % 8 == 0 && key.stride(2) > 0) && (HKV == 1 || key.stride(1) % 8 == 0 && key.stride(1) > 0) && (B == 1 || key.stride(0) % 8 == 0 && key.stride(0) > 0) && (SK == 1 || value.stride(2) % 8 == 0 && value.stride(2) > 0) && (HKV == 1 || value.stride(1) % 8 == 0 && value.stride(1) > 0) && (B == 1 || value.stride(0) % 8 == 0 && value.stride(0) > 0) && (CONSUMERS == 2 || PINGPONG == 0 && HEAD == 64 && BLOCK_N <= 128) && (HEAD < 256 || BLOCK_N <= 80) && QUERIES * CONSUMERS * 64 * HEAD * 2 + STAGES * BLOCK_N * HEAD * 4 + (HAS_SCORE ? 32 * BLOCK_N : 0) + 1280 <= 232448",
  "holes": ["SCORE", "MASK"],
  "workspace": {"seen": {"dtype": "int32", "shape": ["HAS_MASK ? B * HQ * ceil_div(SQ, 64 * CONSUMERS) : 1", "2 * ceil_div(SK, 32 * BLOCK_N)"]},
                "drawn": {"dtype": "int32", "shape": [1]}},
  "tensor_maps": {
    "queries": {"tensor": "query", "dims": ["D", "SQ", "HQ", "B"], "box": [64, 64, 1, 1], "swizzle": 128, "l2": 256,
                "strides": ["SQ == 1 ? 16 : query.stride(2) * 2", "HQ == 1 ? 16 : query.stride(1) * 2", "B == 1 ? 16 : query.stride(0) * 2"]},
    "keys": {"tensor": "key", "dims": ["D", "SK", "HKV", "B"], "box": [64, "BLOCK_N", 1, 1], "swizzle": 128, "l2": 256,
             "strides": ["SK == 1 ? 16 : key.stride(2) * 2", "HKV == 1 ? 16 : key.stride(1) * 2", "B == 1 ? 16 : key.stride(0) * 2"]},
    "values": {"tensor": "value", "dims": ["DV", "SK", "HKV", "B"], "box": [64, "BLOCK_N", 1, 1], "swizzle": 128, "l2": 256,
               "strides": ["SK == 1 ? 16 : value.stride(2) * 2", "HKV == 1 ? 16 : value.stride(1) * 2", "B == 1 ? 16 : value.stride(0) * 2"]}},
  "launches": [
    {"kernel": "attention_survey", "when": "HAS_MASK", "grid": ["B * HQ * ceil_div(SQ, 64 * CONSUMERS)"], "block": [128],
     "args": ["seen", "drawn", "programs", {"i32": "HQ"}, {"i32": "SQ"}, {"i32": "SK"}]},
    {"kernel": "attention_hopper", "grid": ["min(NUM_SMS, B * HQ * ceil_div(SQ, 64 * CONSUMERS))"], "block": ["128 * (CONSUMERS + 1)"],
     "shared": "QUERIES * CONSUMERS * 64 * HEAD * 2 + STAGES * BLOCK_N * HEAD * 4 + (HAS_SCORE ? 32 * BLOCK_N : 0) + 1280", "pdl": true,
     "args": [{"map": "queries"}, {"map": "keys"}, {"map": "values"}, "output", "lse", "seen", "drawn", "programs",
              {"i32": "B"}, {"i32": "HQ"}, {"i32": "HQ / HKV"}, {"i32": "SQ"}, {"i32": "SK"}, {"i32": "DV"},
              {"i32": "HAS_MASK ? min(B * HQ, HQ / HKV * max(1, 16777216 / (SK * (D + DV)))) : 1"}, {"f32": "scale"}]}] }
*/
/* Flash attention for half types on Hopper: wgmma, TMA, warp specialisation.
 *
 * A block of threads stays on its multiprocessor and walks tiles, each 64 * CONSUMERS queries of one
 * head. Warpgroup 0 feeds: one thread of it draws tiles and issues every TMA load. The others consume,
 * 64 queries each: the next block's scores S = Q K^T and this one's O += P V are in flight together,
 * and the pipeline runs on from tile to tile. P stays in registers as the A operand; V is the MN-major
 * B operand. The feeder says with each block of keys whether it is a tile's last and whether the mask
 * must be asked, so that consumers never look for work.
 *
 * A mask is surveyed by an earlier launch (attention_survey): for each tile two bits a block of keys,
 * whether anybody sees it and whether everybody sees all of it. Blocks that nobody sees are never
 * loaded; only the others that are not whole evaluate the mask, while their scores are computed. Tiles
 * are then drawn from a counter, the last queries first, in groups of heads whose keys and values fit
 * the L2 cache together.
 *
 * The maximum in use, m, lags a row's true one: it rises when it would be exceeded by more than 8 in
 * log2. With QUICK it is not even looked for once a row has one: weights are taken against m, and where
 * a thread's sum of them passes LIMIT, m rises for the blocks to come. Where they leave what the half
 * type can hold, the tile is marked, the block of threads looks for maxima from then on, and the feeder
 * shows marked tiles once more at the end. Not looking saves one of five instructions a score, where a
 * score costs the CUDA cores more than the tensor cores.
 *
 * A score function that is a line, a * score + b + slope * kv within a row, costs the CUDA cores nothing a
 * score: slope * (kv - the block's first) is one more step of 16 in the product of scores, of the slope
 * in three bfloat16 parts and a constant tile of steps, and the rest is added once a row and block.
 *
 * Traffic: K and V of a head once a tile, out of L2; flops 2 * SQ * SK * (D + DV) a head, less the
 * blocks that the mask empties; floor: flops over 4096 a clock and multiprocessor.
 *
 * Launch bounds: 128 * (CONSUMERS + 1), one block a multiprocessor. Refuses fp32 (fma.cu), heads over
 * 256 or no multiple of 8, tensors that TMA cannot address (flash.cu takes those), empty sequences. */
#define DEV static __device__ __forceinline__
#define LOG2E 1.44269504088896341f
#define LN2 0.693147180559945309f
#define THREADS (128 * (CONSUMERS + 1))
#define BLOCK_M (64 * CONSUMERS)
#define SCORES (BLOCK_N / 2) /* of a block, in each thread */
#define O_PARTS (HEAD == 256 ? 2 : 1)
#define O_REGS (HEAD == 64 ? 32 : 64)
#if KG_EXACT_D
#define K_STEPS ((D + 15) / 16)
#else
#define K_STEPS (HEAD / 16)
#endif
#define Q_BYTES (64 * HEAD * 2) /* of one warpgroup */
#define KV_BYTES (BLOCK_N * HEAD * 2)
/* QUERIES 2: the next tile's come while this one's last block is at work. */
#define K_AT (QUERIES * CONSUMERS * Q_BYTES)
#define V_AT (K_AT + STAGES * KV_BYTES)
#define STEPS_AT (V_AT + STAGES * KV_BYTES) /* of a line: BLOCK_N * 32 bytes, below */
#define BARRIERS_AT (STEPS_AT + (KG_SCORE_LINE ? BLOCK_N * 32 : 0))
/* A function that costs more than the maximum spoils what not looking for it saves. */
#define HASTY (QUICK && (!KG_HAS_SCORE || KG_SCORE_LINE))
#define SLACK 8.0f /* how far scores may outgrow the maximum in use, in log2 */
/* Of a thread's weights in one block when nobody looked for its maximum: from LIMIT on the maximum in use
 * rises, from BEYOND on they are of no use (bfloat16 holds them far beyond; sums must not overflow). */
#define LIMIT (KG_DTYPE_query == KG_BF16 ? 0x1p16f : 0x1p15f)
#define BEYOND (KG_DTYPE_query == KG_BF16 ? 0x1p40f : 0x1p15f)
#define MARKS 64 /* more than the warps that can overflow before the feeder hears of the first */

typedef unsigned char u8;
typedef unsigned short half_bits;
typedef unsigned int u32; typedef unsigned long long u64;
struct alignas(64) tensor_map { u64 opaque[16]; };
struct pair { float x, y; }; /* of a thread's rows r and r + 8 */
struct slopes { u32 x, y; }; /* for each of them, as the A operand of the step by which scores grow */
struct scaling { struct pair factor, base; }; /* log2 of a weight is factor * score + base */

#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)

DEV float infinity() { return __int_as_float(0x7f800000); }

/* ---- primitives ---- */
DEV void barrier_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}
DEV void barrier_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
DEV void barrier_expect(u32 bar, u32 n) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(n) : "memory");
}
DEV void barrier_wait(u32 bar, u32 parity) {
    asm volatile("{\n\t.reg .pred p;\nWAIT:\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n\t"
                 "@!p bra WAIT;\n\t}" ::"r"(bar), "r"(parity) : "memory");
}
/* ROWS rows of a head as blocks of 64 columns, one after another. */
template <int ROWS> DEV void load_rows(u32 to, const tensor_map *m, u32 bar, int row, int h, int b) {
    barrier_expect(bar, ROWS * HEAD * 2);
    EACH(i, HEAD / 64)
        asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                     " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to + i * ROWS * 128), "l"(m), "r"(bar),
                     "r"(i * 64), "r"(row), "r"(h), "r"(b) : "memory");
}
DEV void turn_wait(int id) { asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory"); }
DEV void turn_give(int id) { asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory"); }
DEV float exp2_(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEV float log2_(float x) { float y; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
/* The exact one calls a subroutine, and all that lives must be saved around it. */
DEV float reciprocal(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEV int opaque_zero() { int r; asm volatile("mov.b32 %0, 0;" : "=r"(r)); return r; }
DEV float across(float x, int lanes) { return __shfl_xor_sync(0xffffffff, x, lanes); }
DEV u32 across(u32 x, int lanes) { return __shfl_xor_sync(0xffffffff, x, lanes); }
DEV u32 pack_bf16(float low, float high) {
    u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r;
}
#if KG_DTYPE_query == KG_BF16
#define TYPES "bf16.bf16"
DEV u32 pack2(float low, float high) { return pack_bf16(low, high); }
#else
#define TYPES "f16.f16"
DEV u32 pack2(float low, float high) {
    u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r;
}
#endif
/* No read of r moves above the wait before it. */
template <int N> DEV void pin(float (&r)[N]) { EACH(i, N) asm volatile("" : "+f"(r[i])::"memory"); }
DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> DEV void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
/* 128-byte swizzle, 1024 bytes from 8 rows to the next 8. between: of MN-major operands, bytes from one
 * block of 64 columns to the next. */
DEV u64 operand_at(u32 address, u32 between) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)(between >> 4) << 16 | (u64)64 << 32 | (u64)1 << 62;
}
/* The tile of steps: no swizzle, 128 bytes from 8 rows to the next, the other 8 columns behind all rows. */
DEV u64 steps_at(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)BLOCK_N << 16 | (u64)8 << 32;
}

/* Accumulators by eights: S<n> are the operands %0 to %<n - 1>, O<n>(d) their registers. */
#define OF(d, i)                                                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define S32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
            "%24,%25,%26,%27,%28,%29,%30,%31"
#define O32(d) OF(d, 0), OF(d, 8), OF(d, 16), OF(d, 24)
#define S40 S32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define O40(d) O32(d), OF(d, 32)
#define S64 S40 ",%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define O64(d) O40(d), OF(d, 40), OF(d, 48), OF(d, 56)
#define S80 S64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define O80(d) O64(d), OF(d, 64), OF(d, 72)
#define S88 S80 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define O88(d) O80(d), OF(d, 80)

/* 64 x N x 16. score_product: s = q k^T, or += where more is not 0, of shared memory. slope_product:
 * s += a k of bfloat16, with the first 8 columns of a in registers, the others 0. */
#define PRODUCTS(N, LIST, OUT, i_, j_, k_)                                                         \
    DEV void score_product(float (&s)[N / 2], u64 q, u64 k, int more) {                            \
        asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" #k_ ", 0;\n\t"                       \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPES " {" LIST "}, %" #i_  \
                     ", %" #j_ ", p, 1, 1, 0, 0;\n\t}" : OUT(s) : "l"(q), "l"(k), "r"(more));      \
    }                                                                                              \
    DEV void slope_product(float (&s)[N / 2], u32 a, u32 b, u64 k) {                               \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" LIST "}, {%" #i_ \
                     ", %" #j_ ", 0, 0}, %" #k_ ", 1, 1, 1, 0;" : OUT(s) : "r"(a), "r"(b), "l"(k));\
    }
#if BLOCK_N == 64
PRODUCTS(64, S32, O32, 32, 33, 34)
#elif BLOCK_N == 80
PRODUCTS(80, S40, O40, 40, 41, 42)
#elif BLOCK_N == 128
PRODUCTS(128, S64, O64, 64, 65, 66)
#elif BLOCK_N == 160
PRODUCTS(160, S80, O80, 80, 81, 82)
#elif BLOCK_N == 176
PRODUCTS(176, S88, O88, 88, 89, 90)
#endif

/* o += p v: A in registers, B in shared memory and MN-major. */
#define VALUE_PRODUCT(N, LIST, OUT, a_, b_, c_, d_, v_)                                            \
    DEV void value_product(float (&o)[N / 2], const u32 *p, u64 v) {                               \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPES " {" LIST "}, {%" #a_ \
                     ", %" #b_ ", %" #c_ ", %" #d_ "}, %" #v_ ", 1, 1, 1, 1;"                      \
                     : OUT(o) : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v));               \
    }
#if HEAD == 64
VALUE_PRODUCT(64, S32, O32, 32, 33, 34, 35, 36)
#else
VALUE_PRODUCT(128, S64, O64, 64, 65, 66, 67, 68)
#endif

/* 4 steps of 32 bytes, then the next 64 columns. */
DEV void issue_scores(float (&s)[SCORES], u32 q, u32 k, struct slopes slope, u32 steps) {
    EACH(i, K_STEPS)
        score_product(s, operand_at(q, 16) + (i / 4 * (64 * 128) + i % 4 * 32) / 16,
                      operand_at(k, 16) + (i / 4 * (BLOCK_N * 128) + i % 4 * 32) / 16, i);
    if (KG_SCORE_LINE)
        slope_product(s, slope.x, slope.y, steps_at(steps));
}
/* Steps of 16 rows of 128 bytes. */
DEV void issue_values(float (&o)[O_PARTS][O_REGS], const u32 (&p)[SCORES / 2], u32 v) {
    EACH(part, O_PARTS)
        EACH(i, BLOCK_N / 16)
            value_product(o[part], p + 4 * i,
                          operand_at(v + part * (2 * BLOCK_N * 128), BLOCK_N * 128) + i * 2048 / 16);
}

/* ---- tiles ---- */
/* m: block of queries; head: over all batch entries, which is head h of entry b */
struct tile { int m, head, b, h; };

/* Groups of heads, in each the last queries first: under a causal mask the longest. */
DEV struct tile tile_of(u32 t, u32 blocks, u32 batches, u32 heads, u32 group) {
    const u32 g = t / (group * blocks), r = t - g * (group * blocks);
    const u32 n = min(group, batches * heads - g * group), m = r / n, head = g * group + r - m * n;
    return {(int)(blocks - 1 - m), (int)head, (int)(head / heads), (int)(head % heads)};
}

/* What the feeder says of a block of keys: its number and these; END instead of one. */
#define CAREFUL (1 << 28) /* look for the maximum */
#define ASK (1 << 29)     /* the mask, or the block hangs over the last key */
#define LAST (1 << 30)    /* of its tile */
#define END (-1)

/* Of which head the survey serves head h of entry b. */
DEV int surveyed_head(int b, int h, int heads) {
    return (KG_MASK_OF_B ? b * heads : 0) + (KG_MASK_OF_H ? h : 0);
}

/* The bits of one tile's blocks, a word at a time, and which way they are walked. */
struct survey {
    const int2 *words; /* any, whole */
    int blocks, at;    /* at: which word is in `any`; -1: none */
    u32 any;
    bool up;
};

/* The first block from t on that anybody sees; -1 when there is none. */
DEV int seen_from(struct survey &s, int t) {
    while (KG_HAS_MASK && (u32)t < (u32)s.blocks) {
        if (s.at != t / 32)
            s.at = t / 32, s.any = (u32)s.words[s.at].x;
        const u32 left = s.up ? s.any >> t % 32 : s.any << (31 - t % 32);
        if (left != 0)
            return s.up ? t + __ffs((int)left) - 1 : t - __clz((int)left);
        t = s.up ? (t / 32 + 1) * 32 : t / 32 * 32 - 1;
    }
    return t < s.blocks ? t : -1;
}

/* Whether block t must be asked. */
DEV bool must_ask(const struct survey &s, int t, int sk) {
    return (t + 1) * BLOCK_N > sk || (KG_HAS_MASK && ((u32)s.words[t / 32].y >> t % 32 & 1) == 0);
}

extern "C" __global__ void __launch_bounds__(128)
    attention_survey(KG_T_seen *seen, KG_T_drawn *drawn, KG_PROGRAMS programs, int hq, int sq, int sk) {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    const int m_blocks = (sq + BLOCK_M - 1) / BLOCK_M, head = (int)blockIdx.x / m_blocks;
    const int b = head / hq, h = head % hq, q0 = (int)blockIdx.x % m_blocks * BLOCK_M;
    const int blocks = (sk + BLOCK_N - 1) / BLOCK_N, words = (blocks + 31) / 32;
    if (blockIdx.x + threadIdx.x == 0)
        *drawn = 0;
    if (surveyed_head(b, h, hq) != head)
        return;
    int2 *to = (int2 *)seen + (long long)blockIdx.x * words;
    for (int t = (int)threadIdx.x; t / 32 < words; t += 128) {
        const int k0 = t * BLOCK_N, q1 = min(q0 + BLOCK_M, sq);
        const int code = t < blocks ? kg_mask_range(programs, b, h, q0, q1, k0, min(k0 + BLOCK_N, sk)) : 0;
        const u32 any = __ballot_sync(0xffffffff, code != 0), whole = __ballot_sync(0xffffffff, code == 1);
        if (t % 32 == 0)
            to[t / 32] = make_int2((int)any, (int)whole);
    }
}

/* ---- the feeder ---- */
/* Barriers, by address: a full and an empty one for each warpgroup's queries, each stage of keys and
 * each of values. */
struct barriers { u32 q_full, q_empty, k_full, k_empty, v_full, v_empty; };

DEV struct barriers barriers_at(u32 at) {
    const u32 k = at + 16 * CONSUMERS * QUERIES, v = k + 16 * STAGES;
    return {at, at + 8 * CONSUMERS * QUERIES, k, k + 8 * STAGES, v, v + 8 * STAGES};
}

struct ring { int stage; u32 phase; };
DEV void step(struct ring &r) {
    if (++r.stage == STAGES)
        r.stage = 0, r.phase ^= 1;
}

struct sizes { int batches, hq, share, sq, sk, group; }; /* share: heads of queries to one of keys */

/* What a block of keys is known by to the consumers, and a tile of queries; and which tiles they marked,
 * some more than once. The feeder's own, which has few registers: how many marks it looked at, and the
 * block whose values are due (-1: none) with its head of keys and batch entry. */
struct messages {
    int block[STAGES], tile[QUERIES * CONSUMERS], marks, marked[MARKS], looked, late, late_h, late_b;
};

DEV void mark(struct messages &said, int t) {
    const int i = atomicAdd(&said.marks, 1);
    if (i < MARKS)
        said.marked[i] = t;
}

struct feeder {
    const tensor_map *queries, *keys, *values;
    struct barriers bar;
    u32 shared;
    struct messages *say;
    struct ring k, v;
    u32 count; /* of tiles */
};

DEV void feed_values(struct feeder &f) {
    if (f.say->late < 0)
        return;
    const u32 full = f.bar.v_full + 8 * f.v.stage;
    barrier_wait(f.bar.v_empty + 8 * f.v.stage, f.v.phase ^ 1);
    load_rows<BLOCK_N>(f.shared + V_AT + f.v.stage * KV_BYTES, f.values, full,
                       f.say->late * BLOCK_N, f.say->late_h, f.say->late_b);
    step(f.v);
}

/* Keys of a block, then the values of the block before it. */
DEV void feed_block(struct feeder &f, int block, int flags, int h, int b) {
    const u32 full = f.bar.k_full + 8 * f.k.stage;
    barrier_wait(f.bar.k_empty + 8 * f.k.stage, f.k.phase ^ 1);
    f.say->block[f.k.stage] = block | flags;
    load_rows<BLOCK_N>(f.shared + K_AT + f.k.stage * KV_BYTES, f.keys, full, block * BLOCK_N, h, b);
    step(f.k);
    feed_values(f);
    f.say->late = block, f.say->late_h = h, f.say->late_b = b;
}

/* Each warpgroup's queries as soon as it is ready for them. */
DEV void feed_queries(struct feeder &f, int t, struct tile at) {
    EACH(w, CONSUMERS) {
        const int i = f.count % QUERIES * CONSUMERS + w;
        barrier_wait(f.bar.q_empty + 8 * i, (f.count / QUERIES & 1) ^ 1);
        f.say->tile[i] = t;
        load_rows<64>(f.shared + i * Q_BYTES, f.queries, f.bar.q_full + 8 * i,
                      at.m * BLOCK_M + w * 64, at.h, at.b);
    }
    f.count++;
}

/* Blocks go from the last to the first; where the score falls along a row, the other way round: weights
 * then fall from block to block, and the first maximum serves. */
DEV void feed_tile(KG_ARGS p, struct feeder &f, const struct sizes &n, const int *seen, int t) {
    const int m_blocks = (n.sq + BLOCK_M - 1) / BLOCK_M;
    const struct tile at = tile_of(t, m_blocks, n.batches, n.hq, n.group);
    const int hk = (int)((u32)at.h / (u32)n.share);
    struct survey s = {(const int2 *)seen, (n.sk + BLOCK_N - 1) / BLOCK_N, -1, 0, false};
    s.words += (long long)(surveyed_head(at.b, at.h, n.hq) * m_blocks + at.m) * ((s.blocks + 31) / 32);
#if KG_SCORE_LINE
    s.up = kg_score_line(p, at.b, at.h, at.m * BLOCK_M).slope < 0.0f;
#endif
    int block = seen_from(s, s.up ? 0 : s.blocks - 1);
    int flags = block < 0 || must_ask(s, block, n.sk) ? ASK : 0;
    /* Of a tile without a key to see, one block is shown and masked. */
    block = max(block, 0);
    for (bool first = true; block >= 0; first = false) {
        const int after = seen_from(s, s.up ? block + 1 : block - 1);
        if (HASTY && *(volatile int *)&f.say->marks != 0)
            flags |= CAREFUL;
        feed_block(f, block, flags | (after < 0 ? LAST : 0), hk, at.b);
        if (first)
            feed_queries(f, t, at);
        flags = after >= 0 && must_ask(s, after, n.sk) ? ASK : 0;
        block = after;
    }
}

/* Waits until consumers have the weights of all blocks that were fed. */
DEV void settle(struct feeder &f) {
    struct ring r = f.v;
    EACH(i, STAGES - 1) {
        barrier_wait(f.bar.v_empty + 8 * r.stage, r.phase ^ 1);
        step(r);
    }
}

/* The next marked tile that no mark before it is for; -1 when there is none. */
DEV int next_mark(struct messages &said) {
    const int n = min(*(const volatile int *)&said.marks, MARKS);
    for (int i = said.looked; i < n; i++) {
        int j = 0;
        while (said.marked[j] != said.marked[i])
            j++;
        if (j == i) {
            said.looked = i + 1;
            return said.marked[i];
        }
    }
    return -1;
}

/* Tiles that are drawn, then those that were marked. seen: of tile 0. */
DEV void feed(KG_ARGS p, struct feeder &f, const struct sizes &n, const int *seen, int *drawn) {
    const int tiles = (n.sq + BLOCK_M - 1) / BLOCK_M * n.batches * n.hq;
    int t = (int)blockIdx.x;
    bool again = false;
    for (;;) {
        if (t >= tiles) {
            feed_values(f);
            f.say->late = -1;
            if (HASTY && !again)
                settle(f);
            again = true;
        }
        if (again && (!HASTY || (t = next_mark(*f.say)) < 0))
            break;
        int next = tiles;
        if (!again)
            next = KG_HAS_MASK ? (int)gridDim.x + atomicAdd(drawn, 1) : t + (int)gridDim.x;
        feed_tile(p, f, n, seen, t);
        t = next;
    }
    barrier_wait(f.bar.k_empty + 8 * f.k.stage, f.k.phase ^ 1);
    f.say->block[f.k.stage] = END;
    barrier_arrive(f.bar.k_full + 8 * f.k.stage);
}

/* ---- consumers ---- */
/* Of each row: the maximum in use, in log2, and this thread's share of the sum; and
 * what the output must be scaled by once the last block's values are in, since m rose after its weights. */
struct stats { float m0, m1, l0, l1; struct pair late; };
DEV struct stats no_stats() { return {-infinity(), -infinity(), 0.0f, 0.0f, {1.0f, 1.0f}}; }

/* Scores become weights against the maxima in use; t: the sums of each row's. */
DEV void weigh(float (&s)[SCORES], struct stats st, const struct scaling &to, float &t0, float &t1) {
    const float b0 = to.base.x - (st.m0 == -infinity() ? 0.0f : st.m0);
    const float b1 = to.base.y - (st.m1 == -infinity() ? 0.0f : st.m1);
    t0 = t1 = 0.0f;
#pragma unroll
    for (int e = 0; e < SCORES; e += 4) {
        s[e] = exp2_(fmaf(s[e], to.factor.x, b0));
        s[e + 1] = exp2_(fmaf(s[e + 1], to.factor.x, b0));
        s[e + 2] = exp2_(fmaf(s[e + 2], to.factor.y, b1));
        s[e + 3] = exp2_(fmaf(s[e + 3], to.factor.y, b1));
        t0 += s[e] + s[e + 1], t1 += s[e + 2] + s[e + 3];
    }
}

DEV void tops(const float (&s)[SCORES], float &x0, float &x1) {
    x0 = x1 = -infinity();
#pragma unroll
    for (int e = 0; e < SCORES; e += 4) {
        x0 = fmaxf(x0, fmaxf(s[e], s[e + 1]));
        x1 = fmaxf(x1, fmaxf(s[e + 2], s[e + 3]));
    }
    x0 = fmaxf(x0, across(x0, 1)), x0 = fmaxf(x0, across(x0, 2));
    x1 = fmaxf(x1, across(x1, 1)), x1 = fmaxf(x1, across(x1, 2));
}

/* Raises the maxima in use where a block's scores demand it; gives what came before must be scaled by. */
DEV struct pair raise(const float (&s)[SCORES], struct stats &st, const struct scaling &to) {
    float x0, x1;
    tops(s, x0, x1);
    x0 = fmaf(x0, to.factor.x, to.base.x), x1 = fmaf(x1, to.factor.y, to.base.y);
    x0 = x0 > st.m0 + SLACK ? x0 : st.m0, x1 = x1 > st.m1 + SLACK ? x1 : st.m1;
    const struct pair a = {x0 == st.m0 ? 1.0f : exp2_(st.m0 - x0), x1 == st.m1 ? 1.0f : exp2_(st.m1 - x1)};
    st.m0 = x0, st.m1 = x1;
    return a;
}

/* A power of two that brings a row whose threads' sums are at most t below 2; m grows by as much. */
DEV float rise(float t, float &m) {
    t = fmaxf(t, across(t, 1)), t = fmaxf(t, across(t, 2));
    const int e = t < LIMIT ? 0 : (__float_as_int(fminf(t, BEYOND)) >> 23) - 127;
    m += (float)e;
    return __int_as_float((127 - e) << 23);
}

/* The online softmax of a block: scores become weights; a: what the output must be scaled by. look: for
 * the block's maximum; without, rows must have one. False when the weights are of no use. */
DEV bool soften(float (&s)[SCORES], struct stats &st, const struct scaling &to, bool look, struct pair &a) {
    float t0, t1;
    bool good = true;
    a = st.late;
    st.late = {1.0f, 1.0f};
    if (!HASTY || look) {
        const struct pair b = raise(s, st, to);
        a.x *= b.x, a.y *= b.y;
        st.l0 *= b.x, st.l1 *= b.y;
    }
    weigh(s, st, to, t0, t1);
    st.l0 += t0, st.l1 += t1;
    if (HASTY && __any_sync(0xffffffff, !(t0 + t1 < LIMIT)) && !look) {
        good = __all_sync(0xffffffff, t0 + t1 < BEYOND);
        st.late.x = rise(t0, st.m0), st.late.y = rise(t1, st.m1);
        st.l0 *= st.late.x, st.l1 *= st.late.y;
    }
    return good;
}

/* Where a thread's scores stand, and what the Programs keep of its rows. */
struct place {
    int t, head, b, h, q; /* tile t and what is in it; q: of this thread's first row */
    struct kg_score_row score[2];
    struct kg_mask_row mask[2];
};

DEV struct place place_of(KG_ARGS p, int t, struct tile at, int row) {
    const int q = at.m * BLOCK_M + row;
    return {t, at.head, at.b, at.h, q,
            {kg_score_row(p, at.b, at.h, q), kg_score_row(p, at.b, at.h, q + 8)},
            {kg_mask_row(p, at.b, at.h, q), kg_mask_row(p, at.b, at.h, q + 8)}};
}

#if KG_HAS_MASK
#define KEEP_WORDS ((SCORES + 31) / 32)

/* Which of this thread's scores stand: bit e of word e / 32. kv: the column of score 0. */
DEV void ask_mask(KG_ARGS p, const struct place &l, int kv, int sk, u32 (&keep)[KEEP_WORDS]) {
    EACH(w, KEEP_WORDS) {
        keep[w] = 0;
#pragma unroll 8
        for (int e = 0; e < min(32, SCORES - w * 32); e += 4)
            EACH(i, 2) {
                const int at = kv + (w * 32 + e) * 2 + i;
                const int a = at < sk & kg_mask(p, l.mask[0], l.b, l.h, l.q, at);
                const int b = at < sk & kg_mask(p, l.mask[1], l.b, l.h, l.q + 8, at);
                keep[w] |= (u32)(a | b << 2) << (e + i);
            }
    }
}
DEV void apply_mask(float (&s)[SCORES], const u32 (&keep)[KEEP_WORDS]) {
    EACH(e, SCORES) s[e] = keep[e / 32] >> e % 32 & 1 ? s[e] : -infinity();
}
#else
/* kv: the column of score 0. */
DEV void drop_tail(float (&s)[SCORES], int kv, int sk) {
    EACH(e, SCORES) s[e] = kv + e / 4 * 8 + e % 2 < sk ? s[e] : -infinity();
}
#endif
DEV void apply_score(KG_ARGS p, const struct place &l, int kv, float scale, float (&s)[SCORES]) {
#if KG_HAS_SCORE && !KG_SCORE_LINE
    EACH(e, SCORES)
        s[e] = kg_score(p, l.score[e / 2 % 2], s[e] * scale, l.b, l.h, l.q + e / 2 % 2 * 8,
                        kv + e / 4 * 8 + e % 2);
#endif
}

/* Not reordered with others, so that no more than these wait in registers. */
DEV void write4(half_bits *to, const u32 (&x)[4]) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x[0]), "r"(x[1]), "r"(x[2]),
                 "r"(x[3]) : "memory");
}

/* Where the slope of a line counts and a scale of zero must count for nothing. */
#define LEAST_FACTOR (KG_SCORE_LINE ? 1e-20f : 1e-37f)

/* What scores are multiplied by, in log2, and its sign, which is taken out of the scores before. */
DEV void factors(KG_ARGS p, const struct place &l, float scale, struct pair &factor, struct pair &sign) {
    factor.x = factor.y = (KG_HAS_SCORE && !KG_SCORE_LINE ? 1.0f : scale) * LOG2E;
#if KG_SCORE_LINE && !KG_SCORE_UNIT
    factor.x *= kg_score_line(p, l.b, l.h, l.q).mul;
    factor.y *= kg_score_line(p, l.b, l.h, l.q + 8).mul;
#endif
    sign.x = factor.x < 0.0f ? -1.0f : 1.0f, sign.y = factor.y < 0.0f ? -1.0f : 1.0f;
    factor.x = fmaxf(fabsf(factor.x), LEAST_FACTOR), factor.y = fmaxf(fabsf(factor.y), LEAST_FACTOR);
}

#if KG_SCORE_LINE
/* This thread's part of a row's 16 columns: x in three parts, of which the first two are columns 0 and 1. */
DEV u32 in_parts(float x) {
    const float high = __int_as_float((int)(pack_bf16(x, 0.0f) << 16)), rest = x - high;
    const float middle = __int_as_float((int)(pack_bf16(rest, 0.0f) << 16));
    const int quad = (int)threadIdx.x % 4;
    return quad == 0 ? pack_bf16(high, middle) : quad == 1 ? pack_bf16(rest - middle, 0.0f) : 0;
}

DEV struct slopes slopes_of(KG_ARGS p, const struct place &l, struct pair factor, struct pair sign) {
    return {in_parts(kg_score_line(p, l.b, l.h, l.q).slope * LOG2E * sign.x / factor.x),
            in_parts(kg_score_line(p, l.b, l.h, l.q + 8).slope * LOG2E * sign.y / factor.y)};
}

/* Three columns that say a row's number, and 13 of zeros. */
DEV void fill_steps(u8 *to) {
    for (int i = (int)threadIdx.x; i < BLOCK_N * 2; i += THREADS) {
        const u32 n = i < BLOCK_N ? pack_bf16((float)i, (float)i) : 0;
        *(uint4 *)(to + i * 16) = make_uint4(n, n & 0xffff, 0, 0);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
#endif

/* Turns 4 x 4 words in each quad, so that a thread has 16 bytes of a row. */
DEV void turn(u32 (&x)[4], int quad) {
    u32 y = across(quad & 1 ? x[0] : x[1], 1), z = across(quad & 1 ? x[2] : x[3], 1);
    quad & 1 ? (x[0] = y, x[2] = z) : (x[1] = y, x[3] = z);
    y = across(quad & 2 ? x[0] : x[2], 2), z = across(quad & 2 ? x[1] : x[3], 2);
    quad & 2 ? (x[0] = y, x[1] = z) : (x[2] = y, x[3] = z);
}

DEV void finish(const float (&o)[O_PARTS][O_REGS], struct stats st, half_bits *output, float *lse,
                int head, int row, int sq, int dv) {
    const int quad = (int)threadIdx.x % 4;
    EACH(half, 2) {
        float sum = half ? st.l1 : st.l0;
        sum += across(sum, 1), sum += across(sum, 2);
        const float scale = sum == 0.0f ? 0.0f : (half ? st.late.y : st.late.x) * reciprocal(sum);
        const int q = row + half * 8;
        const long long at = (long long)head * sq + q;
        EACH(g, HEAD / 32) {
            u32 x[4];
            EACH(j, 4) {
                const float *f = o[g / 4] + (g % 4 * 4 + j) * 4 + half * 2;
                x[j] = pack2(f[0] * scale, f[1] * scale);
            }
            turn(x, quad);
            if (q < sq && g * 32 + quad * 8 < dv)
                write4(output + at * dv + g * 32 + quad * 8, x);
        }
        if (lse && quad == 0 && q < sq)
            lse[at] = sum == 0.0f ? -infinity() : ((half ? st.m1 : st.m0) + log2_(sum)) * LN2;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_hopper(const __grid_constant__ tensor_map queries, const __grid_constant__ tensor_map keys,
                     const __grid_constant__ tensor_map values, KG_T_output *output, KG_T_lse *lse,
                     KG_T_seen *seen, KG_T_drawn *drawn, KG_PROGRAMS programs, int batches, int hq,
                     int share, int sq, int sk, int dv, int group, float scale) {
    extern __shared__ u8 raw[];
    __shared__ struct messages said;
    const u32 shared = ((u32)__cvta_generic_to_shared(raw) + 1023) & ~1023u;
    const struct barriers bar = barriers_at(shared + BARRIERS_AT);
    const int warpgroup = __shfl_sync(0xffffffff, (int)threadIdx.x / 128, 0);
    const int m_blocks = (sq + BLOCK_M - 1) / BLOCK_M;
    if (threadIdx.x == 0) {
        said.marks = said.looked = 0;
        said.late = -1;
        for (int i = 0; i < QUERIES * CONSUMERS; i++)
            barrier_init(bar.q_full + 8 * i, 1), barrier_init(bar.q_empty + 8 * i, 4);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(bar.k_full + 8 * i, 1), barrier_init(bar.k_empty + 8 * i, 4 * CONSUMERS);
            barrier_init(bar.v_full + 8 * i, 1), barrier_init(bar.v_empty + 8 * i, 4 * CONSUMERS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
#if KG_SCORE_LINE
    fill_steps(raw + (shared - (u32)__cvta_generic_to_shared(raw)) + STEPS_AT);
#endif
    __syncthreads();
    /* What comes before on the stream may have been told to let this launch begin. */
    asm volatile("griddepcontrol.wait;" ::: "memory");
/* Together what the block is launched with, 168 or 128 a thread: the pool has no more to give. */
#define FEEDER_REGISTERS (CONSUMERS == 3 ? 32 : KG_HAS_MASK ? 40 : 24)
#define CONSUMER_REGISTERS (CONSUMERS == 3 ? 160 : KG_HAS_MASK ? 232 : 240)
    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FEEDER_REGISTERS));
        if (threadIdx.x == 0) {
            struct feeder f = {&queries, &keys, &values, bar, shared, &said, {0, 0}, {0, 0}, 0};
            const struct sizes n = {batches, hq, share, sq, sk, group};
            feed(programs, f, n, seen, drawn);
        }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
    const int w = warpgroup - 1, tid = (int)threadIdx.x % 128, lane = tid % 32, quad = lane % 4;
    const int row = w * 64 + tid / 32 * 16 + lane / 4; /* of this thread; the other is row + 8 */
    float s[SCORES], o[O_PARTS][O_REGS];
    u32 p[SCORES / 2];
    EACH(e, SCORES / 2) p[e] = 0;
    EACH(e, O_PARTS * O_REGS) o[e / O_REGS][e % O_REGS] = 0.0f;
    struct ring k = {0, 0}, v = {0, 0};
    u32 count = 0; /* of tiles */
    struct stats st = no_stats();
    struct place here = {};
    struct slopes slope = {};
    struct scaling to = {};
    struct pair sign;
    factors(programs, here, scale, to.factor, sign);
    bool fresh = true, idle = true; /* the next block begins a tile; no weights wait for values yet */
    if (PINGPONG && w == 1)
        turn_give(1); /* consumer 0 begins */
    /* The scores of a block and the values of the one before are in flight together. The very first
     * block has none before it: nothing is multiplied with what lies there, and thrown away. */
#pragma unroll 1
    for (;;) {
        barrier_wait(bar.k_full + 8 * k.stage, k.phase);
        const int now = said.block[k.stage];
        if (now == END)
            break;
        const bool first = fresh;
        const int done_q = here.q, done_head = here.head;
        if (first) {
            barrier_wait(bar.q_full + 8 * (count % QUERIES * CONSUMERS + w), count / QUERIES & 1);
            const int t = said.tile[count % QUERIES * CONSUMERS + w];
            here = place_of(programs, t, tile_of(t, m_blocks, batches, hq, group), row);
#if KG_SCORE_LINE
            if (!KG_SCORE_UNIT)
                factors(programs, here, scale, to.factor, sign);
            slope = slopes_of(programs, here, to.factor, sign);
#endif
        }
        const u32 k_at = shared + K_AT + k.stage * KV_BYTES, k_empty = bar.k_empty + 8 * k.stage;
        const int kv = (now & (CAREFUL - 1)) * BLOCK_N + quad * 2;
        if (PINGPONG)
            turn_wait(1 + w);
        wgmma_fence();
        issue_scores(s, shared + (count % QUERIES * CONSUMERS + w) * Q_BYTES, k_at, slope, shared + STEPS_AT);
        wgmma_commit();
        if (!idle)
            barrier_wait(bar.v_full + 8 * v.stage, v.phase);
        issue_values(o, p, shared + V_AT + v.stage * KV_BYTES);
        wgmma_commit();
        if (PINGPONG)
            turn_give(2 - w);
#if KG_HAS_MASK
        u32 keep[KEEP_WORDS];
        if (now & ASK)
            ask_mask(programs, here, kv, sk, keep);
#endif
        wgmma_wait<1>();
        pin(s);
        fresh = (now & LAST) != 0;
        if (lane == 0) {
            barrier_arrive(k_empty);
            if (fresh)
                barrier_arrive(bar.q_empty + 8 * (count % QUERIES * CONSUMERS + w));
        }
        step(k), count += fresh;
        if (KG_SCORE_LINE && !KG_SCORE_UNIT ? __any_sync(0xffffffff, sign.x + sign.y < 2.0f) : sign.x < 0.0f)
            EACH(e, SCORES) s[e] *= e & 2 ? sign.y : sign.x;
#if KG_SCORE_LINE
        const int k0 = kv - quad * 2;
        to.base.x = LOG2E * kg_score(programs, here.score[0], 0.0f, here.b, here.h, here.q, k0);
        to.base.y = LOG2E * kg_score(programs, here.score[1], 0.0f, here.b, here.h, here.q + 8, k0);
#endif
        apply_score(programs, here, kv, scale, s);
        if (now & ASK)
#if KG_HAS_MASK
            apply_mask(s, keep);
#else
            drop_tail(s, kv, sk);
#endif
        const struct stats done = st;
        if (first)
            st = no_stats();
        const bool known = st.m0 > -infinity() && st.m1 > -infinity();
        const bool look = (now & (ASK | CAREFUL)) != 0 || !__all_sync(0xffffffff, known);
        struct pair a;
        const bool good = soften(s, st, to, look, a);
        const u32 v_empty = bar.v_empty + 8 * v.stage;
        if (!idle)
            step(v);
        /* Needed next; and the edge of a basic block, or ptxas hoists the wait above the softmax. */
        barrier_wait(bar.v_full + 8 * v.stage, v.phase);
        wgmma_wait<0>();
        EACH(part, O_PARTS) pin(o[part]);
        if (HASTY && !good && lane == 0)
            mark(said, here.t);
        if (!idle && lane == 0)
            barrier_arrive(v_empty);
        if (first) {
            if (!idle)
                finish(o, done, output, lse, done_head, done_q, sq, dv);
            /* In place, whatever it is: zeros of their own would take as many registers again. */
            const int none = opaque_zero();
            EACH(part, O_PARTS)
                EACH(e, O_REGS)
                    o[part][e] = __int_as_float(__float_as_int(o[part][e]) & none);
        } else if (__any_sync(0xffffffff, a.x != 1.0f || a.y != 1.0f)) {
            EACH(part, O_PARTS)
                EACH(e, O_REGS) o[part][e] *= e & 2 ? a.y : a.x;
        }
        EACH(e, SCORES / 2) p[e] = pack2(s[2 * e], s[2 * e + 1]);
        idle = false;
    }
    wgmma_fence();
    issue_values(o, p, shared + V_AT + v.stage * KV_BYTES);
    wgmma_commit(), wgmma_wait<0>();
    EACH(part, O_PARTS) pin(o[part]);
    finish(o, st, output, lse, here.head, here.q, sq, dv);
}
