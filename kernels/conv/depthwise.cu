/* kgen
{ "format": 1, "op": "conv2d", "target": "cuda", "min_arch": "sm_80",
  "tunables": {"ROWS": [4, 8, 2, 1]},
  "specialize": ["KH", "KW", "SH", "DH"],
  "require": "CG == 1 && !channels_last && KH * KW <= 1024 && H + 2 * PH <= 1073741824 && W + 2 * PW <= 1073741824 && max(SH, SW) <= 1073741824 && max(DH, DW) <= 1073741824 && P <= 1073741824 && N * O * ceil_div(OH, ROWS) * OW <= 1073741824",
  "holes": ["EPILOGUE"],
  "launches": [
    {"kernel": "conv_depthwise", "grid": ["ceil_div(N * O * ceil_div(OH, ROWS) * OW, 256)"], "block": [256],
     "args": ["input", "weight", "bias", "output", "programs", {"i32": "N"}, {"i32": "O"}, {"i32": "O / G"}, {"i32": "H"}, {"i32": "W"}, {"i32": "KH"}, {"i32": "KW"},
              {"i32": "SH"}, {"i32": "SW"}, {"i32": "PH"}, {"i32": "PW"}, {"i32": "DH"}, {"i32": "DW"}, {"i32": "OH"}, {"i32": "OW"},
              {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"}, {"i64": "input.stride(2)"}, {"i64": "input.stride(3)"},
              {"i64": "weight.stride(0)"}, {"i64": "weight.stride(2)"}, {"i64": "weight.stride(3)"}]}] }
*/
/* Depthwise convolutions (each group has one channel), of all dtypes, from sm_80 on; any strides and
 * alignment; the output is not channels last, which torch serves.
 *
 * A thread does ROWS results one below the other, its neighbours those beside them, so that loads and stores
 * of a warp are next to each other. An element that was read serves every row that it is in the window of;
 * what neighbours read again comes out of the L1. Sums are in fp32, one chain of FMAs in the order of taps.
 *
 * Floor: the input and the output once, at the rate of memory.
 *
 * Launch bounds: 256. Refuses groups of more channels (fma.cu, mma.cu). */
#define DEV static __device__ __forceinline__
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)
/* Larger windows would take more registers than there are. */
#define EXACT (KG_EXACT_KH && KG_EXACT_KW && KG_EXACT_SH && KG_EXACT_DH && KH * KW <= 49)

typedef unsigned short half_bits;
typedef unsigned int u32;

#if KG_DTYPE_input == KG_F32
DEV float widen(float x) { return x; }
DEV float narrow(float x) { return x; }
#elif KG_DTYPE_input == KG_BF16
DEV float widen(half_bits x) { return __uint_as_float((u32)x << 16); }
DEV half_bits narrow(float x) { half_bits y; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }
#else
DEV float widen(half_bits x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x)); return y; }
DEV half_bits narrow(float x) { half_bits y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }
#endif

/* The lines of a channel's image from row y0 on, and of its weight. */
struct window {
    const KG_T_input *x;
    const KG_T_weight *w;
    long long x2, x3, w2, w3;
    int y0, x0, h, wide, dw;
};
DEV float element(const struct window &v, int y, int j) {
    const int x = v.x0 + j * v.dw;
    return (u32)y < (u32)v.h && (u32)x < (u32)v.wide ? widen(__ldg(v.x + y * v.x2 + x * v.x3)) : 0.0f;
}

#if EXACT
/* Each element once: row r of those that ROWS windows span is tap i of result q where q * SH + i * DH is r. */
DEV void sum(float (&sums)[ROWS], const struct window &v) {
    EACH(r, (ROWS - 1) * SH + (KH - 1) * DH + 1) {
        EACH(j, KW) {
            float x = 0.0f;
            bool read = false;
            EACH(q, ROWS) {
                const int i = (r - q * SH) / DH;
                if (r < q * SH || i >= KH || i * DH != r - q * SH)
                    continue;
                if (!read)
                    x = element(v, v.y0 + r, j), read = true;
                sums[q] = fmaf(x, widen(__ldg(v.w + i * v.w2 + j * v.w3)), sums[q]);
            }
        }
    }
}
#define SUM(sums, v) sum(sums, v)
#else
DEV void sum(float (&sums)[ROWS], const struct window &v, int kh, int kw, int sh, int dh) {
#pragma unroll 1
    for (int i = 0; i < kh; i++)
#pragma unroll 1
        for (int j = 0; j < kw; j++) {
            const float w = widen(__ldg(v.w + i * v.w2 + j * v.w3));
            EACH(q, ROWS) sums[q] = fmaf(element(v, v.y0 + q * sh + i * dh, j), w, sums[q]);
        }
}
#define SUM(sums, v) sum(sums, v, kh, kw, sh, dh)
#endif

extern "C" __global__ void __launch_bounds__(256)
    conv_depthwise(const KG_T_input *input, const KG_T_weight *weight, const KG_T_bias *bias, KG_T_output *output, KG_PROGRAMS programs,
                   int images, int channels, int fold, int h, int w, int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw,
                   int oh, int ow, long long x0, long long x1, long long x2, long long x3, long long w0, long long w2, long long w3) {
    const int at = (int)blockIdx.x * 256 + (int)threadIdx.x, blocks = (oh + ROWS - 1) / ROWS;
    const int line = at / ow, column = at - line * ow, plane = line / blocks, row = (line - plane * blocks) * ROWS;
    const int image = plane / channels, o = plane - image * channels;
    if (image >= images)
        return;
    const struct window v = {input + image * x0 + o / fold * x1, weight + o * w0, x2, x3, w2, w3, row * sh - ph, column * sw - pw, h, w, dw};
    float sums[ROWS];
    EACH(q, ROWS) sums[q] = 0.0f;
    SUM(sums, v);
    const float of_bias = bias ? widen(__ldg(bias + o)) : 0.0f;
    const struct kg_epilogue_row of_row = kg_epilogue_row(programs, image, o);
    KG_T_output *to = output + ((long long)plane * oh + row) * ow + column;
    EACH(q, ROWS)
        if (row + q < oh)
            to[(long long)q * ow] = narrow(kg_epilogue(programs, of_row, sums[q] + of_bias, image, o, (row + q) * ow + column));
}
