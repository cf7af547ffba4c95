/* kgen
{ "format": 1, "op": "matmul", "target": "cuda", "min_arch": "sm_80",
  "tunables": {"BLOCK_M": [128, 64, 32, 16], "BLOCK_N": [128, 64, 256], "WARPS_M": [2, 1, 4], "WARPS_N": [4, 2, 8], "STAGES": [3, 4, 2, 6],
               "SPLIT": [1, 2, 3, 4, 6, 8, 16], "LEFT_TURNED": [0, 1], "RIGHT_TURNED": [0, 1], "GROUP": [8, 16, 4]},
  "require": "(input.dtype == float16 || input.dtype == bfloat16) && K >= 1 && max(M, N) <= 1073741824 && K <= 1073741824 && LEFT_TURNED == (input.stride(2) != 1 && input.stride(1) == 1) && RIGHT_TURNED == (other.stride(1) == 1 && other.stride(2) != 1) && BLOCK_M % (16 * WARPS_M) == 0 && BLOCK_N % (16 * WARPS_N) == 0 && BLOCK_M * BLOCK_N <= 4096 * WARPS_M * WARPS_N && BLOCK_M * BLOCK_N >= 256 * WARPS_M * WARPS_N && SPLIT <= ceil_div(K, 32) && (SPLIT == 1 || B * ceil_div(M, BLOCK_M) * ceil_div(N, BLOCK_N) * (SPLIT - 1) < 2 * NUM_SMS) && STAGES * 64 * (BLOCK_M + BLOCK_N + 16) + STAGES * 16 * (BLOCK_M + BLOCK_N) <= MAX_SHARED && B * ceil_div(M, BLOCK_M) * ceil_div(N, BLOCK_N) * SPLIT < 1073741824",
  "holes": ["EPILOGUE"],
  "workspace": {"partial": {"dtype": "float32", "shape": ["SPLIT == 1 ? 1 : SPLIT * B * M", "SPLIT == 1 ? 1 : N"]}},
  "launches": [
    {"kernel": "gemm_mma", "grid": ["B * SPLIT * ceil_div(M, BLOCK_M) * ceil_div(N, BLOCK_N)"], "block": ["32 * WARPS_M * WARPS_N"],
     "shared": "2 * STAGES * ((LEFT_TURNED ? 32 * (BLOCK_M + 8) : BLOCK_M * 40) + (RIGHT_TURNED ? BLOCK_N * 40 : 32 * (BLOCK_N + 8)))",
     "args": ["input", "other", "output", "partial", "programs", {"i32": "B"}, {"i32": "M"}, {"i32": "N"}, {"i32": "K"},
              {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"}, {"i64": "input.stride(2)"}, {"i64": "other.stride(0)"}, {"i64": "other.stride(2)"}, {"i64": "other.stride(1)"}]},
    {"kernel": "gemm_sum", "when": "SPLIT > 1", "grid": ["ceil_div(B * M * N, 1024)"], "block": [256],
     "args": ["output", "partial", "programs", {"i64": "B * M * N"}, {"i32": "M"}, {"i32": "N"}]}] }
*/
#define HAS_BIAS 0
/* Products of half types by mma.sync, from sm_80 on; any shape, strides and alignment.
 *
 * A block does BLOCK_M x BLOCK_N, its warps WARPS_M x WARPS_N parts of it in registers. 32 of K at a time
 * pass through STAGES shared buffers by cp.async. An operand lies there as it lies in memory, along K or
 * (LEFT_TURNED, and RIGHT_TURNED = 0) across it, and ldmatrix turns what must be turned; rows are padded
 * by 16 bytes, so that it meets no bank twice. Sixteen bytes that are not aligned, or not neighbours, go
 * by element. With SPLIT several blocks share a tile's K and gemm_sum adds up in order what they leave in
 * fp32. Neighbouring blocks work in strips of GROUP rows of tiles, for the L2.
 *
 * Traffic: (BLOCK_M + BLOCK_N) * 64 bytes a block and step out of the L2. Floor: 2 * B * M * N * K flops
 * over the rate of mma.sync: the peak of sm_80, about 0.6 of it on sm_90. BLOCK_M of 16 with SPLIT is for
 * few rows, where the other operand's bytes are the floor.
 *
 * Launch bounds: 32 * WARPS_M * WARPS_N. Refuses fp32 (fma.cu). */
#define DEV static __device__ __forceinline__
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)
#define BLOCK_K 32
#define THREADS (32 * WARPS_M * WARPS_N)
#define OWN_M (BLOCK_M / WARPS_M) /* of a warp */
#define OWN_N (BLOCK_N / WARPS_N)
#define TILES_M (OWN_M / 16)
#define TILES_N (OWN_N / 8)
/* Halves from one line of shared memory to the next, and in all. */
#define LEFT_PITCH (LEFT_TURNED ? BLOCK_M + 8 : BLOCK_K + 8)
#define RIGHT_PITCH (RIGHT_TURNED ? BLOCK_K + 8 : BLOCK_N + 8)
#define LEFT_HALVES (LEFT_PITCH * (LEFT_TURNED ? BLOCK_K : BLOCK_M))
#define RIGHT_HALVES (RIGHT_PITCH * (RIGHT_TURNED ? BLOCK_N : BLOCK_K))
#define STAGE_HALVES (LEFT_HALVES + RIGHT_HALVES)

typedef unsigned short half_bits;
typedef unsigned int u32;
typedef unsigned long long u64;

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
/* d += a b, 16 x 8 x 16. */
DEV void product(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if KG_DTYPE_input == KG_BF16
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
DEV void load4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
DEV void load4_turned(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
/* 16 bytes, of which the first `bytes` are read and the rest are zero. */
DEV void copy_async(u32 to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

/* ---- operands ---- */
/* `lines` lines of `n` elements: along K where the operand is not turned, else across it. */
struct operand {
    const half_bits *at;
    long long line, step; /* elements between lines and between a line's elements */
    int lines, n;
    bool vectors;         /* every 16 bytes of a line are aligned neighbours */
};
DEV struct operand operand_of(const half_bits *at, long long line, long long step, int lines, int n) {
    return {at, line, step, lines, n, step == 1 && (((u64)at | (u64)line * 2) & 15) == 0};
}
/* LINES lines from `first` on, WIDTH elements from `column` on, zeros where there are none. */
template <int LINES, int WIDTH> DEV void copy(half_bits *to, const struct operand &o, int first, int column) {
    constexpr int CHUNKS = WIDTH / 8;
#pragma unroll
    for (int i = 0; i < LINES * CHUNKS; i += THREADS) {
        const int at = i + (int)threadIdx.x, line = at / CHUNKS, c = at % CHUNKS * 8;
        if (LINES * CHUNKS % THREADS != 0 && at >= LINES * CHUNKS)
            break;
        const int left = first + line < o.lines ? min(max(o.n - column - c, 0), 8) : 0;
        half_bits *there = to + line * (WIDTH + 8) + c;
        const half_bits *from = o.at + (left > 0 ? (first + line) * o.line + (column + c) * o.step : 0);
        if (o.vectors) {
            copy_async((u32)__cvta_generic_to_shared(there), from, left * 2);
        } else {
            u32 word[4];
            EACH(e, 4) {
                word[e] = 2 * e < left ? from[2 * e * o.step] : 0u;
                word[e] |= (2 * e + 1 < left ? from[(2 * e + 1) * o.step] : 0u) << 16;
            }
            *(uint4 *)there = make_uint4(word[0], word[1], word[2], word[3]);
        }
    }
}
DEV void copy_stage(half_bits *to, const struct operand &left, const struct operand &right, int m, int n, int k) {
    if (LEFT_TURNED)
        copy<BLOCK_K, BLOCK_M>(to, left, k, m);
    else
        copy<BLOCK_M, BLOCK_K>(to, left, m, k);
    if (RIGHT_TURNED)
        copy<BLOCK_N, BLOCK_K>(to + LEFT_HALVES, right, n, k);
    else
        copy<BLOCK_K, BLOCK_N>(to + LEFT_HALVES, right, k, n);
}

/* sums += a stage's product. */
DEV void multiply(float (&sums)[TILES_M][TILES_N][4], u32 left, u32 right, int warp_m, int warp_n) {
    const int lane = (int)threadIdx.x % 32, low = lane % 8, first = lane / 8 % 2 * 8, second = lane / 16 * 8;
    EACH(k, BLOCK_K / 16) {
        u32 a[TILES_M][4], b[TILES_N / 2][4];
        EACH(i, TILES_M) {
            const int m = warp_m * OWN_M + i * 16;
            if (LEFT_TURNED) /* matrices: rows, then k, in the order of the fragment's registers */
                load4_turned(a[i], left + ((k * 16 + second + low) * LEFT_PITCH + m + first) * 2);
            else
                load4(a[i], left + ((m + first + low) * LEFT_PITCH + k * 16 + second) * 2);
        }
        EACH(j, TILES_N / 2) {
            const int n = warp_n * OWN_N + j * 16;
            if (RIGHT_TURNED)
                load4(b[j], right + ((n + second + low) * RIGHT_PITCH + k * 16 + first) * 2);
            else
                load4_turned(b[j], right + ((k * 16 + first + low) * RIGHT_PITCH + n + second) * 2);
        }
        EACH(i, TILES_M)
            EACH(j, TILES_N) product(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
}

#if HAS_BIAS
#define BIAS_ARGUMENT const KG_T_bias *bias,
#define BIAS_OF(column) (bias && (column) < n ? widen(__ldg(bias + (column))) : 0.0f)
#else
#define BIAS_ARGUMENT
#define BIAS_OF(column) 0.0f
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
    gemm_mma(const KG_T_input *left, const KG_T_input *right, BIAS_ARGUMENT KG_T_output *output, KG_T_partial *partial,
             KG_PROGRAMS programs, int batches, int m, int n, int k, long long l0, long long l1, long long lk, long long r0,
             long long r1, long long rk) {
    extern __shared__ half_bits stages[];
    const int tiles_m = (m + BLOCK_M - 1) / BLOCK_M, tiles_n = (n + BLOCK_N - 1) / BLOCK_N, tiles = tiles_m * tiles_n;
    const int outer = (int)blockIdx.x / tiles, tile = (int)blockIdx.x - outer * tiles, split = outer % SPLIT, b = outer / SPLIT;
    const int strip = tile / (GROUP * tiles_n), rows = min(tiles_m - strip * GROUP, GROUP), r = tile - strip * GROUP * tiles_n;
    const int row0 = (strip * GROUP + r % rows) * BLOCK_M, column0 = r / rows * BLOCK_N;
    const int steps = (k + BLOCK_K - 1) / BLOCK_K;
    const int first = (int)((long long)steps * split / SPLIT), last = (int)((long long)steps * (split + 1) / SPLIT);
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, warp_m = warp % WARPS_M, warp_n = warp / WARPS_M;
    const struct operand a = LEFT_TURNED ? operand_of(left + b * l0, lk, l1, k, m) : operand_of(left + b * l0, l1, lk, m, k);
    const struct operand c = RIGHT_TURNED ? operand_of(right + b * r0, r1, rk, n, k) : operand_of(right + b * r0, rk, r1, k, n);
    float sums[TILES_M][TILES_N][4];
    EACH(i, TILES_M)
        EACH(j, TILES_N)
            EACH(e, 4) sums[i][j][e] = 0.0f;
    EACH(s, STAGES - 1) {
        if (first + s < last)
            copy_stage(stages + s * STAGE_HALVES, a, c, row0, column0, (first + s) * BLOCK_K);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
#pragma unroll 1
    for (int s = first; s < last; s++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();
        /* The buffer of the step before, which everybody has left. */
        if (s + STAGES - 1 < last)
            copy_stage(stages + (s - first + STAGES - 1) % STAGES * STAGE_HALVES, a, c, row0, column0, (s + STAGES - 1) * BLOCK_K);
        asm volatile("cp.async.commit_group;" ::: "memory");
        const u32 at = (u32)__cvta_generic_to_shared(stages + (s - first) % STAGES * STAGE_HALVES);
        multiply(sums, at, at + LEFT_HALVES * 2, warp_m, warp_n);
    }
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    const long long lines = (long long)batches * m;
    EACH(i, TILES_M)
        EACH(h, 2) {
            const int row = row0 + warp_m * OWN_M + i * 16 + lane / 4 + h * 8;
            const struct kg_epilogue_row of_row = kg_epilogue_row(programs, b, row);
            if (row >= m)
                continue;
            EACH(j, TILES_N) {
                const int column = column0 + warp_n * OWN_N + j * 8 + lane % 4 * 2;
                float x = sums[i][j][2 * h], y = sums[i][j][2 * h + 1];
                const long long at = ((long long)b * m + row) * n + column;
                if (SPLIT > 1) {
                    if (column < n)
                        partial[split * lines * n + at] = x;
                    if (column + 1 < n)
                        partial[split * lines * n + at + 1] = y;
                    continue;
                }
                x = kg_epilogue(programs, of_row, x + BIAS_OF(column), b, row, column);
                y = kg_epilogue(programs, of_row, y + BIAS_OF(column + 1), b, row, column + 1);
                const u32 both = pack2(x, y);
                if (n % 2 == 0) {
                    if (column < n)
                        *(u32 *)(output + at) = both;
                } else {
                    if (column < n)
                        output[at] = (half_bits)both;
                    if (column + 1 < n)
                        output[at + 1] = (half_bits)(both >> 16);
                }
            }
        }
}

/* Adds up what the blocks of a tile left, four elements a thread. */
extern "C" __global__ void __launch_bounds__(256)
    gemm_sum(BIAS_ARGUMENT KG_T_output *output, const KG_T_partial *partial, KG_PROGRAMS programs, long long all, int m, int n) {
    const long long first = ((long long)blockIdx.x * 256 + (int)threadIdx.x) * 4;
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
            x[i] = kg_epilogue(programs, kg_epilogue_row(programs, b, row), x[i] + BIAS_OF(column), b, row, column);
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
