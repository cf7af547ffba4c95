/* kgen
{ "format": 1, "op": "matmul", "target": "cuda", "min_arch": "sm_90",
  "tunables": {"CLUSTER_M": [2, 1], "CLUSTER_N": [1, 2], "SPLIT": [1, 2, 3, 4, 6, 8, 16], "GROUP": [8, 16, 4, 32], "LAG": [0, 1], "LATE": [0, 1], "BACK": [0, 1]},
  "require": "input.dtype == float32 && K >= 1 && max(M, N) <= 1073741824 && K <= 65536 * SPLIT && (CLUSTER_M == 1 || CLUSTER_N == 1) && (LATE == 0 || (B == 1 && SPLIT == 1 && M > 128 * GROUP * CLUSTER_M && !(input.stride(2) != 1 && input.stride(1) == 1 && K > 1))) && SPLIT <= ceil_div(K, 64) && (SPLIT == 1 || B * ceil_div(M, 128) * ceil_div(N, 128) * (SPLIT - 1) < NUM_SMS) && B * ceil_div(M, 128) * ceil_div(N, 128) * SPLIT < 1073741824 && B * max(M, N) < 1073741824",
  "holes": ["EPILOGUE"],
  "workspace": {"left_planes": {"dtype": "float16", "shape": ["(input.stride(0) == 0 ? 1 : B) * ceil_div(M, 128) * ceil_div(K, 64)", 16384]},
                "right_planes": {"dtype": "float16", "shape": ["(other.stride(0) == 0 ? 1 : B) * ceil_div(N, 128) * ceil_div(K, 64)", 16384]}, "scales": {"dtype": "float32", "shape": ["(input.stride(0) == 0 ? 1 : B) * M + (other.stride(0) == 0 ? 1 : B) * N", 2]}, "state": {"dtype": "int32", "shape": ["LATE ? 2 + ceil_div(M, 128) : 1"]}, "strays": {"dtype": "int32", "shape": ["(input.stride(0) == 0 ? 1 : B) * M + (other.stride(0) == 0 ? 1 : B) * N"]}, "partial": {"dtype": "float32", "shape": ["SPLIT == 1 ? 1 : SPLIT * B * M", "SPLIT == 1 ? 1 : N"]}},
  "launches": [
    {"kernel": "split_columns", "block": [256], "cluster": ["K > 2048 ? 8 : K > 1024 ? 4 : K > 512 ? 2 : 1"], "when": "(input.stride(2) != 1 && input.stride(1) == 1 && K > 1) || (other.stride(1) != 1 && other.stride(2) == 1 && K > 1)",
     "grid": ["(K > 2048 ? 8 : K > 1024 ? 4 : K > 512 ? 2 : 1) * ((input.stride(2) != 1 && input.stride(1) == 1 && K > 1 ? (input.stride(0) == 0 ? 1 : B) * ceil_div(M, 32) : 0) + (other.stride(1) != 1 && other.stride(2) == 1 && K > 1 ? (other.stride(0) == 0 ? 1 : B) * ceil_div(N, 32) : 0))"],
     "args": ["input", "other", "left_planes", "right_planes", "scales", "state", {"i32": "input.stride(0) == 0 ? 1 : B"}, {"i32": "M"}, {"i32": "input.stride(2) != 1 && input.stride(1) == 1 && K > 1"}, {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"}, {"i64": "input.stride(2)"}, {"i32": "other.stride(0) == 0 ? 1 : B"}, {"i32": "N"}, {"i32": "other.stride(1) != 1 && other.stride(2) == 1 && K > 1"}, {"i64": "other.stride(0)"}, {"i64": "other.stride(2)"}, {"i64": "other.stride(1)"}, {"i32": "K"}]},
    {"kernel": "split_rows", "block": [256], "pdl": true, "when": "!(input.stride(2) != 1 && input.stride(1) == 1 && K > 1) || !(other.stride(1) != 1 && other.stride(2) == 1 && K > 1)",
     "grid": ["(input.stride(2) != 1 && input.stride(1) == 1 && K > 1 ? 0 : LATE ? 128 * GROUP * CLUSTER_M : (input.stride(0) == 0 ? 1 : B) * M) + (other.stride(1) != 1 && other.stride(2) == 1 && K > 1 ? 0 : (other.stride(0) == 0 ? 1 : B) * N)"],
     "args": ["input", "other", "left_planes", "right_planes", "scales", "state", {"i32": "(input.stride(2) != 1 && input.stride(1) == 1 && K > 1) || (other.stride(1) != 1 && other.stride(2) == 1 && K > 1)"}, {"i32": "input.stride(0) == 0 ? 1 : B"}, {"i32": "M"}, {"i32": "input.stride(2) != 1 && input.stride(1) == 1 && K > 1"}, {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"}, {"i64": "input.stride(2)"}, {"i32": "other.stride(0) == 0 ? 1 : B"}, {"i32": "N"}, {"i32": "other.stride(1) != 1 && other.stride(2) == 1 && K > 1"}, {"i64": "other.stride(0)"}, {"i64": "other.stride(2)"}, {"i64": "other.stride(1)"}, {"i32": "K"}]},
    {"kernel": "gemm_split", "block": [384], "cluster": ["CLUSTER_M * CLUSTER_N"], "pdl": true, "shared": 203904,
     "grid": ["CLUSTER_M * CLUSTER_N * ceil_div(B * SPLIT * ceil_div(M, 128 * CLUSTER_M) * ceil_div(N, 128 * CLUSTER_N), max(1, ceil_div(B * SPLIT * ceil_div(M, 128 * CLUSTER_M) * ceil_div(N, 128 * CLUSTER_N), NUM_SMS / (CLUSTER_M * CLUSTER_N))))"],
     "args": ["left_planes", "right_planes", "scales", "state", "input", "output", "partial", "programs", {"i32": "B"}, {"i32": "M"}, {"i32": "N"}, {"i32": "K"}, {"i32": "input.stride(0) != 0"}, {"i32": "other.stride(0) != 0"}, {"i64": "input.stride(1)"}, {"i64": "input.stride(2)"}]},
    {"kernel": "gemm_sum", "when": "SPLIT > 1", "grid": ["ceil_div(B * M * N, 1024)"], "block": [256], "pdl": true,
     "args": ["output", "partial", "programs", {"i64": "B * M * N"}, {"i32": "M"}, {"i32": "N"}]},
    {"kernel": "gemm_strays", "grid": ["2 * NUM_SMS"], "block": [256], "pdl": true,
     "args": ["input", "other", "output", "scales", "state", "strays", "programs", {"i32": "B"}, {"i32": "M"}, {"i32": "N"}, {"i32": "K"}, {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"}, {"i64": "input.stride(2)"}, {"i64": "other.stride(0)"}, {"i64": "other.stride(2)"}, {"i64": "other.stride(1)"}]}] }
*/
#define HAS_BIAS 0
/* Products of float32 with the accuracy of float32, by the tensor cores of Hopper.
 *
 * Each row of the left operand and each column of the right one (a "line" of K elements) is scaled by a
 * power of two, so that its largest element is in [2^14, 2^15), and split into two planes of float16:
 * high = f16(x) and low = f16(2048 (x - high)), 22 bits of each element down to 2^-28 of its line's
 * largest. C = high high + (high low + low high) / 2048; low low is beyond 2^-22. The tensor cores' sums
 * truncate, so high high goes to registers by FADD every 64 of K, while the corrections run; these are
 * 2^-11 of the whole and stay in their own accumulator.
 *
 * What two planes cannot hold is never guessed. A line is a stray when it has an Inf or a NaN, when its
 * largest element is below 2^-112, or when its small elements lose too much: an element at 2^-d of the
 * largest is off by 2^(d - 50) of itself, and the mean square of these over the line must stay below
 * 2^-44 (an error of float32, even if the other operand makes up for the elements' sizes). A stray's
 * factor is NaN; gemm_strays lists these lines and computes their rows and columns by FFMA.
 *
 * Planes lie in tiles of 128 lines and 64 of K, both planes of a tile together, in the swizzled order
 * that wgmma reads, so one bulk copy brings 32 KB without a tensor map and an operand may have any
 * strides and alignment. split_rows takes lines that are contiguous, a block each; split_columns operands
 * that are contiguous across lines: a cluster of at most 8 blocks holds 32 lines in registers. Launches
 * begin while the one before them ends (let_next_begin), and need no memory that is cleared.
 *
 * gemm_split: 128 x 128 a block, a cluster of 2 shares one operand by multicast, 3 stages of 64 KB; one
 * thread feeds, two warpgroups multiply 64 x 128 each with three sets of 64 accumulators.
 *
 * Traffic: 4 bytes an element read and 4 written (beyond 4096 of K up to 8 and 4), then the planes out of the L2.
 * Floor: 6 * B * M * N * K flops over 4096 a clock and multiprocessor.
 *
 * Launch bounds: 384 and one block a multiprocessor; 256 for the others, 5 blocks for rows, 2 for
 * columns. Refuses half types (hopper.cu), and more than 65536 of K a split: a chain of more FADDs than
 * 1024 of nearly equal terms is off by more than float32 may be (33 of 31 millionths at 262144). */
#define DEV static __device__ __forceinline__
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)
#define CLUSTER (CLUSTER_M * CLUSTER_N)
#define STAGES 3
#define PLANE_BYTES 16384 /* 128 lines of 64 float16 */
#define TILE_BYTES (2 * PLANE_BYTES)
#define STAGE_BYTES (2 * TILE_BYTES)
#define FACTORS_AT (STAGES * STAGE_BYTES) /* of columns, and bias: 1536 bytes, two tiles of two consumers */
#define BARRIERS_AT (FACTORS_AT + 4 * 1536)
#define LOW_SCALE 2048.0f
#define EARLY (128 * GROUP * CLUSTER_M) /* rows that are split before the product, with LATE */

typedef unsigned char u8;
typedef unsigned short half_bits;
typedef unsigned int u32;
typedef unsigned long long u64;

/* ---- the split ---- */
/* Lines of an operand: line i of batch b begins at b * batch + i * line, its elements are `step` apart. */
struct lines {
    const float *at;
    long long batch, line, step;
    int batches, n, k;
};
DEV const float *line_at(const struct lines &l, int b, int i) { return l.at + b * l.batch + i * l.line; }

DEV u32 magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }
DEV float exp2i(int e) { return __int_as_float((e + 127) << 23); }
DEV int exponent(u32 magnitude) { return magnitude >> 23 ? (int)(magnitude >> 23) : 9 - __clz((int)magnitude); }

/* How much an element of a line whose largest is `top` loses: 2^44 times the square of its relative
 * error, when that is worth counting. */
DEV u64 loss(u32 x, u32 top) {
    const int d = exponent(top) - exponent(x);
    return x == 0 || d < 28 ? 0 : d >= 46 ? 1ull << 36 : 1ull << 2 * (d - 28);
}
DEV bool hopeless(u32 top) { return top >= 0x7f800000u || (top != 0 && top < 15u << 23); }

/* The power of two for a line, and two factors that undo it, so that no step of that overflows. */
struct scaling { float by; float2 back; };
DEV struct scaling scaling_of(u32 top) {
    const int e = min(14 - ((int)(top >> 23) - 127), 126);
    return {exp2i(e), make_float2(exp2i(-e >> 1), exp2i(-e - (-e >> 1)))};
}

DEV u32 pack_f16(float low, float high) {
    u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r;
}
DEV float widen(u32 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"((half_bits)x)); return y; }

/* Eight elements into eight of each plane. */
DEV void split8(const float (&x)[8], float by, uint4 &high, uint4 &low) {
    u32 h[4], l[4];
    EACH(i, 4) {
        const float a = x[2 * i] * by, b = x[2 * i + 1] * by;
        h[i] = pack_f16(a, b);
        l[i] = pack_f16((a - widen(h[i] & 0xffff)) * LOW_SCALE, (b - widen(h[i] >> 16)) * LOW_SCALE);
    }
    high = make_uint4(h[0], h[1], h[2], h[3]), low = make_uint4(l[0], l[1], l[2], l[3]);
}
/* Where 16 bytes of a plane are in their tile: the swizzle of 128 bytes. */
DEV int chunk_at(int line, int chunk) { return line * 8 + (chunk ^ (line & 7)); }
DEV long long tile_of(int tiles, int steps, int b, int line, int k) {
    return ((long long)b * tiles + line / 128) * steps + k / 64;
}
/* Elements k to k + 7 of a line; zeros behind its end. */
DEV void load8(float (&x)[8], const float *line, long long step, int k, int n, bool vectors) {
    if (vectors && k + 8 <= n) {
        const float4 a = __ldg((const float4 *)(line + k)), b = __ldg((const float4 *)(line + k) + 1);
        x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    } else {
        EACH(i, 8) x[i] = k + i < n ? __ldg(line + (k + i) * step) : 0.0f;
    }
}
DEV u32 top8(const float (&x)[8], u32 top) {
    EACH(i, 8) top = max(top, magnitude(x[i]));
    return top;
}
/* Below this an element may count in its line's loss. 1 is taken off, so that a zero is the largest. */
DEV u32 small_in(u32 top) { return (u32)max((int)(top >> 23) - 27, 1) << 23; }
DEV u64 loss8(const float (&x)[8], u32 top) {
    u64 sum = 0;
    u32 least = 0xffffffffu;
    EACH(i, 8) least = min(least, magnitude(x[i]) - 1u);
    if (least < small_in(top))
        EACH(i, 8) sum += loss(magnitude(x[i]), top);
    return sum;
}
DEV u32 max_of_warp(u32 x) {
    EACH(i, 5) x = max(x, __shfl_xor_sync(0xffffffff, x, 16 >> i));
    return x;
}
DEV u32 max_of_block(u32 x, u32 *parts) {
    x = max_of_warp(x);
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = x;
    __syncthreads();
    EACH(i, 8) x = max(x, parts[i]);
    return x;
}

/* What undoes a line's scaling; NaN marks a stray, for gemm_split to see and gemm_strays to find. */
DEV float2 factors_of(const struct scaling &s, u32 top, u64 lost, int k) {
    const float none = __int_as_float(0x7fffffff);
    return hopeless(top) || lost > (u64)k ? make_float2(none, none) : s.back;
}
DEV bool is_stray(float2 factors) { return factors.x != factors.x; }
/* The next launch may come onto the multiprocessors as they become free; it waits for what it reads. */
DEV void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
DEV void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

/* One line, by THREADS threads that hold HELD times 8 elements each; what is beyond these is read twice. */
template <int THREADS, int HELD>
DEV void split_row(const struct lines &l, int at, int t, uint4 *planes, float2 *scales, u32 *parts, u64 *losses) {
    constexpr int STEP = 8 * THREADS, TO_NEXT = STEP / 64 * TILE_BYTES / 16;
    const int b = at / l.n, line = at - b * l.n, steps = (l.k + 63) / 64;
    const float *from = line_at(l, b, line);
    const bool vectors = l.step == 1 && ((u64)from & 15) == 0;
    float x[HELD ? HELD : 1][8], y[8];
    u32 top = 0;
    u64 lost = 0;
    EACH(i, HELD) load8(x[i], from, l.step, t * 8 + i * STEP, l.k, vectors);
    EACH(i, HELD) top = top8(x[i], top);
#pragma unroll (HELD ? 1 : 2)
    for (int k = t * 8 + HELD * STEP; k < l.k; k += STEP) {
        load8(y, from, l.step, k, l.k, vectors);
        top = top8(y, top);
    }
    if (THREADS > 32 && t == 0)
        *losses = 0;
    top = THREADS > 32 ? max_of_block(top, parts) : max_of_warp(top);
    const struct scaling s = scaling_of(top);
    uint4 *to = planes + tile_of((l.n + 127) / 128, steps, b, line, t * 8) * (TILE_BYTES / 16) + chunk_at(line % 128, t % 8);
    EACH(i, HELD)
        if (t * 8 + i * STEP < steps * 64) {
            lost += loss8(x[i], top);
            split8(x[i], s.by, to[i * TO_NEXT], to[i * TO_NEXT + PLANE_BYTES / 16]);
        }
    to += HELD * TO_NEXT;
#pragma unroll (HELD ? 1 : 2)
    for (int k = t * 8 + HELD * STEP; k < steps * 64; k += STEP, to += TO_NEXT) {
        load8(y, from, l.step, k, l.k, vectors);
        lost += loss8(y, top);
        split8(y, s.by, to[0], to[PLANE_BYTES / 16]);
    }
    if (THREADS > 32) {
        if (lost != 0)
            atomicAdd(losses, lost);
        __syncthreads();
        lost = *losses;
    } else
        EACH(i, 5) lost += __shfl_xor_sync(0xffffffff, lost, 16 >> i);
    if (t == 0)
        scales[at] = factors_of(s, top, lost, l.k);
}

#define OPERAND_ARGUMENTS                                                                          \
    int lb, int ln, int l_across, long long l0, long long l1, long long lk, int rb, int rn, int r_across, \
        long long r0, long long r1, long long rk, int k
#define LEFT_LINES {left, l0, l1, lk, lb, ln, k}
#define RIGHT_LINES {right, r0, r1, rk, rb, rn, k}

/* after: split_columns came before, on which nothing here depends; this launch's end stands for the end of
 * both. The first lines come last: they are the first wanted. */
extern "C" __global__ void __launch_bounds__(256, 5)
    split_rows(const KG_T_input *left, const KG_T_input *right, KG_T_left_planes *left_planes, KG_T_right_planes *right_planes,
               KG_T_scales *scales, KG_T_state *state, int after, OPERAND_ARGUMENTS) {
    __shared__ u32 parts[8];
    __shared__ u64 losses[1];
    const struct lines l = LEFT_LINES, r = RIGHT_LINES;
    const int of_left = l_across ? 0 : LATE ? EARLY : lb * ln, at = (int)(gridDim.x - 1 - blockIdx.x);
    let_next_begin();
    if (!after)
        wait_for_previous();
    if (at < of_left)
        split_row<256, 2>(l, at, (int)threadIdx.x, (uint4 *)left_planes, (float2 *)scales, parts, losses);
    else
        split_row<256, 2>(r, at - of_left, (int)threadIdx.x, (uint4 *)right_planes, (float2 *)scales + lb * ln, parts, losses);
    for (int i = (int)threadIdx.x; at == 0 && i < (LATE ? 2 + (ln + 127) / 128 : 1); i += 256)
        state[i] = 0;
    if (after && threadIdx.x == 0)
        wait_for_previous();
}

/* With LATE the left operand's rows behind the first strip of tiles are split while that is multiplied, by warps of
 * gemm_split that have nothing to do. state: whether there are strays, rows taken, rows done of each 128.
 * A block that waits for rows has itself warps that take what is left, so none waits for ever. */
DEV void split_late(const struct lines &l, uint4 *planes, float2 *scales, int *state) {
    const int lane = (int)threadIdx.x % 32;
    for (;;) {
        const int line = __shfl_sync(0xffffffff, lane == 0 ? EARLY + atomicAdd(state + 1, 1) : 0, 0);
        if (line >= l.n)
            return;
        split_row<32, 0>(l, line, lane, planes, scales, nullptr, nullptr);
        asm volatile("fence.proxy.async;" ::: "memory");
        __threadfence();
        __syncwarp();
        if (lane == 0)
            asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(state + 2 + line / 128), "r"(1) : "memory");
    }
}
DEV void wait_for_rows(const int *state, int tile, int rows) {
    u32 done = 0;
    while (done != (u32)min(rows - tile * 128, 128))
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(done) : "l"(state + 2 + tile) : "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
}

/* ---- operands that are contiguous across lines ---- */
/* A cluster has 32 lines, each of its blocks 512 of K at a time, of which a thread has 8 for each of 4
 * neighbouring lines, twice. What a cluster holds in registers is read once: 4096 of K with 8 blocks. */
#define STRIP 32
#define AT_ONCE 512

struct strip { int b, line, k, stride; bool vectors; }; /* of this thread: its first line, first k, to the next ones */

DEV void load_part(float (&x)[8][4], const struct lines &l, const struct strip &s, int k) {
    EACH(i, 8) {
        const float *at = line_at(l, s.b, s.line) + (k + i) * l.step;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (k + i < l.k) {
            if (s.vectors)
                v = __ldg((const float4 *)at);
            else
                v = make_float4(s.line < l.n ? __ldg(at) : 0.0f, s.line + 1 < l.n ? __ldg(at + 1) : 0.0f,
                                s.line + 2 < l.n ? __ldg(at + 2) : 0.0f, s.line + 3 < l.n ? __ldg(at + 3) : 0.0f);
        }
        x[i][0] = v.x, x[i][1] = v.y, x[i][2] = v.z, x[i][3] = v.w;
    }
}
DEV void top_part(u32 (&top)[4], const float (&x)[8][4]) {
    EACH(i, 8)
        EACH(c, 4) top[c] = max(top[c], magnitude(x[i][c]));
}
DEV void split_part(const float (&x)[8][4], const struct lines &l, const struct strip &s, int k, const u32 (&top)[4],
                    uint4 *planes, u64 (&lost)[4]) {
    const int tiles = (l.n + 127) / 128, steps = (l.k + 63) / 64;
    if (k >= steps * 64)
        return;
    uint4 *tile = planes + tile_of(tiles, steps, s.b, s.line, k) * (TILE_BYTES / 16);
    EACH(c, 4) {
        float y[8];
        uint4 *to = tile + chunk_at((s.line + c) % 128, k / 8 % 8);
        EACH(i, 8) y[i] = x[i][c];
        lost[c] += loss8(y, top[c]);
        if (s.line + c < l.n)
            split8(y, scaling_of(top[c]).by, to[0], to[PLANE_BYTES / 16]);
    }
}

DEV u32 in_block(const void *shared, u32 block) {
    u32 there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"((u32)__cvta_generic_to_shared(shared)), "r"(block));
    return there;
}
DEV void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* Of each warp, the block, the cluster. */
struct strip_shared { u32 parts[8][STRIP], own[STRIP], tops[STRIP]; u64 losses[STRIP]; };

DEV void tops_of_cluster(u32 (&top)[4], struct strip_shared &m, u32 blocks) {
    const int t = (int)threadIdx.x, lane = t % 32;
    EACH(c, 4)
        EACH(i, 2) top[c] = max(top[c], __shfl_xor_sync(0xffffffff, top[c], 8 << i));
    if (lane < 8)
        EACH(c, 4) m.parts[t / 32][lane * 4 + c] = top[c];
    __syncthreads();
    if (t < STRIP) {
        u32 most = 0;
        EACH(i, 8) most = max(most, m.parts[i][t]);
        m.own[t] = most, m.tops[t] = 0, m.losses[t] = 0;
    }
    cluster_sync();
    if (t / 32 < (int)blocks) {
        u32 theirs;
        asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(theirs) : "r"(in_block(&m.own[lane], (u32)t / 32)) : "memory");
        atomicMax(&m.tops[lane], theirs);
    }
    __syncthreads();
    EACH(c, 4) top[c] = m.tops[t % 8 * 4 + c];
}

extern "C" __global__ void __launch_bounds__(256, 2)
    split_columns(const KG_T_input *left, const KG_T_input *right, KG_T_left_planes *left_planes,
                  KG_T_right_planes *right_planes, KG_T_scales *scales, KG_T_state *state, OPERAND_ARGUMENTS) {
    __shared__ struct strip_shared m[1];
    u32 rank, blocks;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
    const int t = (int)threadIdx.x, at = (int)(blockIdx.x / blocks), of_left = l_across ? lb * ((ln + STRIP - 1) / STRIP) : 0;
    const bool is_right = at >= of_left;
    const struct lines all[2] = {LEFT_LINES, RIGHT_LINES}, l = is_right ? all[1] : all[0];
    const int strips = (l.n + STRIP - 1) / STRIP, i = is_right ? at - of_left : at, b = i / strips;
    const int line0 = (i - b * strips) * STRIP;
    struct strip s = {b, line0 + t % 8 * 4, (int)rank * AT_ONCE + t / 8 * 8, (int)blocks * AT_ONCE, false};
    s.vectors = s.line + 4 <= l.n && l.step % 4 == 0 && ((u64)line_at(l, b, s.line) & 15) == 0;
    let_next_begin();
    if (blockIdx.x == 0 && t == 0)
        *state = 0;
    float x[2][8][4], y[8][4];
    u32 top[4] = {0, 0, 0, 0};
    u64 lost[4] = {0, 0, 0, 0};
    EACH(h, 2) load_part(x[h], l, s, s.k + h * 256);
    EACH(h, 2) top_part(top, x[h]);
#pragma unroll 1
    for (int k = s.k + s.stride, h = 0; k < l.k; k += h * s.stride, h ^= 1)
        load_part(y, l, s, k + h * 256), top_part(top, y);
    tops_of_cluster(top, *m, blocks);
    uint4 *planes = (uint4 *)(is_right ? (void *)right_planes : (void *)left_planes);
    EACH(h, 2) split_part(x[h], l, s, s.k + h * 256, top, planes, lost);
#pragma unroll 1
    for (int k = s.k + s.stride, h = 0; k < (l.k + 63) / 64 * 64; k += h * s.stride, h ^= 1)
        load_part(y, l, s, k + h * 256), split_part(y, l, s, k + h * 256, top, planes, lost);
    EACH(c, 4)
        if (lost[c] != 0)
            asm volatile("red.relaxed.cluster.shared::cluster.add.u64 [%0], %1;"
                         ::"r"(in_block(&m->losses[t % 8 * 4 + c], 0)), "l"(lost[c]) : "memory");
    cluster_sync(); /* and no block goes while another reads what it has */
    if (rank == 0 && t < STRIP && line0 + t < l.n)
        ((float2 *)scales)[(is_right ? lb * ln : 0) + b * l.n + line0 + t] =
            factors_of(scaling_of(m->tops[t]), m->tops[t], m->losses[t], l.k);
}

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
DEV void load_bytes(u32 to, const u8 *from, u32 bytes, u32 bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(to), "l"(from), "r"(bytes), "r"(bar) : "memory");
}
DEV void load_bytes_to_both(u32 to, const u8 *from, u32 bytes, u32 bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
                 ::"r"(to), "l"(from), "r"(bytes), "r"(bar), "h"((half_bits)3) : "memory");
}
DEV void set_shared(u32 at, float2 v) { asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(v.x), "f"(v.y) : "memory"); }
DEV float4 shared4(u32 at) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at) : "memory");
    return v;
}
/* No read of d moves above the wait before it. */
DEV void pin(float (&d)[64]) { EACH(i, 64) asm volatile("" : "+f"(d[i])::"memory"); }
/* K-major, 128-byte swizzle, 1024 bytes from 8 lines to the next. */
DEV u64 operand_at(u32 address) { return (u64)((address & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)64 << 32 | (u64)1 << 62; }
#define OF(d, i)                                                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define S64 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
            "%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
            "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define PRODUCT                                                                                    \
    DEV void product(float (&d)[64], u64 a, u64 b, int more) {                                     \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0; "                                     \
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" S64 "}, %64, %65, p, 1, 1, 0, 0; }" \
                     : OF(d, 0), OF(d, 8), OF(d, 16), OF(d, 24), OF(d, 32), OF(d, 40), OF(d, 48), OF(d, 56) \
                     : "l"(a), "l"(b), "r"(more));                                                 \
    }
PRODUCT
DEV void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/* ---- units of work ---- */
struct sizes { int b, m, n, k, tiles_m, tiles_n, steps; }; /* tiles of a cluster; steps of 64 in K */
struct unit { int b, split, m, n, first, last; };          /* m, n: of the cluster; steps first to last - 1 */

DEV struct sizes sizes_of(int b, int m, int n, int k) {
    return {b, m, n, k, (m + 128 * CLUSTER_M - 1) / (128 * CLUSTER_M), (n + 128 * CLUSTER_N - 1) / (128 * CLUSTER_N), (k + 63) / 64};
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

/* ---- the feeder ---- */
struct feeder {
    const u8 *left, *right;
    const int *state;
    u32 shared, full, empty;
    int rank_m, rank_n, left_batches, right_batches; /* batches 0: the operand is one for all of b */
};
/* A shared operand's tile: each block of the pair loads one plane to both. */
DEV void load_tile(u32 to, const u8 *from, u32 full, bool alike, int rank) {
    alike ? load_bytes_to_both(to + rank * PLANE_BYTES, from + rank * PLANE_BYTES, PLANE_BYTES, full) : load_bytes(to, from, TILE_BYTES, full);
}
/* With BACK every second round of units goes from the last of K to the first, whose operands the L2 has yet. */
DEV void feed(const struct feeder &f, const struct sizes &s) {
    struct ring r = {0, 0};
    const int tiles_m = (s.m + 127) / 128, tiles_n = (s.n + 127) / 128;
#pragma unroll 1
    for (int t = (int)blockIdx.x / CLUSTER; t < units_of(s); t += (int)gridDim.x / CLUSTER) {
        const struct unit u = unit_of(s, t);
        /* What hangs over the last tile multiplies that once more, and is not stored. */
        const int m = min(u.m * CLUSTER_M + f.rank_m, tiles_m - 1), n = min(u.n * CLUSTER_N + f.rank_n, tiles_n - 1);
        const u8 *left = f.left + ((long long)(f.left_batches ? u.b : 0) * tiles_m + m) * s.steps * TILE_BYTES;
        const u8 *right = f.right + ((long long)(f.right_batches ? u.b : 0) * tiles_n + n) * s.steps * TILE_BYTES;
        const bool back = BACK && t / ((int)gridDim.x / CLUSTER) % 2 != 0;
        if (LATE && m * 128 >= EARLY)
            wait_for_rows(f.state, m, s.m);
#pragma unroll 1
        for (int i = u.first; i < u.last; i++) {
            const int k = back ? u.first + u.last - 1 - i : i;
            const u32 full = f.full + 8 * r.stage, to = f.shared + r.stage * STAGE_BYTES;
            barrier_wait(f.empty + 8 * r.stage, r.phase ^ 1); /* in both blocks, when our part goes to both */
            barrier_expect(full, STAGE_BYTES);
            load_tile(to, left + (long long)k * TILE_BYTES, full, CLUSTER_N > 1, f.rank_n);
            load_tile(to + TILE_BYTES, right + (long long)k * TILE_BYTES, full, CLUSTER_M > 1, f.rank_m);
            step(r);
        }
    }
    /* The peer may reach this block's barriers until it has released all its stages. */
    EACH(i, STAGES) {
        barrier_wait(f.empty + 8 * r.stage, r.phase ^ 1);
        step(r);
    }
}

/* ---- the consumers ---- */
/* The second consumer begins LAG stages after the first and stays behind: then one of them multiplies while
 * the other is at its epilogue. */
DEV void lag_over() { asm volatile("bar.arrive %0, 256;" ::"r"(5) : "memory"); }
DEV void lag_wait() { asm volatile("bar.sync %0, 256;" ::"r"(5) : "memory"); }

/* sums and low: high high, and the corrections times LOW_SCALE, of a consumer's 64 x 128. */
DEV void multiply(float (&sums)[64], float (&low)[64], const struct unit &u, struct ring &r, u32 left, u32 right,
                  u32 full, u32 empty, int tid, int &lag) {
    float high[64];
    EACH(i, 64) sums[i] = 0.0f;
#pragma unroll 1
    for (int k = u.first; k < u.last; k++) {
        barrier_wait(full + 8 * r.stage, r.phase);
        const u32 at = r.stage * STAGE_BYTES;
        const u64 a = operand_at(left + at), a_low = operand_at(left + PLANE_BYTES + at);
        const u64 b = operand_at(right + at), b_low = operand_at(right + PLANE_BYTES + at);
        products_fence();
        EACH(i, 4) product(high, a + 2 * i, b + 2 * i, i);
        products_commit();
        EACH(i, 4) product(low, a + 2 * i, b_low + 2 * i, (k > u.first) | i);
        EACH(i, 4) product(low, a_low + 2 * i, b + 2 * i, 1);
        products_commit();
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); /* the corrections run on */
        pin(high);
        EACH(i, 64) sums[i] += high[i];
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (tid < CLUSTER)
            barrier_arrive_at(empty + 8 * r.stage, (u32)tid);
        if (LAG && --lag == 0)
            lag_over();
        step(r);
    }
    pin(low);
}

#if HAS_BIAS
#define BIAS_ARGUMENT const KG_T_bias *bias,
#else
#define BIAS_ARGUMENT
#endif
struct target { float *output, *partial; };
/* With LATE they may be written during this launch. */
DEV float2 factors_at(const float2 *at) {
    const volatile float *fresh = (const volatile float *)at;
    return LATE ? make_float2(fresh[0], fresh[1]) : __ldg(at);
}

/* to: the element (row, column), this thread's first. */
DEV void store(const float (&x)[64], float *to, const struct sizes &s, int row, int column) {
    const bool in[2] = {row < s.m, row + 8 < s.m};
    float *const at[2] = {to, to + 8ll * s.n};
    if (s.n % 2 == 0) {
        EACH(j, 16)
            EACH(h, 2)
                if (in[h] && column + 8 * j < s.n)
                    *(float2 *)(at[h] + 8 * j) = make_float2(x[4 * j + 2 * h], x[4 * j + 2 * h + 1]);
    } else {
        EACH(j, 16)
            EACH(i, 4)
                if (in[i / 2] && column + 8 * j + i % 2 < s.n)
                    at[i / 2][8 * j + i % 2] = x[4 * j + i];
    }
}

/* factors: of this thread's two rows; at: shared memory with those of the tile's columns, then the bias. */
DEV void finish(float (&sums)[64], const float (&low)[64], const float2 (&factors)[2], u32 at, KG_PROGRAMS programs,
                const struct target &to, const struct sizes &s, const struct unit &u, int row, int column) {
    const struct kg_epilogue_row rows[2] = {kg_epilogue_row(programs, u.b, row), kg_epilogue_row(programs, u.b, row + 8)};
    float *out = SPLIT > 1 ? to.partial + ((long long)u.split * s.b + u.b) * s.m * s.n : to.output + (long long)u.b * s.m * s.n;
    EACH(j, 16) {
        const float4 g = shared4(at + 64 * j + (int)threadIdx.x % 4 * 16);
        const int c = column + 8 * j;
        float2 bias = make_float2(0.0f, 0.0f);
#if HAS_BIAS
        if (SPLIT == 1)
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(bias.x), "=f"(bias.y)
                         : "r"(at + 1024 + 32 * j + (int)threadIdx.x % 4 * 8) : "memory");
#endif
        EACH(h, 2) {
            const int i = 4 * j + 2 * h, r = row + 8 * h;
            float x = fmaf(low[i], 1.0f / LOW_SCALE, sums[i]) * (factors[h].x * g.x) * (factors[h].y * g.y);
            float y = fmaf(low[i + 1], 1.0f / LOW_SCALE, sums[i + 1]) * (factors[h].x * g.z) * (factors[h].y * g.w);
            if (SPLIT == 1) {
                x = kg_epilogue(programs, rows[h], x + bias.x, u.b, r, c);
                y = kg_epilogue(programs, rows[h], y + bias.y, u.b, r, c + 1);
            }
            sums[i] = x, sums[i + 1] = y;
        }
    }
    store(sums, out + (long long)row * s.n + column, s, row, column);
}

extern "C" __global__ void __launch_bounds__(384, 1)
    gemm_split(BIAS_ARGUMENT KG_T_left_planes *left_planes, const KG_T_right_planes *right_planes, KG_T_scales *scales,
               KG_T_state *state, const KG_T_input *left, KG_T_output *output, KG_T_partial *partial, KG_PROGRAMS programs,
               int batches, int m, int n, int k, int left_batches, int right_batches, long long l1, long long lk) {
    extern __shared__ u8 raw[];
    const u32 shared = ((u32)__cvta_generic_to_shared(raw) + 1023) & ~1023u;
    const u32 full = shared + BARRIERS_AT, empty = full + 8 * STAGES;
    const int warpgroup = __shfl_sync(0xffffffff, (int)threadIdx.x / 128, 0);
    const struct sizes s = sizes_of(batches, m, n, k);
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    const int rank_m = (int)rank % CLUSTER_M, rank_n = (int)rank / CLUSTER_M;
    if (threadIdx.x == 0) {
        EACH(i, STAGES) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, 2 * CLUSTER);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();
    let_next_begin();
    wait_for_previous(); /* for the planes */
    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(LATE ? 56 : 24));
        if (LATE && threadIdx.x >= 32)
            split_late({left, 0, l1, lk, 1, m, k}, (uint4 *)left_planes, (float2 *)scales, state);
        if (threadIdx.x == 0)
            feed({(const u8 *)left_planes, (const u8 *)right_planes, (const int *)state, shared, full, empty, rank_m, rank_n, left_batches, right_batches}, s);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(LATE ? 224 : 240));
    const int w = warpgroup - 1, tid = (int)threadIdx.x % 128, lane = tid % 32;
    const float2 *of_rows = (const float2 *)scales, *of_columns = of_rows + (long long)(left_batches ? batches : 1) * m;
    const struct target to = {output, partial};
    struct ring r = {0, 0};
    u32 at = shared + FACTORS_AT + w * 1536; /* and in turn 3072 behind: nobody waits for who reads */
    u32 other = at + 3072;
    float sums[64], low[64];
    int lag = w == 0 ? LAG : 0;
    if (LAG && w == 1)
        lag_wait();
#pragma unroll 1
    for (int t = (int)blockIdx.x / CLUSTER; t < units_of(s); t += (int)gridDim.x / CLUSTER) {
        const struct unit u = unit_of(s, t);
        const int row = (u.m * CLUSTER_M + rank_m) * 128 + w * 64 + tid / 32 * 16 + lane / 4;
        const int column = (u.n * CLUSTER_N + rank_n) * 128, left_batch = left_batches ? u.b : 0, right_batch = right_batches ? u.b : 0;
        const float2 none = make_float2(0.0f, 0.0f); /* all of these are on their way while the products run */
        if (LATE)
            barrier_wait(full + 8 * r.stage, r.phase); /* then the rows are split, and so these are known */
        const float2 factors[2] = {row < m ? factors_at(of_rows + left_batch * m + row) : none,
                                   row + 8 < m ? factors_at(of_rows + left_batch * m + row + 8) : none};
        const float2 of_column = column + tid < n ? __ldg(of_columns + right_batch * n + column + tid) : none;
#if HAS_BIAS
        const float of_bias = bias && column + tid < n ? __ldg(bias + column + tid) : 0.0f;
#endif
        multiply(sums, low, u, r, shared + w * 8192, shared + TILE_BYTES, full, empty, tid, lag);
        if (is_stray(factors[0]) || is_stray(factors[1]) || is_stray(of_column))
            *state = 1;
        set_shared(at + tid * 8, of_column);
#if HAS_BIAS
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(at + 1024 + tid * 4), "f"(of_bias) : "memory");
#endif
        asm volatile("bar.sync %0, 128;" ::"r"(1 + w) : "memory");
        finish(sums, low, factors, at, programs, to, s, u, row, column + lane % 4 * 2);
        const u32 next = other;
        other = at, at = next;
    }
    if (LAG && lag > 0)
        lag_over(); /* of fewer stages in all */
}

/* Adds up what the blocks of a tile left, four elements a thread. */
extern "C" __global__ void __launch_bounds__(256)
    gemm_sum(BIAS_ARGUMENT KG_T_output *output, const KG_T_partial *partial, KG_PROGRAMS programs, long long all, int m, int n) {
    const long long first = ((long long)blockIdx.x * 256 + (int)threadIdx.x) * 4;
    wait_for_previous();
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
                x[i] += __ldg(bias + column);
#endif
            output[first + i] = kg_epilogue(programs, kg_epilogue_row(programs, b, row), x[i], b, row, column);
        }
        if (++column == n)
            column = 0, line++;
    }
}

/* ---- strays ---- */
/* A tile of 64 x 64 by FFMA; rows or columns from a list where there is one. */
struct patch {
    const float *left, *right;
    long long l1, lk, r1, rk;
    const int *rows, *columns; /* NULL: from 0 on */
    int m, n, k;               /* how many rows and columns */
};
DEV int listed(const int *of, int i) { return of ? of[i] : i; }

DEV void stray_tile(const struct patch &p, float (*a)[68], float (*b)[68], int row0, int column0, float (&sum)[4][4]) {
    const int t = (int)threadIdx.x, line = t % 64, k0 = t / 64 * 4, ty = t / 16, tx = t % 16;
    const bool row_in = row0 + line < p.m, column_in = column0 + line < p.n;
    const float *from_left = p.left + (row_in ? listed(p.rows, row0 + line) : 0) * p.l1;
    const float *from_right = p.right + (column_in ? listed(p.columns, column0 + line) : 0) * p.r1;
    EACH(i, 16) sum[i / 4][i % 4] = 0.0f;
#pragma unroll 1
    for (int k = 0; k < p.k; k += 16) {
        __syncthreads();
        EACH(i, 4) {
            const bool in = k + k0 + i < p.k;
            a[k0 + i][line] = row_in && in ? from_left[(k + k0 + i) * p.lk] : 0.0f;
            b[k0 + i][line] = column_in && in ? from_right[(k + k0 + i) * p.rk] : 0.0f;
        }
        __syncthreads();
        /* Zeros behind the end of K would make NaN of nothing, but not of an Inf: there are none of it. */
        EACH(i, 16) {
            const float4 x = *(const float4 *)&a[i][ty * 4], y = *(const float4 *)&b[i][tx * 4];
            const float l[4] = {x.x, x.y, x.z, x.w}, r[4] = {y.x, y.y, y.z, y.w};
            EACH(u, 4)
                EACH(v, 4) sum[u][v] = fmaf(l[u], r[v], sum[u][v]);
        }
    }
}

/* Every block finds them for itself and leaves the same list in the same place. 1024 lines at once. */
DEV int list_strays(const float2 *of, int n, int *to, int *parts) {
    const int t = (int)threadIdx.x, lane = t % 32, warp = t / 32;
    int count = 0;
    for (int first = 0; first < n; first += 1024) {
        u32 votes[4];
        EACH(i, 4) {
            const int at = first + i * 256 + t;
            votes[i] = __ballot_sync(0xffffffff, at < n && is_stray(of[min(at, n - 1)]));
        }
        __syncthreads();
        if (lane == 0)
            EACH(i, 4) parts[i * 8 + warp] = __popc(votes[i]);
        __syncthreads();
        EACH(i, 4)
            EACH(w, 8) {
                if (w == warp && (votes[i] >> lane & 1) != 0)
                    to[count + __popc(votes[i] & ((1u << lane) - 1))] = first + i * 256 + t;
                count += parts[i * 8 + w];
            }
    }
    __syncthreads();
    return count;
}

extern "C" __global__ void __launch_bounds__(256)
    gemm_strays(const KG_T_input *left, const KG_T_input *right, BIAS_ARGUMENT KG_T_output *output, const KG_T_scales *scales,
                const KG_T_state *state, KG_T_strays *strays, KG_PROGRAMS programs, int batches, int m, int n, int k, long long l0, long long l1,
                long long lk, long long r0, long long r1, long long rk) {
    __shared__ alignas(16) float a[16][68];
    __shared__ alignas(16) float b[16][68];
    __shared__ int parts[32];
    wait_for_previous();
    if (*state == 0)
        return;
    const int ty = (int)threadIdx.x / 16, tx = (int)threadIdx.x % 16;
    const int lb = l0 ? batches : 1;
    int of_left = 0, of_right = 0;
    long long before = 0; /* tiles so far, of which each block takes those that are its own */
    for (int batch = 0; batch < batches; batch++)
        for (int which = 0; which < 2; which++) {
            const int own = (which ? r0 : l0) ? batch : 0, lines = which ? n : m;
            const long long at = (which ? (long long)lb * m : 0) + (long long)own * lines;
            int *list = (int *)strays + at;
            if (own == batch) {
                const int listed = list_strays((const float2 *)scales + at, lines, list, parts);
                which ? of_right = listed : of_left = listed;
            }
            const int count = which ? of_right : of_left;
            const struct patch p = {left + batch * l0, right + batch * r0, l1, lk, r1, rk, which ? nullptr : list, which ? list : nullptr,
                                    which ? m : count, which ? count : n, k};
            const int tiles_n = (p.n + 63) / 64, tiles = (p.m + 63) / 64 * tiles_n;
            const int first = (int)((gridDim.x - before % gridDim.x + blockIdx.x) % gridDim.x);
            for (int t = first; t < tiles; t += (int)gridDim.x) {
                const int row0 = t / tiles_n * 64, column0 = t % tiles_n * 64;
                float sum[4][4];
                stray_tile(p, a, b, row0, column0, sum);
                EACH(i, 4)
                    EACH(j, 4) {
                        const int i_at = row0 + ty * 4 + i, j_at = column0 + tx * 4 + j;
                        if (i_at >= p.m || j_at >= p.n)
                            continue;
                        const int row = listed(p.rows, i_at), column = listed(p.columns, j_at);
                        float x = sum[i][j];
#if HAS_BIAS
                        x += bias ? __ldg(bias + column) : 0.0f;
#endif
                        output[((long long)batch * m + row) * n + column] =
                            kg_epilogue(programs, kg_epilogue_row(programs, batch, row), x, batch, row, column);
                    }
            }
            before += tiles;
        }
}
