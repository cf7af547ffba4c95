/* kgen
{ "format": 1, "op": "linear", "target": "cuda", "min_arch": "sm_90",
  "tunables": {"BLOCK_M": [128, 256, 64], "BLOCK_N": [256, 128, 192, 64], "STAGES": [4, 6, 8],
               "CLUSTER_M": [2, 1], "CLUSTER_N": [1, 2], "PINGPONG": [0, 1], "SPLIT": [1, 2, 3, 4, 6, 8, 16],
               "LEFT_TURNED": [0, 1], "RIGHT_TURNED": [1, 0], "GROUP": [8, 16], "LAG": [0, 2], "BACK": [0, 1]},
  "require": "(!present(bias) || bias.contiguous) && (input.dtype == float16 || input.dtype == bfloat16) && align(input) >= 16 && align(weight) >= 16 && K >= 1 && max(M, N) <= 1073741824 && K <= 1073741824 && (LEFT_TURNED ? (input.stride(0) == 1 || M == 1) && (K == 1 || (input.stride(1) > 0 && input.stride(1) % 8 == 0)) : (input.stride(1) == 1 || K == 1) && (M == 1 || (input.stride(0) > 0 && input.stride(0) % 8 == 0))) && (RIGHT_TURNED ? (weight.stride(1) == 1 || K == 1) && (N == 1 || (weight.stride(0) > 0 && weight.stride(0) % 8 == 0)) : (weight.stride(0) == 1 || N == 1) && (K == 1 || (weight.stride(1) > 0 && weight.stride(1) % 8 == 0))) && (PINGPONG ? BLOCK_M <= 128 : BLOCK_M >= 128) && BLOCK_M * BLOCK_N <= (PINGPONG ? 16384 : 32768) && (BLOCK_N == 256 || BLOCK_N == 128 || CLUSTER_M == 1 || (RIGHT_TURNED && BLOCK_N == 192)) && (CLUSTER_M == 1 || CLUSTER_N == 1) && (LAG == 0 || (!PINGPONG && SPLIT == 1 && BLOCK_M * BLOCK_N == 32768)) && (BLOCK_M >= 128 || CLUSTER_N == 1) && SPLIT <= ceil_div(K, 64) && (SPLIT == 1 || ceil_div(M, BLOCK_M) * ceil_div(N, BLOCK_N) * (SPLIT - 1) < NUM_SMS) && STAGES == min(8, 1536 / (BLOCK_M + BLOCK_N)) && STAGES * ((BLOCK_M + BLOCK_N) * 128 + 16) + 34816 <= MAX_SHARED && ceil_div(M, 64) * ceil_div(N, 64) * SPLIT < 1073741824",
  "holes": ["EPILOGUE"],
  "workspace": {"partial": {"dtype": "float32", "shape": ["SPLIT == 1 ? 1 : SPLIT * M", "SPLIT == 1 ? 1 : N"]}},
  "tensor_maps": {
    "lefts": {"tensor": "input", "dims": ["LEFT_TURNED ? M : K", "LEFT_TURNED ? K : M", 1], "swizzle": 128, "l2": 256,
              "box": [64, "LEFT_TURNED ? 64 : BLOCK_M / CLUSTER_N", 1],
              "strides": ["LEFT_TURNED ? (K == 1 ? 16 : input.stride(1) * 2) : (M == 1 ? 16 : input.stride(0) * 2)", "16"]},
    "rights": {"tensor": "weight", "dims": ["RIGHT_TURNED ? K : N", "RIGHT_TURNED ? N : K", 1], "swizzle": 128, "l2": 256,
               "box": [64, "RIGHT_TURNED ? BLOCK_N / CLUSTER_M : 64", 1],
               "strides": ["RIGHT_TURNED ? (N == 1 ? 16 : weight.stride(0) * 2) : (K == 1 ? 16 : weight.stride(1) * 2)", "16"]},
    "results": {"tensor": "output", "dims": ["N", "M", 1], "box": [64, 64, 1], "swizzle": 128, "l2": 0,
                "strides": ["N % 8 == 0 ? N * 2 : 16", 16]}},
  "launches": [
    {"kernel": "gemm_hopper", "block": [384], "cluster": ["CLUSTER_M * CLUSTER_N"], "pdl": true,
     "grid": ["CLUSTER_M * CLUSTER_N * ceil_div(SPLIT * ceil_div(M, BLOCK_M * CLUSTER_M) * ceil_div(N, BLOCK_N * CLUSTER_N), max(1, ceil_div(SPLIT * ceil_div(M, BLOCK_M * CLUSTER_M) * ceil_div(N, BLOCK_N * CLUSTER_N), NUM_SMS / (CLUSTER_M * CLUSTER_N))))"],
     "shared": "STAGES * ((BLOCK_M + BLOCK_N) * 128 + 16) + 34816",
     "args": [{"map": "lefts"}, {"map": "rights"}, {"map": "results"}, "bias", "output", "partial", "programs", {"i32": 1}, {"i32": "M"}, {"i32": "N"}, {"i32": "K"},
              {"i32": 0}, {"i32": 0}]},
    {"kernel": "gemm_sum", "when": "SPLIT > 1", "grid": ["ceil_div(M * N, 1024)"], "block": [256], "pdl": true,
     "args": ["bias", "output", "partial", "programs", {"i64": "M * N"}, {"i32": "M"}, {"i32": "N"}]}] }
*/
#define HAS_BIAS 1
/* Products of half types on Hopper: wgmma, TMA, warp specialisation, persistent blocks.
 *
 * A cluster owns CLUSTER_M x CLUSTER_N tiles of BLOCK_M x BLOCK_N that stand beside one another; what
 * its blocks share of an operand each loads in part and multicasts. Warpgroup 0 feeds: one thread
 * issues every TMA load, 64 of K a stage. The others consume: together, each half of a tile's rows, or
 * with PINGPONG in turn, each a tile of its own, so that one's epilogue hides behind the other's
 * products. Transposed operands come as they lie: the tensor map runs along what is contiguous, and
 * wgmma reads either order. Results go through shared memory and out by TMA, or where rows are not
 * multiples of 16 bytes by ordinary stores. With SPLIT several blocks share a tile's K and leave their
 * sums in fp32; gemm_sum adds them up in order.
 *
 * Neighbouring blocks work in strips of GROUP rows of tiles, for the L2.
 *
 * Traffic: each operand once from memory while a strip fits the L2, and out of the L2
 * (BLOCK_M / CLUSTER_N + BLOCK_N / CLUSTER_M) * 128 bytes a block and 64 of K. Floor: 2 * B * M * N * K
 * flops over 4096 a clock and multiprocessor.
 *
 * Launch bounds: 384, one block a multiprocessor. Refuses fp32 (split.cu), operands that TMA cannot
 * address (mma.cu): neither dimension contiguous, rows that are no multiples of 16 bytes. */
#define DEV static __device__ __forceinline__
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)
#define BLOCK_K 64
#define THREADS 384
#define CLUSTER (CLUSTER_M * CLUSTER_N)
#define OWN_M (PINGPONG ? BLOCK_M : BLOCK_M / 2) /* rows of a consumer */
#define PARTS (OWN_M / 64)
#define SUMS (BLOCK_N / 2)  /* of a part, in each thread */
#define BOXES (BLOCK_N / 64)
#define LEFT_BYTES (BLOCK_M * BLOCK_K * 2)
#define RIGHT_BYTES (BLOCK_N * BLOCK_K * 2)
#define STAGE_BYTES (LEFT_BYTES + RIGHT_BYTES)
#define BOX_BYTES 8192 /* 64 rows of 64 columns */
#define STORE_AT (STAGES * STAGE_BYTES)
#define BIAS_AT (STORE_AT + 4 * BOX_BYTES)
#define BARRIERS_AT (BIAS_AT + 1024)
#define CONSUMERS_OF_A_STAGE (PINGPONG ? 1 : 2)

typedef unsigned char u8;
typedef unsigned short half_bits;
typedef unsigned int u32;
typedef unsigned long long u64;
struct alignas(64) tensor_map { u64 opaque[16]; };

/* ---- primitives ---- */
DEV void barrier_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}
DEV void barrier_expect(u32 bar, u32 n) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(n) : "memory");
}
DEV void barrier_wait(u32 bar, u32 parity) {
    u32 over = 0;
    while (!over)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(over) : "r"(bar), "r"(parity) : "memory");
}
/* No scope of the cluster: what it would order is none of ours, and it costs a fence of the whole GPU. */
DEV void barrier_arrive_at(u32 bar, u32 block) {
    u32 there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(bar), "r"(block));
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
}
DEV void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
DEV void warpgroup_sync(int w) { asm volatile("bar.sync %0, 128;" ::"r"(1 + w) : "memory"); }
/* With PINGPONG consumers multiply in turn. */
DEV void turn_wait(int w) { asm volatile("bar.sync %0, 256;" ::"r"(3 + w) : "memory"); }
DEV void turn_give(int w) { asm volatile("bar.arrive %0, 256;" ::"r"(3 + w) : "memory"); }
DEV void expect_map(const tensor_map *m) { asm volatile("prefetch.tensormap [%0];" ::"l"(m) : "memory"); }
DEV void load_box(u32 to, const tensor_map *m, u32 bar, int x, int y, int z, u32 mask) {
    if (mask == 0)
        asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                     " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to), "l"(m), "r"(bar), "r"(x), "r"(y), "r"(z) : "memory");
    else
        asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                     ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;"
                     ::"r"(to), "l"(m), "r"(bar), "r"(x), "r"(y), "r"(z), "h"((unsigned short)mask) : "memory");
}
DEV void store_box(const tensor_map *m, u32 from, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];"
                 ::"l"(m), "r"(from), "r"(x), "r"(y), "r"(z) : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
DEV void store_matrix(u32 at, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 ::"r"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
DEV u32 shared_word(u32 at) {
    u32 x; asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(at) : "memory"); return x;
}
DEV void set_shared_half(u32 at, half_bits x) { asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(x) : "memory"); }
#if KG_DTYPE_input == KG_BF16
#define TYPES "bf16.bf16"
DEV u32 pack2(float low, float high) {
    u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r;
}
DEV float widen(u32 x) { return __uint_as_float(x << 16); }
#else
#define TYPES "f16.f16"
DEV u32 pack2(float low, float high) {
    u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r;
}
DEV float widen(u32 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"((half_bits)x)); return y; }
#endif
/* No read of r moves above the wait before it. */
template <int N> DEV void pin(float (&r)[N]) { EACH(i, N) asm volatile("" : "+f"(r[i])::"memory"); }
/* 128-byte swizzle, 1024 bytes from 8 rows to the next 8, BOX_BYTES from 64 rows of an operand that
 * lies along its rows to the next 64. */
DEV u64 operand_at(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)(BOX_BYTES >> 4) << 16 | (u64)64 << 32 | (u64)1 << 62;
}

/* Accumulators by eights: S<n> are the operands %0 to %<n - 1>, O<n>(d) their registers. */
#define OF(d, i)                                                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define S32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
            "%24,%25,%26,%27,%28,%29,%30,%31"
#define O32(d) OF(d, 0), OF(d, 8), OF(d, 16), OF(d, 24)
#define S64 S32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
                "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define O64(d) O32(d), OF(d, 32), OF(d, 40), OF(d, 48), OF(d, 56)
#define S96 S64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86," \
                "%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define O96(d) O64(d), OF(d, 64), OF(d, 72), OF(d, 80), OF(d, 88)
#define S128 S96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114," \
                 "%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define O128(d) O96(d), OF(d, 96), OF(d, 104), OF(d, 112), OF(d, 120)

/* d = a b of 64 x N x 16, or += where more is not 0. */
#define PRODUCT(N, LIST, OUT, a_, b_, more_, turn_a_, turn_b_)                                     \
    DEV void product(float (&d)[N / 2], u64 a, u64 b, int more) {                                  \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #more_ ", 0; "                             \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPES " {" LIST "}, %" #a_  \
                     ", %" #b_ ", p, 1, 1, %" #turn_a_ ", %" #turn_b_ "; }"                        \
                     : OUT(d) : "l"(a), "l"(b), "r"(more), "n"(LEFT_TURNED), "n"(!RIGHT_TURNED));  \
    }
#if BLOCK_N == 64
PRODUCT(64, S32, O32, 32, 33, 34, 35, 36)
#elif BLOCK_N == 128
PRODUCT(128, S64, O64, 64, 65, 66, 67, 68)
#elif BLOCK_N == 192
PRODUCT(192, S96, O96, 96, 97, 98, 99, 100)
#else
PRODUCT(256, S128, O128, 128, 129, 130, 131, 132)
#endif

/* ---- units of work ---- */
struct sizes {
    int b, m, n, k;
    int tiles_m, tiles_n, steps; /* of a cluster's tiles, and of BLOCK_K in K */
};
struct unit { int b, split, m, n, first, last; }; /* m, n: of the cluster; steps first to last - 1 */

DEV struct sizes sizes_of(int b, int m, int n, int k) {
    return {b, m, n, k, (m + BLOCK_M * CLUSTER_M - 1) / (BLOCK_M * CLUSTER_M),
            (n + BLOCK_N * CLUSTER_N - 1) / (BLOCK_N * CLUSTER_N), (k + BLOCK_K - 1) / BLOCK_K};
}
DEV int units_of(const struct sizes &s) { return s.b * SPLIT * s.tiles_m * s.tiles_n; }
DEV struct unit unit_of(const struct sizes &s, int t) {
    const int tiles = s.tiles_m * s.tiles_n, outer = t / tiles, tile = t - outer * tiles;
    const int strip = tile / (GROUP * s.tiles_n), rows = min(s.tiles_m - strip * GROUP, GROUP);
    const int r = tile - strip * GROUP * s.tiles_n, split = outer % SPLIT;
    return {outer / SPLIT, split, strip * GROUP + r % rows, r / rows,
            (int)((long long)s.steps * split / SPLIT), (int)((long long)s.steps * (split + 1) / SPLIT)};
}
struct ring { int stage; u32 phase; };
DEV void step(struct ring &r) {
    if (++r.stage == STAGES)
        r.stage = 0, r.phase ^= 1;
}
DEV void skip(struct ring &r, int steps) {
    const int to = r.stage + steps;
    r.phase ^= to / STAGES & 1, r.stage = to % STAGES;
}

/* ---- the feeder ---- */
struct feeder {
    const tensor_map *lefts, *rights;
    u32 shared, full, empty;
    int rank_m, rank_n;            /* of the block in its cluster */
    int left_batches, right_batches; /* 0: the operand is one for all of b */
};

/* A stage's part of the left operand: with CLUSTER_N one for each block of the row to all of them. */
DEV void load_left(const struct feeder &f, u32 to, u32 bar, int row, int k, int b) {
    const u32 mask = CLUSTER_N == 1 ? 0 : CLUSTER_N == 2 && CLUSTER_M == 1 ? 3 : 0;
    constexpr int ROWS = BLOCK_M / CLUSTER_N;
    to += f.rank_n * ROWS * BLOCK_K * 2, row += f.rank_n * ROWS;
    if (LEFT_TURNED)
        EACH(i, ROWS / 64) load_box(to + i * BOX_BYTES, f.lefts, bar, row + i * 64, k, b, mask);
    else
        load_box(to, f.lefts, bar, k, row, b, mask);
}
DEV void load_right(const struct feeder &f, u32 to, u32 bar, int column, int k, int b) {
    const u32 mask = CLUSTER_M == 1 ? 0 : 3;
    constexpr int COLUMNS = BLOCK_N / CLUSTER_M;
    to += f.rank_m * COLUMNS * BLOCK_K * 2, column += f.rank_m * COLUMNS;
    if (RIGHT_TURNED)
        load_box(to, f.rights, bar, k, column, b, mask);
    else
        EACH(i, COLUMNS / 64) load_box(to + i * BOX_BYTES, f.rights, bar, column + i * 64, k, b, mask);
}

/* With BACK every second round of units goes from the last of K to the first, whose operands the L2 has yet. */
DEV void feed(const struct feeder &f, const struct sizes &s) {
    struct ring r = {0, 0};
#pragma unroll 1
    for (int t = (int)blockIdx.x / CLUSTER; t < units_of(s); t += (int)gridDim.x / CLUSTER) {
        const struct unit u = unit_of(s, t);
        const int row = (u.m * CLUSTER_M + f.rank_m) * BLOCK_M, column = (u.n * CLUSTER_N + f.rank_n) * BLOCK_N;
        const bool back = BACK && t / ((int)gridDim.x / CLUSTER) % 2 != 0;
#pragma unroll 1
        for (int i = u.first; i < u.last; i++) {
            const int k = back ? u.first + u.last - 1 - i : i;
            const u32 full = f.full + 8 * r.stage, to = f.shared + r.stage * STAGE_BYTES;
            barrier_wait(f.empty + 8 * r.stage, r.phase ^ 1); /* in every block that our part goes to */
            barrier_expect(full, STAGE_BYTES);
            load_left(f, to, full, row, k * BLOCK_K, f.left_batches ? u.b : 0);
            load_right(f, to + LEFT_BYTES, full, column, k * BLOCK_K, f.right_batches ? u.b : 0);
            step(r);
        }
    }
    /* Peers may reach this block's barriers until they have released all its stages. */
    EACH(i, STAGES) {
        barrier_wait(f.empty + 8 * r.stage, r.phase ^ 1);
        step(r);
    }
}

/* ---- the consumers ---- */
/* All blocks that a stage's parts came from. */
DEV void release(u32 empty, int tid) {
    if (tid < CLUSTER)
        barrier_arrive_at(empty, (u32)tid);
}

/* With LAG the second consumer begins so many stages after the first and stays behind: then one of them
 * multiplies while the other is at its epilogue. */
DEV void lag_over() { asm volatile("bar.arrive %0, 256;" ::"r"(5) : "memory"); }
DEV void lag_wait() { asm volatile("bar.sync %0, 256;" ::"r"(5) : "memory"); }

/* sums = the unit's product. With PINGPONG a stage is let go one step later, since nobody else keeps the
 * tensor cores busy meanwhile; and taking turns is not for speed alone: a stage's barrier tells its last
 * two phases apart, no more, so nobody may look at one before the other has seen what came before. */
DEV void multiply(float (&sums)[PARTS][SUMS], const struct unit &u, struct ring &r, u32 left, u32 right,
                  u32 full, u32 empty, int w, int tid, int &lag) {
    u32 before = 0;
    if (PINGPONG)
        turn_wait(w);
#pragma unroll 1
    for (int k = u.first; k < u.last; k++) {
        barrier_wait(full + 8 * r.stage, r.phase);
        const u64 a = operand_at(left + r.stage * STAGE_BYTES), b = operand_at(right + r.stage * STAGE_BYTES);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        EACH(i, BLOCK_K / 16)
            EACH(part, PARTS)
                product(sums[part], a + part * (BOX_BYTES / 16) + i * (LEFT_TURNED ? 128 : 2),
                        b + i * (RIGHT_TURNED ? 2 : 128), (k > u.first) | i);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        if (PINGPONG) {
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            if (k > u.first)
                release(before, tid);
            before = empty + 8 * r.stage;
        } else {
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            release(empty + 8 * r.stage, tid);
            if (LAG && --lag == 0)
                lag_over();
        }
        step(r);
    }
    if (PINGPONG) {
        turn_give(1 - w);
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        release(before, tid);
    }
    EACH(part, PARTS) pin(sums[part]);
}

/* Of a 64 x 64 box, in each thread: word 2 * j + h has columns 8 * j + 2 * (lane % 4) and the next of
 * row lane / 4 + 8 * h. */
struct place { int b, row, column, m, n; bool by_tma; }; /* row, column: of this thread's first element */

DEV void store_words(const u32 (&words)[16], half_bits *output, const struct place &p, int row0, int column0) {
    EACH(j, 8)
        EACH(h, 2) {
            const int row = row0 + h * 8, column = column0 + j * 8;
            half_bits *to = output + ((long long)p.b * p.m + row) * p.n + column;
            if (row < p.m && column < p.n)
                to[0] = (half_bits)words[2 * j + h];
            if (row < p.m && column + 1 < p.n)
                to[1] = (half_bits)(words[2 * j + h] >> 16);
        }
}

struct staging { u32 at, bias; int w, tid; bool turn; };

DEV void stage_box(const u32 (&words)[16], struct staging &s, const tensor_map *results, int column, int row, int b) {
    const int lane = s.tid % 32, to = s.tid / 32 * 16 + (lane & 15);
    const u32 box = s.at + (s.turn ? BOX_BYTES : 0);
    if (s.tid == 0)
        asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
    warpgroup_sync(s.w);
    EACH(j, 4)
        store_matrix(box + to * 128 + (((2 * j + (lane >> 4)) ^ (to & 7)) << 4), words[4 * j], words[4 * j + 1],
                     words[4 * j + 2], words[4 * j + 3]);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    warpgroup_sync(s.w);
    if (s.tid == 0)
        store_box(results, box, column, row, b);
    s.turn = !s.turn;
}

/* One part of a consumer's tile: 64 rows from `row` on, BLOCK_N columns from `column` on. */
DEV void finish(float (&d)[SUMS], KG_PROGRAMS programs, half_bits *output, const tensor_map *results,
                struct staging &s, const struct sizes &n, int b, int row, int column) {
    const int lane = s.tid % 32, r = row + s.tid / 32 * 16 + lane / 4, c = column + lane % 4 * 2;
    const struct kg_epilogue_row rows[2] = {kg_epilogue_row(programs, b, r), kg_epilogue_row(programs, b, r + 8)};
    const struct place p = {b, r, c, n.m, n.n, n.n % 8 == 0};
    EACH(box, BOXES) {
        u32 words[16];
        EACH(j, 8) {
            const int at = box * 32 + j * 4, column_here = c + box * 64 + j * 8;
            float bias[2] = {0.0f, 0.0f};
            if (HAS_BIAS) {
                const u32 pair = shared_word(s.bias + (box * 64 + j * 8 + lane % 4 * 2) * 2);
                bias[0] = widen(pair & 0xffff), bias[1] = widen(pair >> 16);
            }
            EACH(h, 2) {
                float x[2];
                EACH(e, 2)
                    x[e] = kg_epilogue(programs, rows[h], d[at + 2 * h + e] + bias[e], b, r + 8 * h, column_here + e);
                words[2 * j + h] = pack2(x[0], x[1]);
            }
        }
        if (row >= n.m || column + box * 64 >= n.n)
            continue;
        if (p.by_tma)
            stage_box(words, s, results, column + box * 64, row, b);
        else
            store_words(words, output, p, r, c + box * 64);
    }
}

DEV void leave_sums(const float (&d)[SUMS], float *partial, const struct sizes &n, const struct unit &u, int row, int column) {
    EACH(j, BLOCK_N / 8)
        EACH(h, 2) {
            const int r = row + h * 8, c = column + j * 8;
            float *to = partial + (((long long)u.split * n.b + u.b) * n.m + r) * n.n + c;
            if (r < n.m && c < n.n)
                to[0] = d[4 * j + 2 * h];
            if (r < n.m && c + 1 < n.n)
                to[1] = d[4 * j + 2 * h + 1];
        }
}

#if HAS_BIAS
#define BIAS_ARGUMENT const KG_T_bias *bias,
#else
#define BIAS_ARGUMENT
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gemm_hopper(const __grid_constant__ tensor_map lefts, const __grid_constant__ tensor_map rights,
                const __grid_constant__ tensor_map results, BIAS_ARGUMENT KG_T_output *output, KG_T_partial *partial,
                KG_PROGRAMS programs, int batches, int m, int n, int k, int left_batches, int right_batches) {
    extern __shared__ u8 raw[];
    const u32 shared = ((u32)__cvta_generic_to_shared(raw) + 1023) & ~1023u;
    const u32 full = shared + BARRIERS_AT, empty = full + 8 * STAGES;
    const int warpgroup = __shfl_sync(0xffffffff, (int)threadIdx.x / 128, 0);
    const struct sizes s = sizes_of(batches, m, n, k);
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    const int rank_m = (int)rank % CLUSTER_M, rank_n = (int)rank / CLUSTER_M;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++)
            barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, CLUSTER * CONSUMERS_OF_A_STAGE);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        expect_map(&lefts), expect_map(&rights), expect_map(&results);
    }
    cluster_sync();
    if (SPLIT > 1)
        asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); /* gemm_sum, which waits for the end */
    /* What comes before on the stream may have been told to let this launch begin. */
    asm volatile("griddepcontrol.wait;" ::: "memory");
    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 0)
            feed({&lefts, &rights, shared, full, empty, rank_m, rank_n, left_batches, right_batches}, s);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    const int w = warpgroup - 1, tid = (int)threadIdx.x % 128, lane = tid % 32;
    const u32 left = shared + (PINGPONG ? 0 : w * OWN_M * BLOCK_K * 2), right = shared + LEFT_BYTES;
    struct staging staging = {shared + STORE_AT + w * 2 * BOX_BYTES, shared + BIAS_AT + w * BLOCK_N * 2, w, tid, false};
    struct ring r = {0, 0};
    float sums[PARTS][SUMS];
    int mine = 0; /* with PINGPONG: whose turn the next unit is */
    int lag = w == 0 ? LAG : 0;
    if (PINGPONG && w == 1)
        turn_give(0);
    if (LAG && w == 1)
        lag_wait();
#pragma unroll 1
    for (int t = (int)blockIdx.x / CLUSTER; t < units_of(s); t += (int)gridDim.x / CLUSTER) {
        const struct unit u = unit_of(s, t);
        if (PINGPONG && (mine ^= 1) == w) {
            skip(r, u.last - u.first);
            continue;
        }
        const int row = (u.m * CLUSTER_M + rank_m) * BLOCK_M + (PINGPONG ? 0 : w * OWN_M);
        const int column = (u.n * CLUSTER_N + rank_n) * BLOCK_N;
#if HAS_BIAS
        half_bits of_bias[(BLOCK_N + 127) / 128]; /* on their way while the products run */
        EACH(i, (BLOCK_N + 127) / 128)
            of_bias[i] = bias && i * 128 + tid < BLOCK_N && column + i * 128 + tid < n ? __ldg(bias + column + i * 128 + tid) : 0;
#endif
        multiply(sums, u, r, left, right, full, empty, w, tid, lag);
#if HAS_BIAS
        if (SPLIT == 1) {
            EACH(i, (BLOCK_N + 127) / 128)
                if (i * 128 + tid < BLOCK_N)
                    set_shared_half(staging.bias + (i * 128 + tid) * 2, of_bias[i]);
            warpgroup_sync(w);
        }
#endif
        EACH(part, PARTS) {
            if (SPLIT > 1)
                leave_sums(sums[part], partial, s, u, row + part * 64 + tid / 32 * 16 + lane / 4, column + lane % 4 * 2);
            else
                finish(sums[part], programs, output, &results, staging, s, u.b, row + part * 64, column);
        }
#if HAS_BIAS
        if (SPLIT == 1)
            warpgroup_sync(w); /* nobody reads the bias any more */
#endif
    }
    if (LAG && lag > 0)
        lag_over(); /* of fewer stages in all */
    if (tid == 0)
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); /* before shared memory goes */
}

/* Adds up what the blocks of a tile left, four elements a thread. */
extern "C" __global__ void __launch_bounds__(256)
    gemm_sum(BIAS_ARGUMENT KG_T_output *output, const KG_T_partial *partial, KG_PROGRAMS programs, long long all, int m, int n) {
    const long long first = ((long long)blockIdx.x * 256 + (int)threadIdx.x) * 4;
    asm volatile("griddepcontrol.wait;" ::: "memory");
    if (first >= all)
        return;
    float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    EACH(split, SPLIT) {
        const float *from = partial + split * all + first;
        if (all % 4 == 0) {
            const float4 v = *(const float4 *)from;
            x[0] += v.x, x[1] += v.y, x[2] += v.z, x[3] += v.w;
        } else {
            EACH(i, 4) x[i] += first + i < all ? from[i] : 0.0f;
        }
    }
    long long line = first / n;
    int column = (int)(first - line * n);
    EACH(i, 4) {
        if (first + i < all) {
            const int b = (int)(line / m), row = (int)(line - (long long)b * m);
#if HAS_BIAS
            if (bias)
                x[i] += widen(__ldg(bias + column));
#endif
            x[i] = kg_epilogue(programs, kg_epilogue_row(programs, b, row), x[i], b, row, column);
        }
        if (++column == n)
            column = 0, line++;
    }
    const u32 low = pack2(x[0], x[1]), high = pack2(x[2], x[3]);
    if (all % 4 == 0)
        *(uint2 *)(output + first) = make_uint2(low, high);
    else
        EACH(i, 4)
            if (first + i < all)
                output[first + i] = (half_bits)((i < 2 ? low : high) >> (i & 1) * 16);
}
