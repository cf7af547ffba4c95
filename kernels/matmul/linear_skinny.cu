/* kgen
{ "format": 1, "op": "linear", "target": "cuda", "min_arch": "sm_80",
  "tunables": {"THIN": [8, 1, 2, 4, 3, 6], "ON_THE_LEFT": [1, 0], "ACROSS": [0, 1], "LINES": [2, 1, 4], "TEAM": [1, 2, 4, 8], "SPLIT": [1, 2, 4, 8, 16, 32, 64]},
  "require": "(!present(bias) || bias.contiguous) && (SPLIT == 1 || ceil_div(ON_THE_LEFT ? N : M, ACROSS ? (input.dtype == float32 ? 128 : 256) : 8 / TEAM * LINES) * (SPLIT / 2) < 8 * NUM_SMS) && K >= 1 && max(M, N) <= 1073741824 && K <= 1073741824 && (ON_THE_LEFT ? M : N) <= THIN && ACROSS == (ON_THE_LEFT ? weight.stride(1) != 1 && weight.stride(0) == 1 : input.stride(1) != 1 && input.stride(0) == 1) && (ACROSS ? LINES == 2 && TEAM == 1 : LINES * THIN <= 16) && SPLIT <= ceil_div(K, ACROSS ? 64 : 256 * TEAM) && SPLIT <= 65535",
  "holes": ["EPILOGUE"],
  "workspace": {"partial": {"dtype": "float32", "shape": ["SPLIT == 1 ? 1 : SPLIT * M", "SPLIT == 1 ? 1 : N"]}},
  "launches": [
    {"kernel": "gemm_along", "when": "!ACROSS", "grid": ["ceil_div(ON_THE_LEFT ? N : M, 8 / TEAM * LINES)", "SPLIT"], "block": [256],
     "args": ["input", "weight", "bias", "output", "partial", "programs", {"i32": 1}, {"i32": "M"}, {"i32": "N"}, {"i32": "K"},
              {"i64": 0}, {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"}, {"i64": 0}, {"i64": "weight.stride(0)"}, {"i64": "weight.stride(1)"}]},
    {"kernel": "gemm_across", "when": "ACROSS", "grid": ["ceil_div(ON_THE_LEFT ? N : M, input.dtype == float32 ? 128 : 256)", "SPLIT"], "block": [256],
     "args": ["input", "weight", "bias", "output", "partial", "programs", {"i32": 1}, {"i32": "M"}, {"i32": "N"}, {"i32": "K"},
              {"i64": 0}, {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"}, {"i64": 0}, {"i64": "weight.stride(0)"}, {"i64": "weight.stride(1)"}]},
    {"kernel": "gemm_sum", "when": "SPLIT > 1", "grid": ["ceil_div(M * N, 256)"], "block": [256],
     "args": ["bias", "output", "partial", "programs", {"i64": "M * N"}, {"i32": "M"}, {"i32": "N"}]}] }
*/
#define HAS_BIAS 1
/* Products with at most THIN rows (ON_THE_LEFT) or columns: matrix times vector and its like, where the
 * other, wide operand's bytes are all that counts. Any strides and alignment, from sm_80 on.
 *
 * gemm_along: the wide operand's lines lie along K. A warp takes LINES of them, 16 bytes a lane and load,
 * and all of the thin operand's; TEAM warps share K. gemm_across: they lie side by side. A lane takes 16
 * bytes of neighbours, the eight warps of a block every eighth k. Both sum in fp32 and add up what warps
 * have through shared memory; with SPLIT blocks share K too, and gemm_sum adds up in order.
 *
 * Traffic: the wide operand once; the thin one out of the L1. Floor: its bytes over the rate of reading.
 * THIN elements of fp32 are multiplied with each, so beyond 8 the FMAs would be the floor (mma.cu).
 *
 * Launch bounds: 256. */
#define DEV static __device__ __forceinline__
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)
#define WARPS 8
#define VEC (KG_DTYPE_input == KG_F32 ? 4 : 8) /* elements of 16 bytes */

typedef unsigned int u32;
typedef unsigned long long u64;
typedef KG_T_input element;

#if KG_DTYPE_input == KG_F32
DEV float widen(float x) { return x; }
DEV element narrow(float x) { return x; }
#elif KG_DTYPE_input == KG_BF16
DEV float widen(element x) { return __uint_as_float((u32)x << 16); }
DEV element narrow(float x) { element r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
#else
DEV float widen(element x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x)); return y; }
DEV element narrow(float x) { element r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
#endif

/* Lines of an operand: rows of the left one, columns of the right one; elements of K are `step` apart. */
struct operand { const element *at; long long line, step; int lines; };

struct alignas(16) sixteen { element e[VEC]; };
/* n of VEC elements, zeros for the rest. */
DEV void load(float (&x)[VEC], const element *from, long long step, int n, bool vectors) {
    if (vectors && n >= VEC) {
        const uint4 raw = __ldg((const uint4 *)from);
        struct sixteen v;
        *(uint4 *)&v = raw;
        EACH(i, VEC) x[i] = widen(v.e[i]);
    } else {
        EACH(i, VEC) x[i] = i < n ? widen(__ldg(from + i * step)) : 0.0f;
    }
}
DEV bool aligned(const element *at, long long stride) { return (((u64)at | (u64)stride * sizeof(element)) & 15) == 0; }

struct job { int batch, split, first, last; }; /* k of this block */
DEV struct job job_of(int k, int unit) {
    const int split = (int)blockIdx.y % SPLIT, units = (k + unit - 1) / unit;
    return {(int)blockIdx.y / SPLIT, split, (int)((long long)units * split / SPLIT) * unit,
            min((int)((long long)units * (split + 1) / SPLIT) * unit, k)};
}

#if HAS_BIAS
#define BIAS_ARGUMENT const KG_T_bias *bias,
#define BIAS_OF(column) (bias ? widen(__ldg(bias + (column))) : 0.0f)
#define BIAS_GIVEN bias,
#else
#define BIAS_ARGUMENT
#define BIAS_OF(column) 0.0f
#define BIAS_GIVEN
#endif

DEV void write(BIAS_ARGUMENT element *output, float *partial, KG_PROGRAMS programs, const struct job &j, int batches, int m, int n,
               int wide, int thin, float x) {
    const int row = ON_THE_LEFT ? thin : wide, column = ON_THE_LEFT ? wide : thin;
    if (row >= m || column >= n)
        return;
    const long long at = ((long long)j.batch * m + row) * n + column;
    if (SPLIT > 1)
        partial[(long long)j.split * batches * m * n + at] = x;
    else
        output[at] = narrow(kg_epilogue(programs, kg_epilogue_row(programs, j.batch, row), x + BIAS_OF(column), j.batch, row, column));
}

#define OPERANDS                                                                                   \
    const struct operand a = {left + j.batch * l0, l1, lk, m}, b = {right + j.batch * r0, r1, rk, n}; \
    const struct operand wide = ON_THE_LEFT ? b : a, thin = ON_THE_LEFT ? a : b

extern "C" __global__ void __launch_bounds__(256)
    gemm_along(const KG_T_input *left, const KG_T_input *right, BIAS_ARGUMENT KG_T_output *output, KG_T_partial *partial,
               KG_PROGRAMS programs, int batches, int m, int n, int k, long long l0, long long l1, long long lk, long long r0,
               long long r1, long long rk) {
    __shared__ float parts[WARPS][LINES][THIN];
    const struct job j = job_of(k, 32 * VEC * TEAM);
    OPERANDS;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, member = warp % TEAM;
    const int line0 = ((int)blockIdx.x * (WARPS / TEAM) + warp / TEAM) * LINES;
    const bool wide_vectors = wide.step == 1 && aligned(wide.at, wide.line), thin_vectors = thin.step == 1 && aligned(thin.at, thin.line);
    float sums[LINES][THIN];
    EACH(i, LINES)
        EACH(q, THIN) sums[i][q] = 0.0f;
#pragma unroll 2
    for (int at = j.first + (member * 32 + lane) * VEC; at < j.last; at += 32 * VEC * TEAM) {
        const int left_over = j.last - at;
        float x[LINES][VEC];
        EACH(i, LINES)
            load(x[i], wide.at + min(line0 + i, wide.lines - 1) * wide.line + at * wide.step, wide.step, left_over, wide_vectors);
        EACH(q, THIN) {
            float y[VEC];
            load(y, thin.at + min(q, thin.lines - 1) * thin.line + at * thin.step, thin.step, left_over, thin_vectors);
            EACH(i, LINES)
                EACH(e, VEC) sums[i][q] = fmaf(x[i][e], y[e], sums[i][q]);
        }
    }
    EACH(i, LINES)
        EACH(q, THIN) {
            EACH(s, 5) sums[i][q] += __shfl_xor_sync(0xffffffff, sums[i][q], 16 >> s);
            if (lane == 0)
                parts[warp][i][q] = sums[i][q];
        }
    __syncthreads();
    for (int at = (int)threadIdx.x; at < WARPS / TEAM * LINES * THIN; at += 256) {
        const int q = at % THIN, i = at / THIN % LINES, team = at / THIN / LINES;
        float x = 0.0f;
        EACH(w, TEAM) x += parts[team * TEAM + w][i][q];
        const int line = ((int)blockIdx.x * (WARPS / TEAM) + team) * LINES + i;
        write(BIAS_GIVEN output, partial, programs, j, batches, m, n, line, q, x);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    gemm_across(const KG_T_input *left, const KG_T_input *right, BIAS_ARGUMENT KG_T_output *output, KG_T_partial *partial,
                KG_PROGRAMS programs, int batches, int m, int n, int k, long long l0, long long l1, long long lk, long long r0,
                long long r1, long long rk) {
    __shared__ float parts[WARPS][32 * VEC];
    const struct job j = job_of(k, 8);
    OPERANDS;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, line0 = ((int)blockIdx.x * 32 + lane) * VEC;
    const int left_over = wide.lines - line0;
    const bool vectors = wide.line == 1 && aligned(wide.at, wide.step);
    float sums[THIN][VEC];
    EACH(q, THIN)
        EACH(e, VEC) sums[q][e] = 0.0f;
#pragma unroll 4
    for (int at = j.first + warp; at < j.last; at += WARPS) {
        float x[VEC];
        load(x, wide.at + at * wide.step + (left_over > 0 ? line0 * wide.line : 0), wide.line, left_over, vectors);
        EACH(q, THIN) {
            const float y = widen(__ldg(thin.at + min(q, thin.lines - 1) * thin.line + at * thin.step));
            EACH(e, VEC) sums[q][e] = fmaf(x[e], y, sums[q][e]);
        }
    }
    EACH(q, THIN) {
        __syncthreads();
        EACH(e, VEC) parts[warp][lane + 32 * e] = sums[q][e];
        __syncthreads();
        const int own = (int)threadIdx.x; /* element own / 32 of lane own % 32 */
        if (own < 32 * VEC) {
            float x = 0.0f;
            EACH(w, WARPS) x += parts[w][own];
            write(BIAS_GIVEN output, partial, programs, j, batches, m, n, ((int)blockIdx.x * 32 + own % 32) * VEC + own / 32, q, x);
        }
    }
}

/* Adds up what the blocks that share K left. */
extern "C" __global__ void __launch_bounds__(256)
    gemm_sum(BIAS_ARGUMENT KG_T_output *output, const KG_T_partial *partial, KG_PROGRAMS programs, long long all, int m, int n) {
    const long long at = (long long)blockIdx.x * 256 + (int)threadIdx.x;
    if (at >= all)
        return;
    float x = 0.0f;
#pragma unroll 8
    for (int split = 0; split < SPLIT; split++) x += partial[split * all + at];
    const long long line = at / n;
    const int column = (int)(at - line * n), b = (int)(line / m), row = (int)(line - (long long)b * m);
    output[at] = narrow(kg_epilogue(programs, kg_epilogue_row(programs, b, row), x + BIAS_OF(column), b, row, column));
}
