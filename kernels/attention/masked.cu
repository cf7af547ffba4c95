/* kgen
{ "format": 1, "op": "attention", "target": "cuda", "min_arch": "sm_90",
  "tunables": {"BLOCK_N": [128, 64], "HEAD": [128, 64, 256], "CONSUMERS": [2, 3], "STAGES": [2, 3, 4], "QUERIES": [1, 2], "BOX_X": [0, 28, 32, 16]},
  "specialize": ["D", "DV"],
  "require": "HAS_MASK && (query.dtype == float16 || query.dtype == bfloat16) && max(D, DV) <= HEAD && D % 8 == 0 && DV % 8 == 0 && SQ >= 1 && SK >= 1 && SQ <= 4194304 && SK <= 4194304 && B * HQ * ceil_div(SQ, 64) <= 1073741824 && (MASK_OF_B ? B : 1) * (MASK_OF_H ? HQ : 1) * align_up(SQ, 192) * align_up(SK, 128) <= 4294967296 && min(align(query), align(key), align(value)) >= 16 && query.stride(3) == 1 && key.stride(3) == 1 && value.stride(3) == 1 && (SQ == 1 || query.stride(2) % 8 == 0 && query.stride(2) > 0) && (HQ == 1 || query.stride(1) % 8 == 0 && query.stride(1) > 0) && (B == 1 || query.stride(0) % 8 == 0 && query.stride(0) > 0) && (SK == 1 || key.stride(2) % 8 == 0 && key.stride(2) > 0) && (HKV == 1 || key.stride(1) % 8 == 0 && key.stride(1) > 0) && (B == 1 || key.stride(0) % 8 == 0 && key.stride(0) > 0) && (SK == 1 || value.stride(2) % 8 == 0 && value.stride(2) > 0) && (HKV == 1 || value.stride(1) % 8 == 0 && value.stride(1) > 0) && (B == 1 || value.stride(0) % 8 == 0 && value.stride(0) > 0) && (CONSUMERS == 2 || HEAD == 64) && (HEAD < 256 || BLOCK_N <= 64 && BOX_X == 0 || BOX_X == 16) && (BOX_X == 0 || BLOCK_N == 128 && MASK_WIDTH > 0 && MASK_WIDTH % 32 == 0 && MASK_WIDTH <= 32768 && SQ % max(MASK_WIDTH, 1) == 0 && SK % max(MASK_WIDTH, 1) == 0) && QUERIES * CONSUMERS * 64 * HEAD * 2 + STAGES * (BOX_X > 0 ? 4 * BOX_X : BLOCK_N) * HEAD * 4 + 1280 <= 232448",
  "holes": ["SCORE", "MASK"],
  "workspace": {"bits": {"dtype": "int32", "shape": ["(MASK_OF_B ? B : 1) * (MASK_OF_H ? HQ : 1) * (BOX_X > 0 ? SQ : align_up(SQ, 64 * CONSUMERS))", "(BOX_X > 0 ? SK : align_up(SK, BLOCK_N)) / 32"]},
                "codes": {"dtype": "int32", "shape": ["(MASK_OF_B ? B : 1) * (MASK_OF_H ? HQ : 1) * (BOX_X > 0 ? MASK_WIDTH / 16 * ceil_div(SQ / max(MASK_WIDTH, 1), 4 * CONSUMERS) : ceil_div(SQ, 64 * CONSUMERS))", "BOX_X > 0 ? 0 : ceil_div(SK, 4 * BLOCK_N)"]},
                "bounds": {"dtype": "int32", "shape": ["BOX_X > 0 ? (MASK_OF_B ? B : 1) * (MASK_OF_H ? HQ : 1) * (BOX_X > 0 ? MASK_WIDTH / 16 * ceil_div(SQ / max(MASK_WIDTH, 1), 4 * CONSUMERS) : ceil_div(SQ, 64 * CONSUMERS)) : 0", "4 * CONSUMERS"], "zero": true},
                "drawn": {"dtype": "int32", "shape": [1]}},
  "tensor_maps": {
    "queries": {"tensor": "query", "dims": ["D", "BOX_X > 0 ? MASK_WIDTH : SQ", "BOX_X > 0 ? SQ / max(MASK_WIDTH, 1) : 1", "HQ", "B"], "box": [64, "BOX_X > 0 ? 16 : 64", "BOX_X > 0 ? 4 : 1", 1, 1], "swizzle": 128, "l2": 256,
      "strides": ["SQ == 1 ? 16 : query.stride(2) * 2", "BOX_X > 0 ? MASK_WIDTH * query.stride(2) * 2 : 16", "HQ == 1 ? 16 : query.stride(1) * 2", "B == 1 ? 16 : query.stride(0) * 2"]},
    "keys": {"tensor": "key", "dims": ["D", "BOX_X > 0 ? MASK_WIDTH : SK", "BOX_X > 0 ? SK / max(MASK_WIDTH, 1) : 1", "HKV", "B"], "box": [64, "BOX_X > 0 ? BOX_X : BLOCK_N", "BOX_X > 0 ? 4 : 1", 1, 1], "swizzle": 128, "l2": 256,
      "strides": ["SK == 1 ? 16 : key.stride(2) * 2", "BOX_X > 0 ? MASK_WIDTH * key.stride(2) * 2 : 16", "HKV == 1 ? 16 : key.stride(1) * 2", "B == 1 ? 16 : key.stride(0) * 2"]},
    "values": {"tensor": "value", "dims": ["DV", "BOX_X > 0 ? MASK_WIDTH : SK", "BOX_X > 0 ? SK / max(MASK_WIDTH, 1) : 1", "HKV", "B"], "box": [64, "BOX_X > 0 ? BOX_X : BLOCK_N", "BOX_X > 0 ? 4 : 1", 1, 1], "swizzle": 128, "l2": 256,
      "strides": ["SK == 1 ? 16 : value.stride(2) * 2", "BOX_X > 0 ? MASK_WIDTH * value.stride(2) * 2 : 16", "HKV == 1 ? 16 : value.stride(1) * 2", "B == 1 ? 16 : value.stride(0) * 2"]}},
  "launches": [
    {"kernel": "attention_survey", "grid": ["(MASK_OF_B ? B : 1) * (MASK_OF_H ? HQ : 1) * (BOX_X > 0 ? MASK_WIDTH / 16 * ceil_div(SQ / max(MASK_WIDTH, 1), 4 * CONSUMERS) : ceil_div(SQ, 64 * CONSUMERS)) * ceil_div(ceil_div(SK, BOX_X > 0 ? 64 : BLOCK_N), min(32, max(1, (MASK_OF_B ? B : 1) * (MASK_OF_H ? HQ : 1) * (BOX_X > 0 ? MASK_WIDTH / 16 * ceil_div(SQ / max(MASK_WIDTH, 1), 4 * CONSUMERS) : ceil_div(SQ, 64 * CONSUMERS)) * ceil_div(SK, BOX_X > 0 ? 64 : BLOCK_N) / 8192)))"], "block": [256],
     "args": ["bits", "codes", "bounds", "drawn", "programs", {"i32": "HQ"}, {"i32": "SQ"}, {"i32": "SK"}, {"i32": "MASK_WIDTH"}, {"i32": "min(32, max(1, (MASK_OF_B ? B : 1) * (MASK_OF_H ? HQ : 1) * (BOX_X > 0 ? MASK_WIDTH / 16 * ceil_div(SQ / max(MASK_WIDTH, 1), 4 * CONSUMERS) : ceil_div(SQ, 64 * CONSUMERS)) * ceil_div(SK, BOX_X > 0 ? 64 : BLOCK_N) / 8192))"}]},
    {"kernel": "attention_masked", "grid": ["min(NUM_SMS, B * HQ * (BOX_X > 0 ? MASK_WIDTH / 16 * ceil_div(SQ / max(MASK_WIDTH, 1), 4 * CONSUMERS) : ceil_div(SQ, 64 * CONSUMERS)))"], "block": ["128 * (CONSUMERS + 1)"],
     "shared": "QUERIES * CONSUMERS * 64 * HEAD * 2 + STAGES * (BOX_X > 0 ? 4 * BOX_X : BLOCK_N) * HEAD * 4 + 1280", "pdl": true,
     "args": [{"map": "queries"}, {"map": "keys"}, {"map": "values"}, "output", "lse", "bits", "codes", "bounds", "drawn", "programs",
              {"i32": "B"}, {"i32": "HQ"}, {"i32": "HQ / HKV"}, {"i32": "SQ"}, {"i32": "SK"}, {"i32": "DV"}, {"i32": "MASK_WIDTH"},
              {"i32": "min(B * HQ, HQ / HKV * max(1, 16777216 / (SK * (D + DV))))"}, {"f32": "scale"}]}] }
*/
/* Masked attention for half types on Hopper, of masks whose bits are worked out once.
 *
 * The pipeline is hopper.cu's (a feeder, consumers of 64 queries each, two products in flight, P in
 * registers); what differs is the mask. A launch before (attention_survey) evaluates it for whole tiles,
 * once for all heads and batch entries that it does not read, and leaves a bit a score and a code a
 * block of keys: for each consumer's 64 queries whether nobody sees any of it, everybody all of it, or
 * neither. Blocks that nobody sees are not loaded; a consumer whose queries see nothing of a block hands
 * it on at once; only the others read bits, while their scores are computed.
 *
 * With BOX_X, queries and keys are pixels of an image MASK_WIDTH wide: a consumer has 4 rows of 16
 * queries, a block of keys is 4 rows of BOX_X, cut by the tensor map at any pixel, so that
 * the boxes of a tile begin where the keys do that it sees (bounds, from the survey). A neighbourhood
 * 13x13 of 8 x 16 queries then loads 20 x 28 keys, of which each consumer takes 16 x 28, where 128
 * queries in a row take 14 x 64. The width is read off the mask; bits make every mask right.
 *
 * With QUERIES 2 the next tile's queries come while this one's last block is at work.
 * The maximum in use lags a row's true one: it rises when it would be exceeded by more than 8 in log2.
 * Traffic: K and V once a tile, out of L2, and SQ * SK / 8 bytes of bits at most; floor: flops of what
 * the codes leave over 4096 a clock and multiprocessor.
 *
 * Launch bounds: 128 * (CONSUMERS + 1), one block a multiprocessor. Refuses calls without a mask, bits
 * beyond 512 MiB, and what hopper.cu refuses. */
#define DEV static __device__ __forceinline__
#define LOG2E 1.44269504088896341f
#define LN2 0.693147180559945309f
#define THREADS (128 * (CONSUMERS + 1))
#define BLOCK_M (64 * CONSUMERS)
#define BOX_Y 4
#define KEYS (BOX_X > 0 ? BOX_Y * BOX_X : BLOCK_N) /* of a block */
#define SCORES (KEYS / 2) /* of a block, in each thread */
#define WORDS ((KEYS + 31) / 32)
#define O_PARTS (HEAD == 256 ? 2 : 1)
#define O_REGS (HEAD == 64 ? 32 : 64)
#if KG_EXACT_D
#define K_STEPS ((D + 15) / 16)
#else
#define K_STEPS (HEAD / 16)
#endif
#define Q_BYTES (64 * HEAD * 2) /* of one warpgroup */
#define KV_BYTES (KEYS * HEAD * 2)
#define K_AT (QUERIES * CONSUMERS * Q_BYTES)
#define V_AT (K_AT + STAGES * KV_BYTES)
#define BARRIERS_AT (V_AT + STAGES * KV_BYTES)
#define TILE_X 16 /* queries in a row of a tile, with BOX_X */
#define TILE_Y (4 * CONSUMERS)
#define SLACK 8.0f /* how far scores may outgrow the maximum in use, in log2 */
#define EARLY (CONSUMERS == 2) /* bits are read while the products run: three have no registers for it */
typedef unsigned char u8; typedef unsigned short half_bits;
typedef unsigned int u32; typedef unsigned long long u64;
struct alignas(64) tensor_map { u64 opaque[16]; };
struct pair { float x, y; }; /* of a thread's rows r and r + 8 */
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)

/* ---- primitives ---- */
DEV float infinity() { return __int_as_float(0x7f800000); }
DEV void barrier_init(u32 bar, u32 count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count)); }
DEV void barrier_arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }
DEV void barrier_wait(u32 bar, u32 parity) {
    u32 over = 0;
    while (!over)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(over) : "r"(bar), "r"(parity) : "memory");
}
/* ROWS rows of a head as blocks of 64 columns, one after another; x, y: of the first, with BOX_X, else x. */
template <int ROWS> DEV void load_rows(u32 to, const tensor_map *m, u32 bar, int x, int y, int h, int b) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(ROWS * HEAD * 2) : "memory");
    EACH(i, HEAD / 64)
        asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                     " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to + i * ROWS * 128), "l"(m), "r"(bar),
                     "r"(i * 64), "r"(x), "r"(y), "r"(h), "r"(b) : "memory");
}
DEV float exp2_(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEV float log2_(float x) { float y; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
/* The exact one calls a subroutine, and all that lives must be saved around it. */
DEV float reciprocal(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEV int opaque_zero() { int r; asm volatile("mov.b32 %0, 0;" : "=r"(r)); return r; }
DEV float across(float x, int lanes) { return __shfl_xor_sync(0xffffffff, x, lanes); }
DEV u32 across(u32 x, int lanes) { return __shfl_xor_sync(0xffffffff, x, lanes); }
#if KG_DTYPE_query == KG_BF16
#define TYPES "bf16.bf16"
#define PACK "cvt.rn.bf16x2.f32"
#else
#define TYPES "f16.f16"
#define PACK "cvt.rn.f16x2.f32"
#endif
DEV u32 pack2(float low, float high) { u32 r; asm(PACK " %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
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

/* Accumulators by eights: S<n> are the operands %0 to %<n - 1>, O<n>(d) their registers. */
#define OF(d, i)                                                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define S32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
            "%24,%25,%26,%27,%28,%29,%30,%31"
#define O32(d) OF(d, 0), OF(d, 8), OF(d, 16), OF(d, 24)
#define S56 S32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55"
#define O56(d) O32(d), OF(d, 32), OF(d, 40), OF(d, 48)
#define S64 S56 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define O64(d) O56(d), OF(d, 56)

/* 64 x N x 16: s = q k^T, or += where more is not 0, of shared memory. */
#define SCORE_PRODUCT(N, LIST, OUT, i_, j_, k_)                                                    \
    DEV void score_product(float (&s)[N / 2], u64 q, u64 k, int more) {                            \
        asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" #k_ ", 0;\n\t"                       \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPES " {" LIST "}, %" #i_  \
                     ", %" #j_ ", p, 1, 1, 0, 0;\n\t}" : OUT(s) : "l"(q), "l"(k), "r"(more));      \
    }
#if KEYS == 64
SCORE_PRODUCT(64, S32, O32, 32, 33, 34)
#elif KEYS == 112
SCORE_PRODUCT(112, S56, O56, 56, 57, 58)
#elif KEYS == 128
SCORE_PRODUCT(128, S64, O64, 64, 65, 66)
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
DEV void issue_scores(float (&s)[SCORES], u32 q, u32 k) {
    EACH(i, K_STEPS)
        score_product(s, operand_at(q, 16) + (i / 4 * (64 * 128) + i % 4 * 32) / 16,
                      operand_at(k, 16) + (i / 4 * (KEYS * 128) + i % 4 * 32) / 16, i);
}
/* Steps of 16 rows of 128 bytes. */
DEV void issue_values(float (&o)[O_PARTS][O_REGS], const u32 (&p)[SCORES / 2], u32 v) {
    EACH(part, O_PARTS)
        EACH(i, KEYS / 16)
            value_product(o[part], p + 4 * i,
                          operand_at(v + part * (2 * KEYS * 128), KEYS * 128) + i * 2048 / 16);
}

/* ---- tiles ---- */
struct sizes { int batches, hq, share, sq, sk, width, group; }; /* share: heads of queries to one of keys */
DEV int tiles_of(int sq, int width) {
    return BOX_X > 0 ? width / TILE_X * ((sq / width + TILE_Y - 1) / TILE_Y) : (sq + BLOCK_M - 1) / BLOCK_M;
}
/* Query `row` of tile m of a head; sq or more where there is none. */
DEV int query_of(int m, int row, int width) {
    if (BOX_X == 0)
        return m * BLOCK_M + row;
    const int wide = width / TILE_X, y = m / wide * TILE_Y + row / TILE_X;
    return y * width + m % wide * TILE_X + row % TILE_X;
}

/* m: block of queries; head: over all batch entries, which is head h of entry b */
struct tile { int m, head, b, h; };
/* Groups of heads, in each the last queries first: under a causal mask the longest. */
DEV struct tile tile_of(u32 t, u32 blocks, u32 batches, u32 heads, u32 group) {
    const u32 g = t / (group * blocks), r = t - g * (group * blocks);
    const u32 n = min(group, batches * heads - g * group), m = r / n, head = g * group + r - m * n;
    return {(int)(blocks - 1 - m), (int)head, (int)(head / heads), (int)(head % heads)};
}

/* Which of the heads that the survey serves is head h of entry b. */
DEV int surveyed_head(int b, int h, int heads) {
    return KG_MASK_OF_B ? b * (KG_MASK_OF_H ? heads : 1) + (KG_MASK_OF_H ? h : 0) : KG_MASK_OF_H ? h : 0;
}

/* ---- the survey ---- */
#define UNIT (BOX_X > 0 ? 64 : KEYS) /* keys that a block of threads takes at a time */
#define TOGETHER 4 /* queries whose look-ups are under way together */
enum : u32 { NOTHING, WHOLE, PARTLY }; /* what 64 queries see of a block */

struct view { int b, h, m, sq, sk, width; };
/* A warp's 16 queries and UNIT keys from k0 on. mine: lane i's are the bits of query i. seen: what any
 * query sees; whole: whether each sees all, of queries that are there. Zeros, and true, before. */
DEV void look(KG_ARGS p, const struct view &v, int first, int k0, u32 (&mine)[UNIT / 32], u32 (&seen)[UNIT / 32],
              bool &whole) {
    const int lane = (int)threadIdx.x % 32;
#pragma unroll 1 /* what depends on kv alone stays in registers */
    for (int i = 0; i < 16; i += TOGETHER) {
        if (query_of(v.m, first + i, v.width) >= v.sq)
            break;
        struct kg_mask_row rows[TOGETHER];
        EACH(j, TOGETHER) rows[j] = kg_mask_row(p, v.b, v.h, min(query_of(v.m, first + i + j, v.width), v.sq - 1));
        EACH(j, TOGETHER) {
            const int q = query_of(v.m, first + i + j, v.width), at = min(q, v.sq - 1);
            EACH(w, UNIT / 32) {
                const int kv = k0 + w * 32 + lane;
                const u32 x = __ballot_sync(0xffffffff, (q < v.sq) & (kv < v.sk) & kg_mask(p, rows[j], v.b, v.h, at, kv));
                mine[w] = lane == i + j ? x : mine[w];
                seen[w] |= x, whole &= x == 0xffffffff || q >= v.sq;
            }
        }
    }
}

/* The box around a warp's keys into its consumer's: least row and column counted from the end, the last
 * from the begin, so that zeros are a box of nothing. */
DEV void widen(int *box, const struct view &v, int k0, const u32 (&seen)[UNIT / 32]) {
    int y0 = -1, y1 = 0, x0 = v.width, x1 = 0;
    EACH(w, UNIT / 32) {
        const int y = (k0 + w * 32) / v.width, x = (k0 + w * 32) % v.width;
        if (seen[w] != 0) {
            y0 = y0 < 0 ? y : y0, y1 = y + 1;
            x0 = min(x0, x + __ffs((int)seen[w]) - 1), x1 = max(x1, x + 32 - __clz((int)seen[w]));
        }
    }
    if (y0 >= 0 && threadIdx.x % 32 == 0)
        atomicMax(box, v.sk / v.width - y0), atomicMax(box + 1, y1), atomicMax(box + 2, v.width - x0), atomicMax(box + 3, x1);
}

/* UNIT keys for a tile. quick: what kg_mask_range says of them. */
DEV void survey_unit(KG_ARGS p, const struct view &v, int quick, int unit, int *bits, int words, u32 *said,
                     int *boxes) {
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, k0 = unit * UNIT;
    for (int c = warp; c < BLOCK_M / 16; c += 8) {
        u32 mine[UNIT / 32] = {}, seen[UNIT / 32] = {}, all = 0;
        bool whole = true;
        if (quick != NOTHING)
            look(p, v, c * 16, k0, mine, seen, whole);
        const int q = query_of(v.m, c * 16 + lane, v.width);
        if (lane < 16 && (BOX_X == 0 || q < v.sq))
            EACH(w, UNIT / 32)
                if (k0 / 32 + w < words)
                    bits[(long long)q * words + k0 / 32 + w] = (int)mine[w];
        EACH(w, UNIT / 32) all |= seen[w];
        if (BOX_X > 0)
            widen(boxes + c / 4 * 4, v, k0, seen);
        else if (lane == 0)
            atomicOr(said, ((all != 0 ? 1u : 0u) | (whole ? 0u : 2u)) << c / 4 * 2);
    }
}

/* A tile of a head that the survey serves, and `span` units of keys. */
extern "C" __global__ void __launch_bounds__(256)
    attention_survey(KG_T_bits *bits, KG_T_codes *codes, KG_T_bounds *bounds, KG_T_drawn *drawn,
                     KG_PROGRAMS programs, int hq, int sq, int sk, int width, int span) {
    __shared__ int quick[32];
    __shared__ u32 said[1];
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    const int units = (sk + UNIT - 1) / UNIT, runs = (units + span - 1) / span, m_blocks = tiles_of(sq, width);
    const int at = (int)blockIdx.x / runs, head = at / m_blocks, begin = (int)blockIdx.x % runs * span;
    const int end = min(begin + span, units), each = BOX_X > 0 ? sq : m_blocks * BLOCK_M;
    const int words = (BOX_X > 0 ? sk : units * UNIT) / 32, row = (units + 3) / 4 * 4;
    const struct view v = {KG_MASK_OF_B ? head / (KG_MASK_OF_H ? hq : 1) : 0, KG_MASK_OF_H ? head % hq : 0,
                           at % m_blocks, sq, sk, width};
    if (blockIdx.x + threadIdx.x == 0) *drawn = 0;
    if (begin + (int)threadIdx.x < end) {
        const int k0 = (begin + (int)threadIdx.x) * UNIT, k1 = min(k0 + UNIT, sk);
        const int q0 = BOX_X > 0 ? query_of(v.m, 0, width) / width * width : v.m * BLOCK_M;
        const int q1 = min(sq, q0 + (BOX_X > 0 ? TILE_Y * width : BLOCK_M));
        const int range = kg_mask_range_within(programs, v.b, v.h, q0, q1, k0, k1, 0);
        quick[threadIdx.x] = range == WHOLE && (BOX_X > 0 || k1 - k0 < UNIT) ? PARTLY : range;
    }
    bits += (long long)head * each * words;
    for (int unit = begin; unit < end; unit++) {
        if (threadIdx.x == 0)
            said[0] = 0;
        __syncthreads();
        const int known = quick[unit - begin];
        if (BOX_X > 0 || known == PARTLY)
            survey_unit(programs, v, known, unit, bits, words, said, bounds + at * 4 * CONSUMERS);
        __syncthreads();
        const u32 x = known == PARTLY ? said[0] : known == WHOLE ? 0x15 : 0, cut = x >> 1 & x & 0x15;
        if (BOX_X == 0 && threadIdx.x == 0) /* any and not whole: PARTLY; any alone: WHOLE */
            ((u8 *)codes)[(long long)at * row + unit] = (u8)(cut << 1 | (x & 0x15 & ~cut));
    }
}

/* ---- the feeder ---- */
/* By address: a full and an empty one for each warpgroup's queries, each stage of keys and of values. */
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

/* Where a block of keys begins (y: with BOX_X), and what the feeder says of it: a code for each consumer
 * in two bits, and LAST of its tile; END instead of a block. */
struct block { int x, y; u32 flags; };
#define LAST (1u << 30)
#define END (1u << 31)

/* What a stage's keys, and a consumer's queries, are known by. */
struct messages { struct block block[STAGES]; int tile[QUERIES * CONSUMERS]; };
/* One warp that walks together and whose first lane loads. late: whose values are due (y < 0: none's). */
struct feeder {
    const tensor_map *queries, *keys, *values;
    struct barriers bar;
    u32 shared;
    struct messages *say;
    struct ring k, v;
    u32 count; /* of tiles */
    int late_x, late_y, late_h, late_b;
};

DEV void feed_values(struct feeder &f) {
    if (f.late_y < 0)
        return;
    barrier_wait(f.bar.v_empty + 8 * f.v.stage, f.v.phase ^ 1);
    if (threadIdx.x == 0)
        load_rows<KEYS>(f.shared + V_AT + f.v.stage * KV_BYTES, f.values, f.bar.v_full + 8 * f.v.stage,
                           f.late_x, f.late_y, f.late_h, f.late_b);
    step(f.v);
}

/* Keys of a block, then the values of the block before it. */
DEV void feed_block(struct feeder &f, struct block now, int h, int b) {
    barrier_wait(f.bar.k_empty + 8 * f.k.stage, f.k.phase ^ 1);
    if (threadIdx.x == 0) {
        f.say->block[f.k.stage] = now;
        load_rows<KEYS>(f.shared + K_AT + f.k.stage * KV_BYTES, f.keys, f.bar.k_full + 8 * f.k.stage, now.x,
                           now.y, h, b);
    }
    step(f.k);
    feed_values(f);
    f.late_x = now.x, f.late_y = now.y, f.late_h = h, f.late_b = b;
}

/* Each warpgroup's queries as soon as it is ready for them. */
DEV void feed_queries(struct feeder &f, int t, struct tile at, const struct sizes &n) {
    const int q = query_of(at.m, 0, n.width);
    EACH(w, CONSUMERS) {
        const int i = f.count % QUERIES * CONSUMERS + w;
        barrier_wait(f.bar.q_empty + 8 * i, (f.count / QUERIES & 1) ^ 1);
        if (threadIdx.x != 0)
            continue;
        f.say->tile[i] = t;
        load_rows<64>(f.shared + i * Q_BYTES, f.queries, f.bar.q_full + 8 * i,
                      BOX_X > 0 ? q % n.width : q + w * 64, BOX_X > 0 ? q / n.width + w * 4 : 0, at.h, at.b);
    }
    f.count++;
}

#if BOX_X > 0
/* The boxes that cover what the tile's queries see. */
DEV void feed_tile(struct feeder &f, const struct sizes &n, const int *codes, const int *bounds, int t) {
    const int m_blocks = tiles_of(n.sq, n.width), height = n.sk / n.width;
    const struct tile at = tile_of(t, m_blocks, n.batches, n.hq, n.group);
    const int hk = (int)((u32)at.h / (u32)n.share);
    const uint4 *box = (const uint4 *)bounds + (surveyed_head(at.b, at.h, n.hq) * m_blocks + at.m) * CONSUMERS;
    struct { int x, y, z, w; } c[CONSUMERS];
    int y0 = height, y1 = 0, x0 = n.width, x1 = 0;
    EACH(w, CONSUMERS) {
        const uint4 x = box[w];
        c[w] = {height - (int)x.x, (int)x.y, n.width - (int)x.z, (int)x.w};
        y0 = min(y0, c[w].x), y1 = max(y1, c[w].y), x0 = min(x0, c[w].z), x1 = max(x1, c[w].w);
    }
    if (y0 >= y1) /* nobody sees a key: one box is shown and handed on */
        y0 = x0 = 0, y1 = x1 = 1;
    bool first = true;
    for (int y = y0; y < y1; y += BOX_Y)
        for (int x = x0; x < x1; x += BOX_X) {
            struct block now = {x, y, y + BOX_Y >= y1 && x + BOX_X >= x1 ? LAST : 0};
            EACH(w, CONSUMERS)
                if (y < c[w].y && y + BOX_Y > c[w].x && x < c[w].w && x + BOX_X > c[w].z)
                    now.flags |= (u32)PARTLY << w * 2;
            feed_block(f, now, hk, at.b);
            if (first)
                feed_queries(f, t, at, n);
            first = false;
        }
}
#else
/* The codes of one tile's blocks, 32 at a time, one a lane. */
struct walk {
    const u8 *codes;
    int blocks, at; /* at: which 32 are in `mine`; -1: none */
    u32 mine;
};

/* The last block up to t that anybody sees, and its code; -1 when there is none. */
DEV int seen_to(struct walk &s, int t, u32 &code) {
    for (; t >= 0; t = t / 32 * 32 - 1) {
        const int i = t / 32 * 32 + (int)threadIdx.x;
        if (s.at != t / 32)
            s.at = t / 32, s.mine = i < s.blocks ? s.codes[i] : 0;
        const u32 any = __ballot_sync(0xffffffff, s.mine != 0) << (31 - t % 32);
        if (any != 0) {
            t -= __clz((int)any), code = __shfl_sync(0xffffffff, s.mine, t % 32);
            break;
        }
    }
    return t;
}

/* Blocks go from the last to the first. */
DEV void feed_tile(struct feeder &f, const struct sizes &n, const int *codes, const int *bounds, int t) {
    const int m_blocks = tiles_of(n.sq, n.width), blocks = (n.sk + KEYS - 1) / KEYS;
    const struct tile at = tile_of(t, m_blocks, n.batches, n.hq, n.group);
    const int served = surveyed_head(at.b, at.h, n.hq) * m_blocks + at.m, hk = (int)((u32)at.h / (u32)n.share);
    struct walk s = {(const u8 *)codes + (long long)served * ((blocks + 3) / 4 * 4), blocks, -1, 0};
    u32 code = 0, later = 0;
    /* Of a tile without a key to see, one block is shown and handed on. */
    int now = max(0, seen_to(s, blocks - 1, code));
    for (bool first = true; now >= 0; first = false) {
        const int after = seen_to(s, now - 1, later);
        feed_block(f, {now * KEYS, 0, code | (after < 0 ? LAST : 0)}, hk, at.b);
        if (first)
            feed_queries(f, t, at, n);
        now = after, code = later;
    }
}
#endif

DEV void feed(struct feeder &f, const struct sizes &n, const int *codes, const int *bounds, int *drawn) {
    const int tiles = tiles_of(n.sq, n.width) * n.batches * n.hq;
    for (int t = (int)blockIdx.x; t < tiles;) {
        const int next = threadIdx.x == 0 ? (int)gridDim.x + atomicAdd(drawn, 1) : 0;
        feed_tile(f, n, codes, bounds, t);
        t = __shfl_sync(0xffffffff, next, 0);
    }
    feed_values(f);
    barrier_wait(f.bar.k_empty + 8 * f.k.stage, f.k.phase ^ 1);
    if (threadIdx.x == 0) {
        f.say->block[f.k.stage].flags = END;
        barrier_arrive(f.bar.k_full + 8 * f.k.stage);
    }
}

/* ---- consumers ---- */
/* Of each row: the maximum in use, in log2, and this thread's share of the sum. */
struct stats { float m0, m1, l0, l1; };
DEV struct stats no_stats() { return {-infinity(), -infinity(), 0.0f, 0.0f}; }

/* Raises the maxima in use where a block's scores demand it; gives what came before must be scaled by. */
DEV struct pair raise(const float (&s)[SCORES], struct stats &st, float factor) {
    float x0 = -infinity(), x1 = -infinity();
#pragma unroll
    for (int e = 0; e < SCORES; e += 4) {
        x0 = fmaxf(x0, fmaxf(s[e], s[e + 1]));
        x1 = fmaxf(x1, fmaxf(s[e + 2], s[e + 3]));
    }
    x0 = fmaxf(x0, across(x0, 1)), x0 = fmaxf(x0, across(x0, 2)) * factor;
    x1 = fmaxf(x1, across(x1, 1)), x1 = fmaxf(x1, across(x1, 2)) * factor;
    x0 = x0 > st.m0 + SLACK ? x0 : st.m0, x1 = x1 > st.m1 + SLACK ? x1 : st.m1;
    const struct pair a = {x0 == st.m0 ? 1.0f : exp2_(st.m0 - x0), x1 == st.m1 ? 1.0f : exp2_(st.m1 - x1)};
    st.m0 = x0, st.m1 = x1;
    return a;
}

/* The online softmax of a block: scores become weights; gives what the output must be scaled by. */
DEV struct pair soften(float (&s)[SCORES], struct stats &st, float factor) {
    const struct pair a = raise(s, st, factor);
    const float b0 = st.m0 == -infinity() ? 0.0f : -st.m0, b1 = st.m1 == -infinity() ? 0.0f : -st.m1;
    float t0 = 0.0f, t1 = 0.0f;
#pragma unroll
    for (int e = 0; e < SCORES; e += 4) {
        s[e] = exp2_(fmaf(s[e], factor, b0));
        s[e + 1] = exp2_(fmaf(s[e + 1], factor, b0));
        s[e + 2] = exp2_(fmaf(s[e + 2], factor, b1));
        s[e + 3] = exp2_(fmaf(s[e + 3], factor, b1));
        t0 += s[e] + s[e + 1], t1 += s[e + 2] + s[e + 3];
    }
    st.l0 = st.l0 * a.x + t0, st.l1 = st.l1 * a.y + t1;
    return a;
}

/* Where a thread's scores stand; q: of its first row, 8 before the other. bits: of row q, `words` a row. */
struct place {
    int head, b, h, q; /* head < 0: none yet */
    const u32 *bits;
    struct kg_score_row score[2];
};

DEV struct place place_of(KG_ARGS p, const struct sizes &n, const int *bits, int t, int row) {
    const int m_blocks = tiles_of(n.sq, n.width);
    const struct tile at = tile_of(t, m_blocks, n.batches, n.hq, n.group);
    const int q = query_of(at.m, row, n.width), rows = BOX_X > 0 ? n.sq : m_blocks * BLOCK_M;
    const int words = (BOX_X > 0 ? n.sk : (n.sk + KEYS - 1) / KEYS * KEYS) / 32;
    /* With BOX_X, queries below the image have no bits: the last row's are read. */
    const int lies = BOX_X > 0 && q >= n.sq ? n.sq - n.width + q % n.width : q;
    return {at.head, at.b, at.h, q,
            (const u32 *)bits + ((long long)surveyed_head(at.b, at.h, n.hq) * rows + lies) * words,
            {kg_score_row(p, at.b, at.h, q), kg_score_row(p, at.b, at.h, q + 8)}};
}

/* A block's bits as they lie, and as words of 32 of its keys. */
#if BOX_X > 0
struct raw_bits { u32 low[2][BOX_Y], high[2][BOX_Y]; };
DEV void read_bits(const struct place &l, const struct sizes &n, struct block at, struct raw_bits &r) {
    const int wide = n.width / 32, height = n.sk / n.width, i = at.x / 32;
    EACH(half, 2)
        EACH(y, BOX_Y) {
            const u32 *from = l.bits + (long long)half * 8 * (n.sk / 32) + (at.y + y) * wide + i;
            r.low[half][y] = at.y + y < height ? from[0] : 0;
            r.high[half][y] = at.y + y < height && i + 1 < wide ? from[1] : 0;
        }
}
DEV void keep_words(const struct raw_bits &r, struct block at, u32 (&keep)[2][WORDS]) {
    EACH(half, 2) {
        EACH(w, WORDS) keep[half][w] = 0;
        EACH(y, BOX_Y) {
            const u32 x = (u32)(((u64)r.high[half][y] << 32 | r.low[half][y]) >> at.x % 32) & 0xffffffffu >> (32 - BOX_X);
            const int w = y * BOX_X / 32, by = y * BOX_X % 32;
            keep[half][w] |= x << by;
            if (by + BOX_X > 32)
                keep[half][(w + 1) % WORDS] |= x >> (32 - by) % 32;
        }
    }
}
#else
struct raw_bits { u32 x[2][WORDS]; };
DEV void read_bits(const struct place &l, const struct sizes &n, struct block at, struct raw_bits &r) {
    const int words = (n.sk + KEYS - 1) / KEYS * WORDS;
    EACH(half, 2) {
        const u32 *from = l.bits + (long long)half * 8 * words + at.x / 32;
        EACH(w, WORDS / 2) {
            const uint2 x = ((const uint2 *)from)[w];
            r.x[half][2 * w] = x.x, r.x[half][2 * w + 1] = x.y;
        }
    }
}
DEV void keep_words(const struct raw_bits &r, struct block, u32 (&keep)[2][WORDS]) {
    EACH(i, 2 * WORDS) keep[i / WORDS][i % WORDS] = r.x[i / WORDS][i % WORDS];
}
#endif

DEV void apply_mask(float (&s)[SCORES], const u32 (&keep)[2][WORDS]) {
    const int shift = (int)threadIdx.x % 4 * 2;
    EACH(w, WORDS * 2) {
        const u32 x = keep[w % 2][w / 2] >> shift;
        EACH(i, min(8, KEYS / 4 - w / 2 * 8)) {
            float &v = s[(w / 2 * 4 + i / 2) * 4 + w % 2 * 2 + i % 2];
            v = (x >> (i / 2 * 8 + i % 2) & 1) != 0 ? v : -infinity();
        }
    }
}

DEV void apply_score(KG_ARGS p, const struct place &l, struct block at, int width, float scale, float (&s)[SCORES]) {
#if KG_HAS_SCORE
    EACH(e, SCORES) {
        const int c = e / 4 * 8 + (int)threadIdx.x % 4 * 2 + e % 2;
        const int kv = BOX_X > 0 ? (at.y + c / (BOX_X + !BOX_X)) * width + at.x + c % (BOX_X + !BOX_X) : at.x + c;
        s[e] = kg_score(p, l.score[e / 2 % 2], s[e] * scale, l.b, l.h, l.q + e / 2 % 2 * 8, kv);
    }
#endif
}

/* Turns 4 x 4 words in each quad, so that a thread has 16 bytes of a row. */
DEV void turn(u32 (&x)[4], int quad) {
    u32 y = across(quad & 1 ? x[0] : x[1], 1), z = across(quad & 1 ? x[2] : x[3], 1);
    quad & 1 ? (x[0] = y, x[2] = z) : (x[1] = y, x[3] = z);
    y = across(quad & 2 ? x[0] : x[2], 2), z = across(quad & 2 ? x[1] : x[3], 2);
    quad & 2 ? (x[0] = y, x[1] = z) : (x[2] = y, x[3] = z);
}

DEV void finish(const float (&o)[O_PARTS][O_REGS], const struct stats &st, half_bits *output, float *lse,
                int head, int first, int sq, int dv) {
    const int quad = (int)threadIdx.x % 4;
    EACH(half, 2) {
        float sum = half ? st.l1 : st.l0;
        sum += across(sum, 1), sum += across(sum, 2);
        const float scale = sum == 0.0f ? 0.0f : reciprocal(sum);
        const int q = first + half * 8;
        const long long at = (long long)head * sq + q;
        EACH(g, HEAD / 32) {
            u32 x[4];
            EACH(j, 4) {
                const float *f = o[g / 4] + (g % 4 * 4 + j) * 4 + half * 2;
                x[j] = pack2(f[0] * scale, f[1] * scale);
            }
            turn(x, quad);
            if (q < sq && g * 32 + quad * 8 < dv)
                asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(output + at * dv + g * 32 + quad * 8),
                             "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory"); /* not reordered: registers */
        }
        if (lse && quad == 0 && q < sq)
            lse[at] = sum == 0.0f ? -infinity() : ((half ? st.m1 : st.m0) + log2_(sum)) * LN2;
    }
}

/* In place, whatever it is: zeros of their own would take as many registers again. */
DEV void clear(float (&o)[O_PARTS][O_REGS]) {
    const int none = opaque_zero();
    EACH(e, O_PARTS * O_REGS) o[e / O_REGS][e % O_REGS] = __int_as_float(__float_as_int(o[e / O_REGS][e % O_REGS]) & none);
}

/* A warp is done with what these barriers stand for; 0: nothing more. */
DEV void release(u32 empty, u32 more, int lane) {
    __syncwarp();
    if (lane == 0)
        barrier_arrive(empty), more != 0 ? barrier_arrive(more) : (void)0;
}

/* A stage of values that has come, to the feeder again. */
DEV void hand_on(struct barriers bar, struct ring &v, int lane) {
    barrier_wait(bar.v_full + 8 * v.stage, v.phase);
    if (lane == 0)
        barrier_arrive(bar.v_empty + 8 * v.stage);
    step(v);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_masked(const __grid_constant__ tensor_map queries, const __grid_constant__ tensor_map keys,
                     const __grid_constant__ tensor_map values, KG_T_output *output, KG_T_lse *lse,
                     KG_T_bits *bits, KG_T_codes *codes, KG_T_bounds *bounds, KG_T_drawn *drawn,
                     KG_PROGRAMS programs, int batches, int hq, int share, int sq, int sk, int dv, int width,
                     int group, float scale) {
    extern __shared__ u8 raw[];
    __shared__ struct messages said[1];
    const u32 shared = ((u32)__cvta_generic_to_shared(raw) + 1023) & ~1023u;
    const struct barriers bar = barriers_at(shared + BARRIERS_AT);
    const int warpgroup = __shfl_sync(0xffffffff, (int)threadIdx.x / 128, 0);
    const struct sizes n = {batches, hq, share, sq, sk, width, group};
    if (threadIdx.x == 0) {
        for (int i = 0; i < CONSUMERS * QUERIES; i++)
            barrier_init(bar.q_full + 8 * i, 1), barrier_init(bar.q_empty + 8 * i, 4);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(bar.k_full + 8 * i, 1), barrier_init(bar.k_empty + 8 * i, 4 * CONSUMERS);
            barrier_init(bar.v_full + 8 * i, 1), barrier_init(bar.v_empty + 8 * i, 4 * CONSUMERS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    asm volatile("griddepcontrol.wait;" ::: "memory"); /* for the survey */
/* Together what the block is launched with, 168 or 128 a thread: the pool has no more to give. */
#define FEEDER_REGISTERS (CONSUMERS == 3 ? 32 : 40)
#define CONSUMER_REGISTERS (CONSUMERS == 3 ? 160 : 232)
    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FEEDER_REGISTERS));
        if (threadIdx.x < 32) {
            struct feeder f = {&queries, &keys, &values, bar, shared, said, {0, 0}, {0, 0}, 0, 0, -1, 0, 0};
            feed(f, n, codes, bounds, drawn);
        }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
    const int w = warpgroup - 1, tid = (int)threadIdx.x % 128, lane = tid % 32;
    const int row = w * 64 + tid / 32 * 16 + lane / 4; /* of this thread; the other is row + 8 */
    const float sign = !KG_HAS_SCORE && scale < 0.0f ? -1.0f : 1.0f;
    /* A scale of zero must not make NaN of a masked score. */
    const float factor = KG_HAS_SCORE ? LOG2E : fmaxf(fabsf(scale) * LOG2E, 1e-37f);
    float s[SCORES], o[O_PARTS][O_REGS];
    u32 p[SCORES / 2];
    EACH(e, SCORES / 2) p[e] = 0;
    EACH(e, O_PARTS * O_REGS) o[e / O_REGS][e % O_REGS] = 0.0f;
    struct ring k = {0, 0}, v = {0, 0};
    u32 count = 0; /* of tiles */
    struct stats st = no_stats();
    struct place here = {};
    here.head = -1;
    /* fresh: the next block begins a tile. due: weights p wait for the values of stage v. spent: they are
     * zeros. owed: a block that was handed on has its values in the stage after. */
    bool fresh = true, due = false, spent = false, owed = false;
    /* The scores of a block and the values of the one before are in flight together. The very first
     * block has none before it: nothing is multiplied with what lies there, and thrown away. */
#pragma unroll 1
    for (;;) {
        struct block now;
        bool first, last;
        u32 code, k_empty;
        /* One block of which these queries see nothing goes by without a halt. */
        for (;;) {
            barrier_wait(bar.k_full + 8 * k.stage, k.phase);
            now = said->block[k.stage];
            k_empty = bar.k_empty + 8 * k.stage, code = now.flags >> w * 2 & 3;
            first = fresh, last = (now.flags & LAST) != 0;
            if (code != NOTHING || owed || now.flags == END || (first && last))
                break;
            release(k_empty, last ? bar.q_empty + 8 * (count % QUERIES * CONSUMERS + w) : 0, lane);
            step(k), count += last;
            fresh = first || last, owed = true;
        }
        fresh = last;
        if (code == NOTHING) {
            /* A second one in a row, or of a tile that has no other: what waits must come to its end. */
            if (due && !spent) {
                wgmma_fence();
                issue_values(o, p, shared + V_AT + v.stage * KV_BYTES);
                wgmma_commit();
                wgmma_wait<0>();
                EACH(part, O_PARTS) pin(o[part]);
            }
            if (first && here.head >= 0)
                finish(o, st, output, lse, here.head, here.q, sq, dv);
            if (now.flags == END)
                break;
            if (due)
                hand_on(bar, v, lane);
            if (owed)
                hand_on(bar, v, lane);
            barrier_wait(bar.v_full + 8 * v.stage, v.phase);
            EACH(e, SCORES / 2) p[e] = 0;
            due = spent = true, owed = false;
            if (first) {
                clear(o);
                st = no_stats();
                barrier_wait(bar.q_full + 8 * (count % QUERIES * CONSUMERS + w), count / QUERIES & 1);
                here = place_of(programs, n, bits, said->tile[count % QUERIES * CONSUMERS + w], row);
            }
            release(k_empty, last ? bar.q_empty + 8 * (count % QUERIES * CONSUMERS + w) : 0, lane);
            step(k), count += last;
            continue;
        }
        const int done_q = here.q, done_head = here.head;
        if (first) {
            barrier_wait(bar.q_full + 8 * (count % QUERIES * CONSUMERS + w), count / QUERIES & 1);
            here = place_of(programs, n, bits, said->tile[count % QUERIES * CONSUMERS + w], row);
        }
        struct raw_bits found;
        if (EARLY && code == PARTLY)
            read_bits(here, n, now, found);
        /* Or ptxas moves them after the fence, since they come by several ways, and puts waits (C7520). */
        EACH(part, O_PARTS) pin(o[part]);
        EACH(e, SCORES / 2) asm volatile("" : "+r"(p[e])::"memory");
        wgmma_fence();
        issue_scores(s, shared + (count % QUERIES * CONSUMERS + w) * Q_BYTES, shared + K_AT + k.stage * KV_BYTES);
        wgmma_commit();
        issue_values(o, p, shared + V_AT + v.stage * KV_BYTES);
        wgmma_commit(), wgmma_wait<1>();
        pin(s);
        release(k_empty, last ? bar.q_empty + 8 * (count % QUERIES * CONSUMERS + w) : 0, lane);
        step(k);
        count += last;
        if (sign < 0.0f)
            EACH(e, SCORES) s[e] = -s[e];
        apply_score(programs, here, now, width, scale, s);
        if (code == PARTLY) {
            u32 keep[2][WORDS];
            if (!EARLY)
                read_bits(here, n, now, found);
            keep_words(found, now, keep);
            apply_mask(s, keep);
        }
        const struct stats done = st;
        if (first)
            st = no_stats();
        const struct pair a = soften(s, st, factor);
        const u32 v_empty = bar.v_empty + 8 * v.stage;
        if (owed) {
            wgmma_wait<0>();
            if (due)
                hand_on(bar, v, lane);
            hand_on(bar, v, lane);
        } else if (due) {
            step(v);
        }
        /* Needed next; and the edge of a basic block, or ptxas hoists the wait above the softmax. */
        barrier_wait(bar.v_full + 8 * v.stage, v.phase);
        wgmma_wait<0>();
        EACH(part, O_PARTS) pin(o[part]);
        if (due && !owed && lane == 0)
            barrier_arrive(v_empty);
        if (first) {
            if (done_head >= 0)
                finish(o, done, output, lse, done_head, done_q, sq, dv);
            clear(o);
        } else if (__any_sync(0xffffffff, a.x != 1.0f || a.y != 1.0f)) {
            EACH(e, O_PARTS * O_REGS) o[e / O_REGS][e % O_REGS] *= e & 2 ? a.y : a.x;
        }
        EACH(e, SCORES / 2) p[e] = pack2(s[2 * e], s[2 * e + 1]);
        due = true, spent = owed = false;
    }
}
