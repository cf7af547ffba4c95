/* kgen
{ "format": 1, "op": "conv2d", "target": "cuda", "min_arch": "sm_80",
  "tunables": {"BLOCK_O": [64, 128, 96, 32, 16], "BLOCK_P": [128, 64, 256], "WARPS_O": [2, 1, 4], "WARPS_P": [2, 4, 1], "STAGES": [3, 2, 4], "LAST": [0, 1]},
  "specialize": ["CG", "KH", "KW"],
  "require": "(input.dtype == float16 || input.dtype == bfloat16) && LAST == channels_last && BLOCK_O % (16 * WARPS_O) == 0 && BLOCK_P % (16 * WARPS_P) == 0 && BLOCK_O * BLOCK_P <= 4096 * WARPS_O * WARPS_P && BLOCK_O * BLOCK_P >= 256 * WARPS_O * WARPS_P && STAGES * 80 * (BLOCK_O + BLOCK_P) <= MAX_SHARED && N * P < 1073741824 && O <= 1048576 && CG * KH * KW <= 1073741824 && H + 2 * PH <= 1073741824 && W + 2 * PW <= 1073741824 && max(SH, SW) <= 1073741824 && max(DH, DW) <= 1073741824 && G * ceil_div(O / G, BLOCK_O) * ceil_div(N * P, BLOCK_P) < 1073741824",
  "holes": ["EPILOGUE"],
  "launches": [
    {"kernel": "conv_mma", "grid": ["G * ceil_div(O / G, BLOCK_O) * ceil_div(N * P, BLOCK_P)"], "block": ["32 * WARPS_O * WARPS_P"], "shared": "STAGES * 80 * (BLOCK_O + BLOCK_P)",
     "args": ["input", "weight", "bias", "output", "programs", {"i32": "N * P"}, {"i32": "O"}, {"i32": "G"}, {"i32": "CG"}, {"i32": "H"}, {"i32": "W"}, {"i32": "KH"}, {"i32": "KW"},
              {"i32": "SH"}, {"i32": "SW"}, {"i32": "PH"}, {"i32": "PW"}, {"i32": "DH"}, {"i32": "DW"}, {"i32": "OW"}, {"i32": "P"},
              {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"}, {"i64": "input.stride(2)"}, {"i64": "input.stride(3)"},
              {"i64": "weight.stride(0)"}, {"i64": "weight.stride(1)"}, {"i64": "weight.stride(2)"}, {"i64": "weight.stride(3)"}]}] }
*/
/* Convolutions of half types by mma.sync, from sm_80 on, as an implicit product; any shape, strides and
 * alignment.
 *
 * A block does BLOCK_O channels of a group by BLOCK_P pixels of all images, its warps WARPS_O x WARPS_P
 * parts of it in registers. Of the sum over (channel, tap) 32 terms at a time pass through STAGES shared
 * buffers: a line of a weight, and of a pixel's window, which is gathered where the image lies and never
 * written. Where eight terms of a line are aligned neighbours they come by cp.async (the order of terms
 * is tap, then channel, when LAST; else channel, then tap), else one by one into registers while the
 * tensor cores are busy with an earlier stage. Pixels are the columns of the product (LAST: the rows), so
 * that results next to each other are next to each other in memory.
 *
 * Traffic: (BLOCK_O + BLOCK_P) * 64 bytes a block and step out of the L2. Floor: 2 * N * O * P * CG * KH *
 * KW flops over the rate of mma.sync: the peak of sm_80, about 0.6 of it on sm_90.
 *
 * Launch bounds: 32 * WARPS_O * WARPS_P. Refuses fp32 (fma.cu). */
#define DEV static __device__ __forceinline__
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)
#define BLOCK_K 32
#define PITCH (BLOCK_K + 8) /* halves from line to line: ldmatrix meets no bank twice */
#define THREADS (32 * WARPS_O * WARPS_P)
#define BLOCK_M (LAST ? BLOCK_P : BLOCK_O)
#define BLOCK_N (LAST ? BLOCK_O : BLOCK_P)
#define WARPS_M (LAST ? WARPS_P : WARPS_O)
#define OWN_M (BLOCK_M / WARPS_M) /* of a warp */
#define OWN_N (BLOCK_O * BLOCK_P / (WARPS_O * WARPS_P) / OWN_M)
#define TILES_M (OWN_M / 16)
#define TILES_N (OWN_N / 8)
#define STAGE_HALVES ((BLOCK_M + BLOCK_N) * PITCH)
#define LOADS(lines) (((lines) * (BLOCK_K / 8) + THREADS - 1) / THREADS)

typedef unsigned short half_bits;
typedef unsigned int u32;
typedef unsigned long long u64;

#if KG_DTYPE_input == KG_BF16
DEV u32 pack2(float low, float high) {
    u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r;
}
DEV float widen(u32 x) { return __uint_as_float(x << 16); }
#else
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
/* 16 bytes, of which the first `bytes` are read and the rest are zero. */
DEV void copy_async(u32 to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

/* ---- what is summed over ---- */
/* Lines of terms: of a weight, whose place is its tap; of a pixel's window, whose taps are `dilation` apart
 * in an image of h x w with nothing around it. */
struct terms {
    const half_bits *at;
    long long channel, row, column; /* elements between two */
    int dilation_h, dilation_w, h, w, cg, kh, kw;
    bool vectors, flat; /* eight terms are aligned neighbours: of a tap; of a line */
};
#if KG_EXACT_CG
#define CONV_CG CG
#else
#define CONV_CG t.cg
#endif
#if KG_EXACT_KH
#define CONV_KH KH
#else
#define CONV_KH t.kh
#endif
#if KG_EXACT_KW
#define CONV_KW KW
#else
#define CONV_KW t.kw
#endif
struct line { long long at; int h, w; }; /* of its first tap; h < -2^30: no line */
#define NO_LINE (-2147483647)
struct place { int c, i, j; };           /* channel and tap of a term */

DEV struct place place_of(const struct terms &t, int k) {
    if (LAST) {
        const int tap = k / CONV_CG;
        return {k - tap * CONV_CG, tap / CONV_KW, tap % CONV_KW};
    }
    const int c = k / (CONV_KH * CONV_KW), tap = k - c * (CONV_KH * CONV_KW);
    return {c, tap / CONV_KW, tap % CONV_KW};
}
DEV void next(const struct terms &t, struct place &p) {
    if (LAST) {
        if (++p.c < CONV_CG)
            return;
        p.c = 0;
    }
    if (++p.j < CONV_KW)
        return;
    p.j = 0;
    if (++p.i < CONV_KH)
        return;
    p.i = 0, p.c++;
}
DEV bool inside(const struct terms &t, const struct line &l, const struct place &p) {
    return l.h > NO_LINE && (u32)(l.h + p.i * t.dilation_h) < (u32)t.h && (u32)(l.w + p.j * t.dilation_w) < (u32)t.w;
}
DEV const half_bits *element(const struct terms &t, const struct line &l, const struct place &p) {
    return t.at + l.at + p.c * t.channel + (l.h + p.i * t.dilation_h) * t.row + (l.w + p.j * t.dilation_w) * t.column;
}

/* A thread's pieces of eight terms: line i * THREADS + thread, modulo LINES, of the piece that follows. */
template <int LINES> DEV bool piece(int i, int &line, int &k) {
    const int at = i * THREADS + (int)threadIdx.x;
    line = at % LINES, k = at / LINES * 8;
    return LINES * (BLOCK_K / 8) % THREADS == 0 || at < LINES * (BLOCK_K / 8);
}
/* Begins what comes by itself; else fetches into registers. */
template <int LINES>
DEV void fetch(u32 (&x)[LOADS(LINES)][4], u32 to, const struct terms &t, const struct line (&lines)[LOADS(LINES)], int k0, int end) {
    EACH(i, LOADS(LINES)) {
        int line, k;
        if (!piece<LINES>(i, line, k))
            continue;
        const int left = min(max(end - k0 - k, 0), 8);
        struct place p = place_of(t, k0 + k);
        const bool real = lines[i].h > NO_LINE;
        if (t.flat) {
            const bool in = left > 0 && real;
            copy_async(to + (line * PITCH + k) * 2, t.at + (in ? lines[i].at + k0 + k : 0), in ? left * 2 : 0);
        } else if (t.vectors) {
            const bool in = left > 0 && inside(t, lines[i], p);
            copy_async(to + (line * PITCH + k) * 2, in ? element(t, lines[i], p) : t.at, in ? 16 : 0);
        } else {
            EACH(e, 4) x[i][e] = 0;
            EACH(e, 8) {
                if (e < left && inside(t, lines[i], p))
                    x[i][e / 2] |= (u32)__ldg(element(t, lines[i], p)) << e % 2 * 16;
                next(t, p);
            }
        }
    }
}
template <int LINES> DEV void put(half_bits *to, const struct terms &t, const u32 (&x)[LOADS(LINES)][4]) {
    if (t.flat || t.vectors)
        return;
    EACH(i, LOADS(LINES)) {
        int line, k;
        if (piece<LINES>(i, line, k))
            *(uint4 *)(to + line * PITCH + k) = make_uint4(x[i][0], x[i][1], x[i][2], x[i][3]);
    }
}

/* sums += a stage's product. */
DEV void multiply(float (&sums)[TILES_M][TILES_N][4], u32 left, u32 right, int warp_m, int warp_n) {
    const int lane = (int)threadIdx.x % 32, low = lane % 8, first = lane / 8 % 2 * 8, second = lane / 16 * 8;
    EACH(k, BLOCK_K / 16) {
        u32 a[TILES_M][4], b[TILES_N / 2][4];
        EACH(i, TILES_M) load4(a[i], left + ((warp_m * OWN_M + i * 16 + first + low) * PITCH + k * 16 + second) * 2);
        EACH(j, TILES_N / 2) load4(b[j], right + ((warp_n * OWN_N + j * 16 + second + low) * PITCH + k * 16 + first) * 2);
        EACH(i, TILES_M)
            EACH(j, TILES_N) product(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    conv_mma(const KG_T_input *input, const KG_T_weight *weight, const KG_T_bias *bias, KG_T_output *output, KG_PROGRAMS programs,
             int pixels, int channels, int groups, int cg, int h, int w, int kh, int kw, int sh, int sw, int ph, int pw, int dh,
             int dw, int ow, int of_image, long long x0, long long x1, long long x2, long long x3, long long w0, long long w1,
             long long w2, long long w3) {
    extern __shared__ half_bits stages[];
    const int own = channels / groups, tiles_o = (own + BLOCK_O - 1) / BLOCK_O, tiles_p = (pixels + BLOCK_P - 1) / BLOCK_P;
    const int group = (int)blockIdx.x / (tiles_o * tiles_p), tile = (int)blockIdx.x - group * tiles_o * tiles_p;
    const int o0 = tile % tiles_o * BLOCK_O, p0 = tile / tiles_o * BLOCK_P;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, warp_m = warp % WARPS_M, warp_n = warp / WARPS_M;
    const int all = cg * kh * kw, steps = (all + BLOCK_K - 1) / BLOCK_K;
    const bool dense = LAST ? w1 == 1 && w3 == cg && w2 == (long long)kw * cg : w3 == 1 && w2 == kw && w1 == (long long)kh * kw;
    const struct terms of_o = {weight + (long long)group * own * w0, w1, w2, w3, 1, 1, kh, kw, cg, kh, kw, false,
                               dense && ((u64)weight & 15) == 0 && w0 % 8 == 0 && (long long)group * own * w0 % 8 == 0};
    const struct terms of_p = {input + (long long)group * cg * x1, x1, x2, x3, dh, dw, h, w, cg, kh, kw,
                               LAST && cg % 8 == 0 && x1 == 1 && ((u64)input & 15) == 0 && (x0 | x2 | x3) % 8 == 0, false};
    struct line lines_o[LOADS(BLOCK_O)], lines_p[LOADS(BLOCK_P)];
    EACH(i, LOADS(BLOCK_O)) {
        int at, k;
        piece<BLOCK_O>(i, at, k);
        lines_o[i] = {(long long)(o0 + at) * w0, o0 + at < own ? 0 : NO_LINE, 0};
    }
    EACH(i, LOADS(BLOCK_P)) {
        int at, k;
        piece<BLOCK_P>(i, at, k);
        const int pixel = p0 + at, image = pixel / of_image, in_image = pixel - image * of_image;
        lines_p[i] = {image * x0, pixel < pixels ? in_image / ow * sh - ph : NO_LINE, in_image % ow * sw - pw};
    }
    const int at_o = LAST ? BLOCK_P * PITCH : 0, at_p = LAST ? 0 : BLOCK_O * PITCH;
    const u32 shared = (u32)__cvta_generic_to_shared(stages);
    float sums[TILES_M][TILES_N][4];
    u32 x[LOADS(BLOCK_O)][4], y[LOADS(BLOCK_P)][4];
    EACH(i, TILES_M)
        EACH(j, TILES_N)
            EACH(e, 4) sums[i][j][e] = 0.0f;
    EACH(s, STAGES - 1) {
        if (s < steps) {
            const int to = s * STAGE_HALVES;
            fetch<BLOCK_O>(x, shared + (to + at_o) * 2, of_o, lines_o, s * BLOCK_K, all);
            fetch<BLOCK_P>(y, shared + (to + at_p) * 2, of_p, lines_p, s * BLOCK_K, all);
            put<BLOCK_O>(stages + to + at_o, of_o, x);
            put<BLOCK_P>(stages + to + at_p, of_p, y);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
#pragma unroll 1
    for (int s = 0; s < steps; s++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();
        /* Into the buffer of the step before, which everybody has left. */
        const int ahead = s + STAGES - 1, to = ahead % STAGES * STAGE_HALVES;
        if (ahead < steps) {
            fetch<BLOCK_O>(x, shared + (to + at_o) * 2, of_o, lines_o, ahead * BLOCK_K, all);
            fetch<BLOCK_P>(y, shared + (to + at_p) * 2, of_p, lines_p, ahead * BLOCK_K, all);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        const u32 left = shared + s % STAGES * STAGE_HALVES * 2;
        multiply(sums, left, left + BLOCK_M * PITCH * 2, warp_m, warp_n);
        if (ahead < steps) {
            put<BLOCK_O>(stages + to + at_o, of_o, x);
            put<BLOCK_P>(stages + to + at_p, of_p, y);
        }
    }
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    const int rows = LAST ? pixels : own, columns = LAST ? own : pixels;
    const bool pairs = LAST ? channels % 2 == 0 && own % 2 == 0 : of_image % 2 == 0;
    EACH(i, TILES_M)
        EACH(hh, 2) {
            const int row = (LAST ? p0 : o0) + warp_m * OWN_M + i * 16 + lane / 4 + hh * 8;
            EACH(j, TILES_N) {
                const int column = (LAST ? o0 : p0) + warp_n * OWN_N + j * 8 + lane % 4 * 2;
                long long at[2];
                half_bits bits[2];
                EACH(e, 2) {
                    const int pixel = LAST ? row : column + e, o = group * own + (LAST ? column + e : row);
                    const int image = pixel / of_image, in_image = pixel - image * of_image;
                    const int m = LAST ? in_image : o, n = LAST ? o : in_image;
                    const bool in = row < rows && column + e < columns;
                    const float value = sums[i][j][2 * hh + e] + (bias && in ? widen(__ldg(bias + o)) : 0.0f);
                    at[e] = LAST ? (long long)pixel * channels + o : ((long long)image * channels + o) * of_image + in_image;
                    bits[e] = (half_bits)pack2(kg_epilogue(programs, kg_epilogue_row(programs, image, m), value, image, m, n), 0.0f);
                }
                if (row >= rows)
                    continue;
                if (pairs) {
                    if (column < columns)
                        *(u32 *)(output + at[0]) = bits[0] | (u32)bits[1] << 16;
                } else {
                    EACH(e, 2)
                        if (column + e < columns)
                            output[at[e]] = bits[e];
                }
            }
        }
}
