/* kgen
{ "format": 1, "op": "linear", "target": "cuda", "min_arch": "sm_80",
  "tunables": {"BLOCK_M": [128, 64, 32], "BLOCK_N": [128, 64, 32], "SIDE": [8, 4], "STEP": [16, 8, 32],
               "SPLIT": [1, 2, 3, 4, 6, 8, 16], "LEFT_TURNED": [0, 1], "RIGHT_TURNED": [1, 0], "GROUP": [8, 16, 4]},
  "require": "(!present(bias) || bias.contiguous) && input.dtype == float32 && K >= 1 && max(M, N) <= 1073741824 && K <= 1073741824 && LEFT_TURNED == (input.stride(1) != 1 && input.stride(0) == 1) && RIGHT_TURNED == (weight.stride(1) == 1 && weight.stride(0) != 1) && BLOCK_M * BLOCK_N >= 64 * SIDE * SIDE && BLOCK_M * BLOCK_N <= 256 * SIDE * SIDE && min(BLOCK_M, BLOCK_N) * STEP * SIDE * SIDE >= 4 * BLOCK_M * BLOCK_N && SPLIT <= ceil_div(K, STEP) && (SPLIT == 1 || ceil_div(M, BLOCK_M) * ceil_div(N, BLOCK_N) * (SPLIT - 1) < 2 * NUM_SMS) && ceil_div(M, BLOCK_M) * ceil_div(N, BLOCK_N) * SPLIT < 1073741824",
  "holes": ["EPILOGUE"],
  "workspace": {"partial": {"dtype": "float32", "shape": ["SPLIT == 1 ? 1 : SPLIT * M", "SPLIT == 1 ? 1 : N"]}},
  "launches": [
    {"kernel": "gemm_fma", "grid": ["SPLIT * ceil_div(M, BLOCK_M) * ceil_div(N, BLOCK_N)"], "block": ["BLOCK_M * BLOCK_N / (SIDE * SIDE)"],
     "args": ["input", "weight", "bias", "output", "partial", "programs", {"i32": 1}, {"i32": "M"}, {"i32": "N"}, {"i32": "K"},
              {"i64": 0}, {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"}, {"i64": 0}, {"i64": "weight.stride(0)"}, {"i64": "weight.stride(1)"}]},
    {"kernel": "gemm_sum", "when": "SPLIT > 1", "grid": ["ceil_div(M * N, 1024)"], "block": [256],
     "args": ["bias", "output", "partial", "programs", {"i64": "M * N"}, {"i32": "M"}, {"i32": "N"}]}] }
*/
#define HAS_BIAS 1
/* Products of float32 by FFMA, from sm_80 on; any shape, strides and alignment.
 *
 * A block does BLOCK_M x BLOCK_N, each thread SIDE x SIDE of it in registers, in groups of four rows and
 * four columns. STEP of K at a time pass through two shared buffers, one line of a tile's rows (columns)
 * for each k: while one is multiplied, what comes next is on its way to registers, four neighbours at a
 * time where they are aligned. With SPLIT several blocks share a tile's K and gemm_sum adds up in order.
 * Neighbouring blocks work in strips of GROUP rows of tiles, for the L2.
 *
 * Sums of long rows: one chain of FMAs over K, as torch's; its error is that of fp32.
 *
 * Floor: 2 * B * M * N * K flops over 256 a clock and multiprocessor.
 *
 * Launch bounds: BLOCK_M * BLOCK_N / SIDE^2. Refuses half types (mma.cu). */
#define DEV static __device__ __forceinline__
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)
#define THREADS (BLOCK_M * BLOCK_N / (SIDE * SIDE))
#define QUADS (SIDE / 4)                     /* groups of four of a thread, each way */
#define ACROSS_N (BLOCK_N / SIDE)            /* threads side by side */
#define LEFT_LOADS (BLOCK_M * STEP / 4 / THREADS)
#define RIGHT_LOADS (BLOCK_N * STEP / 4 / THREADS)
#define LEFT_PITCH (BLOCK_M + 4)
#define RIGHT_PITCH (BLOCK_N + 4)

typedef unsigned long long u64;

/* Lines of an operand, rows of the left one or columns of the right one; elements of K are `step` apart. */
struct operand {
    const float *at;
    long long line, step;
    int lines, k;
    bool vectors; /* four neighbours are aligned */
};
DEV struct operand operand_of(const float *at, long long line, long long step, int lines, int k, bool turned) {
    const long long far = turned ? line : step, next = turned ? step : line;
    return {at, line, step, lines, k, far == 1 && (((u64)at | (u64)next * 4) & 15) == 0};
}

/* This thread's loads of WIDTH lines by STEP of K: each four along K, or (TURNED) four lines. */
template <int WIDTH, int LOADS, int TURNED>
DEV void load(float (&x)[LOADS][4], const struct operand &o, int first, int k0, int end) {
    EACH(i, LOADS) {
        const int at = (i * THREADS + (int)threadIdx.x) * 4;
        const int line = first + (TURNED ? at % WIDTH : at / STEP), k = k0 + (TURNED ? at / WIDTH : at % STEP);
        const float *from = o.at + line * o.line + k * o.step;
        if (o.vectors && (TURNED ? line + 4 <= o.lines && k < end : line < o.lines && k + 4 <= end)) {
            const float4 v = __ldg((const float4 *)from);
            x[i][0] = v.x, x[i][1] = v.y, x[i][2] = v.z, x[i][3] = v.w;
        } else {
            EACH(e, 4) {
                const bool in = TURNED ? line + e < o.lines && k < end : line < o.lines && k + e < end;
                x[i][e] = in ? __ldg(from + e * (TURNED ? o.line : o.step)) : 0.0f;
            }
        }
    }
}
template <int WIDTH, int LOADS, int TURNED> DEV void put(float (*to)[WIDTH + 4], const float (&x)[LOADS][4]) {
    EACH(i, LOADS) {
        const int at = (i * THREADS + (int)threadIdx.x) * 4;
        if (TURNED)
            *(float4 *)&to[at / WIDTH][at % WIDTH] = make_float4(x[i][0], x[i][1], x[i][2], x[i][3]);
        else
            EACH(e, 4) to[at % STEP + e][at / STEP] = x[i][e];
    }
}

/* Row (column) i of a thread: groups of four, as far apart as all threads' groups are wide. */
DEV int place_of(int i, int thread, int side_by_side) { return i / 4 * side_by_side * 4 + thread * 4 + i % 4; }

DEV void multiply(float (&sums)[SIDE][SIDE], const float (*a)[LEFT_PITCH], const float (*b)[RIGHT_PITCH], int ty, int tx) {
    EACH(k, STEP) {
        float l[SIDE], r[SIDE];
        EACH(q, QUADS) {
            const float4 x = *(const float4 *)&a[k][place_of(q * 4, ty, BLOCK_M / SIDE)];
            const float4 y = *(const float4 *)&b[k][place_of(q * 4, tx, ACROSS_N)];
            l[4 * q] = x.x, l[4 * q + 1] = x.y, l[4 * q + 2] = x.z, l[4 * q + 3] = x.w;
            r[4 * q] = y.x, r[4 * q + 1] = y.y, r[4 * q + 2] = y.z, r[4 * q + 3] = y.w;
        }
        EACH(i, SIDE)
            EACH(j, SIDE) sums[i][j] = fmaf(l[i], r[j], sums[i][j]);
    }
}

#if HAS_BIAS
#define BIAS_ARGUMENT const KG_T_bias *bias,
#define BIAS_OF(column) (bias && (column) < n ? __ldg(bias + (column)) : 0.0f)
#else
#define BIAS_ARGUMENT
#define BIAS_OF(column) 0.0f
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
    gemm_fma(const KG_T_input *left, const KG_T_input *right, BIAS_ARGUMENT KG_T_output *output, KG_T_partial *partial,
             KG_PROGRAMS programs, int batches, int m, int n, int k, long long l0, long long l1, long long lk, long long r0,
             long long r1, long long rk) {
    __shared__ alignas(16) float a[2][STEP][LEFT_PITCH];
    __shared__ alignas(16) float b[2][STEP][RIGHT_PITCH];
    const int tiles_m = (m + BLOCK_M - 1) / BLOCK_M, tiles_n = (n + BLOCK_N - 1) / BLOCK_N, tiles = tiles_m * tiles_n;
    const int outer = (int)blockIdx.x / tiles, tile = (int)blockIdx.x - outer * tiles, split = outer % SPLIT, batch = outer / SPLIT;
    const int strip = tile / (GROUP * tiles_n), rows = min(tiles_m - strip * GROUP, GROUP), r = tile - strip * GROUP * tiles_n;
    const int row0 = (strip * GROUP + r % rows) * BLOCK_M, column0 = r / rows * BLOCK_N;
    const int steps = (k + STEP - 1) / STEP, ty = (int)threadIdx.x / ACROSS_N, tx = (int)threadIdx.x % ACROSS_N;
    const int first = (int)((long long)steps * split / SPLIT), last = (int)((long long)steps * (split + 1) / SPLIT);
    const struct operand left_lines = operand_of(left + batch * l0, l1, lk, m, k, LEFT_TURNED);
    const struct operand right_lines = operand_of(right + batch * r0, r1, rk, n, k, !RIGHT_TURNED);
    float sums[SIDE][SIDE], x[LEFT_LOADS][4], y[RIGHT_LOADS][4];
    EACH(i, SIDE)
        EACH(j, SIDE) sums[i][j] = 0.0f;
    load<BLOCK_M, LEFT_LOADS, LEFT_TURNED>(x, left_lines, row0, first * STEP, k);
    load<BLOCK_N, RIGHT_LOADS, !RIGHT_TURNED>(y, right_lines, column0, first * STEP, k);
#pragma unroll 1
    for (int s = first; s < last; s++) {
        const int buffer = (s - first) & 1; /* who still reads the other one has not passed the barrier below */
        put<BLOCK_M, LEFT_LOADS, LEFT_TURNED>(a[buffer], x);
        put<BLOCK_N, RIGHT_LOADS, !RIGHT_TURNED>(b[buffer], y);
        __syncthreads();
        if (s + 1 < last) {
            load<BLOCK_M, LEFT_LOADS, LEFT_TURNED>(x, left_lines, row0, (s + 1) * STEP, k);
            load<BLOCK_N, RIGHT_LOADS, !RIGHT_TURNED>(y, right_lines, column0, (s + 1) * STEP, k);
        }
        multiply(sums, a[buffer], b[buffer], ty, tx);
    }
    const long long all = (long long)batches * m * n;
    EACH(i, SIDE) {
        const int row = row0 + place_of(i, ty, BLOCK_M / SIDE);
        const struct kg_epilogue_row of_row = kg_epilogue_row(programs, batch, row);
        if (row >= m)
            continue;
        EACH(q, QUADS) {
            const int column = column0 + place_of(q * 4, tx, ACROSS_N);
            float *to = (SPLIT > 1 ? partial + split * all : output) + ((long long)batch * m + row) * n + column;
            float v[4];
            EACH(e, 4)
                v[e] = SPLIT > 1 ? sums[i][4 * q + e]
                                 : kg_epilogue(programs, of_row, sums[i][4 * q + e] + BIAS_OF(column + e), batch, row, column + e);
            if (n % 4 == 0) {
                if (column < n)
                    *(float4 *)to = make_float4(v[0], v[1], v[2], v[3]);
            } else {
                EACH(e, 4)
                    if (column + e < n)
                        to[e] = v[e];
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
            output[first + i] = kg_epilogue(programs, kg_epilogue_row(programs, b, row), x[i] + BIAS_OF(column), b, row, column);
        }
        if (++column == n)
            column = 0, line++;
    }
}
