/* kgen
{ "format": 1, "op": "conv2d", "target": "cuda", "min_arch": "sm_80",
  "tunables": {"BLOCK_O": [64, 96, 128, 32, 16], "BLOCK_P": [128, 256, 64, 32], "SIDE": [8, 4], "STEP": [16, 8, 32], "LAST": [0, 1]},
  "specialize": ["CG", "KH", "KW"],
  "require": "input.dtype == float32 && LAST == channels_last && BLOCK_O * BLOCK_P >= 64 * SIDE * SIDE && BLOCK_O * BLOCK_P <= 256 * SIDE * SIDE && BLOCK_O % SIDE == 0 && BLOCK_P % SIDE == 0 && 8 * STEP * (BLOCK_O + BLOCK_P + 8) <= 49152 && N * P < 1073741824 && O <= 1048576 && CG * KH * KW <= 1073741824 && H + 2 * PH <= 1073741824 && W + 2 * PW <= 1073741824 && max(SH, SW) <= 1073741824 && max(DH, DW) <= 1073741824 && G * ceil_div(O / G, BLOCK_O) * ceil_div(N * P, BLOCK_P) < 1073741824",
  "holes": ["EPILOGUE"],
  "launches": [
    {"kernel": "conv_fma", "grid": ["G * ceil_div(O / G, BLOCK_O) * ceil_div(N * P, BLOCK_P)"], "block": ["BLOCK_O * BLOCK_P / (SIDE * SIDE)"],
     "args": ["input", "weight", "bias", "output", "programs", {"i32": "N * P"}, {"i32": "O"}, {"i32": "G"}, {"i32": "CG"}, {"i32": "H"}, {"i32": "W"}, {"i32": "KH"}, {"i32": "KW"},
              {"i32": "SH"}, {"i32": "SW"}, {"i32": "PH"}, {"i32": "PW"}, {"i32": "DH"}, {"i32": "DW"}, {"i32": "OW"}, {"i32": "P"},
              {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"}, {"i64": "input.stride(2)"}, {"i64": "input.stride(3)"},
              {"i64": "weight.stride(0)"}, {"i64": "weight.stride(1)"}, {"i64": "weight.stride(2)"}, {"i64": "weight.stride(3)"}]}] }
*/
/* Convolutions of float32 by FFMA, from sm_80 on, as an implicit product; any shape, strides and alignment.
 *
 * A block does BLOCK_O channels of a group by BLOCK_P pixels of all images, each thread SIDE x SIDE of it in
 * registers, in groups of four channels and four pixels. Of the sum over (channel, tap) STEP terms at a time
 * pass through two shared buffers, one row of a tile's channels (pixels) for each: while one is multiplied,
 * what comes next is on its way to registers, four neighbours at a time where a weight's are aligned; a
 * pixel's window is gathered where the image lies and never written, neighbouring threads reading
 * neighbouring pixels. The order of terms is channel, then tap; when LAST, tap, then channel, and windows come
 * four channels at a time where these are aligned neighbours.
 *
 * Sums: one chain of FMAs over all terms, as torch's; its error is that of fp32.
 *
 * Floor: 2 * N * O * P * CG * KH * KW flops over 256 a clock and multiprocessor.
 *
 * Launch bounds: BLOCK_O * BLOCK_P / SIDE^2. Refuses half types (mma.cu). */
#define DEV static __device__ __forceinline__
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)
#define THREADS (BLOCK_O * BLOCK_P / (SIDE * SIDE))
#define QUADS (SIDE / 4) /* groups of four of a thread, each way */
#define ACROSS (BLOCK_P / SIDE) /* threads side by side */
#define LOADS(lines) (((lines) * STEP / 4 + THREADS - 1) / THREADS)
#define PITCH(lines) ((lines) + 4)

typedef unsigned int u32;
typedef unsigned long long u64;

/* ---- what is summed over ---- */
/* Lines of terms: of a weight, whose place is its tap; of a pixel's window, whose taps are `dilation` apart
 * in an image of h x w with nothing around it. */
struct terms {
    const float *at;
    long long channel, row, column; /* elements between two */
    int dilation_h, dilation_w, h, w, cg, kh, kw;
    bool vectors, flat; /* four terms are aligned neighbours: of a tap; of a line */
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
struct line { long long at; int h, w; }; /* of its first tap; NO_LINE: there is none */
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
DEV const float *element(const struct terms &t, const struct line &l, const struct place &p) {
    return t.at + l.at + p.c * t.channel + (l.h + p.i * t.dilation_h) * t.row + (l.w + p.j * t.dilation_w) * t.column;
}
DEV void set4(float (&x)[4], const float4 &v) { x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w; }

/* A thread's pieces of four terms. */
template <int LINES> DEV bool piece(int i, int &line, int &k) {
    const int at = i * THREADS + (int)threadIdx.x;
    line = at % LINES, k = at / LINES * 4;
    return LINES * STEP / 4 % THREADS == 0 || at < LINES * STEP / 4;
}
template <int LINES>
DEV void load(float (&x)[LOADS(LINES)][4], const struct terms &t, const struct line (&lines)[LOADS(LINES)], int k0, int end) {
    EACH(i, LOADS(LINES)) {
        int line, k;
        if (!piece<LINES>(i, line, k))
            continue;
        k += k0;
        struct place p = place_of(t, k);
        if (t.flat && lines[i].h > NO_LINE && k + 4 <= end) {
            set4(x[i], __ldg((const float4 *)(t.at + lines[i].at + k)));
        } else if (t.vectors && k + 4 <= end) {
            set4(x[i], inside(t, lines[i], p) ? __ldg((const float4 *)element(t, lines[i], p)) : make_float4(0.0f, 0.0f, 0.0f, 0.0f));
        } else {
            EACH(e, 4) {
                x[i][e] = k + e < end && inside(t, lines[i], p) ? __ldg(element(t, lines[i], p)) : 0.0f;
                next(t, p);
            }
        }
    }
}
template <int LINES> DEV void put(float (*to)[PITCH(LINES)], const float (&x)[LOADS(LINES)][4]) {
    EACH(i, LOADS(LINES)) {
        int line, k;
        if (piece<LINES>(i, line, k))
            EACH(e, 4) to[k + e][line] = x[i][e];
    }
}

/* Channel (pixel) i of a thread: groups of four, as far apart as all threads' groups are wide. */
DEV int of_thread(int i, int thread, int side_by_side) { return i / 4 * side_by_side * 4 + thread * 4 + i % 4; }

DEV void multiply(float (&sums)[SIDE][SIDE], const float (*a)[PITCH(BLOCK_O)], const float (*b)[PITCH(BLOCK_P)], int ty, int tx) {
    EACH(k, STEP) {
        float l[SIDE], r[SIDE];
        EACH(q, QUADS) {
            const float4 x = *(const float4 *)&a[k][of_thread(q * 4, ty, BLOCK_O / SIDE)];
            const float4 y = *(const float4 *)&b[k][of_thread(q * 4, tx, ACROSS)];
            l[4 * q] = x.x, l[4 * q + 1] = x.y, l[4 * q + 2] = x.z, l[4 * q + 3] = x.w;
            r[4 * q] = y.x, r[4 * q + 1] = y.y, r[4 * q + 2] = y.z, r[4 * q + 3] = y.w;
        }
        EACH(i, SIDE)
            EACH(j, SIDE) sums[i][j] = fmaf(l[i], r[j], sums[i][j]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    conv_fma(const KG_T_input *input, const KG_T_weight *weight, const KG_T_bias *bias, KG_T_output *output, KG_PROGRAMS programs,
             int pixels, int channels, int groups, int cg, int h, int w, int kh, int kw, int sh, int sw, int ph, int pw, int dh,
             int dw, int ow, int of_image, long long x0, long long x1, long long x2, long long x3, long long w0, long long w1,
             long long w2, long long w3) {
    __shared__ alignas(16) float a[2][STEP][PITCH(BLOCK_O)];
    __shared__ alignas(16) float b[2][STEP][PITCH(BLOCK_P)];
    const int own = channels / groups, tiles_o = (own + BLOCK_O - 1) / BLOCK_O, tiles_p = (pixels + BLOCK_P - 1) / BLOCK_P;
    const int group = (int)blockIdx.x / (tiles_o * tiles_p), tile = (int)blockIdx.x - group * tiles_o * tiles_p;
    const int o0 = tile % tiles_o * BLOCK_O, p0 = tile / tiles_o * BLOCK_P;
    const int ty = (int)threadIdx.x / ACROSS, tx = (int)threadIdx.x % ACROSS;
    const int all = cg * kh * kw, steps = (all + STEP - 1) / STEP;
    const bool dense = LAST ? w1 == 1 && w3 == cg && w2 == (long long)kw * cg : w3 == 1 && w2 == kw && w1 == (long long)kh * kw;
    const struct terms of_o = {weight + (long long)group * own * w0, w1, w2, w3, 1, 1, kh, kw, cg, kh, kw, false,
                               dense && ((u64)weight & 15) == 0 && w0 % 4 == 0 && (long long)group * own * w0 % 4 == 0};
    const struct terms of_p = {input + (long long)group * cg * x1, x1, x2, x3, dh, dw, h, w, cg, kh, kw,
                               LAST && cg % 4 == 0 && x1 == 1 && ((u64)input & 15) == 0 && (x0 | x2 | x3) % 4 == 0, false};
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
    float sums[SIDE][SIDE], x[LOADS(BLOCK_O)][4], y[LOADS(BLOCK_P)][4];
    EACH(i, SIDE)
        EACH(j, SIDE) sums[i][j] = 0.0f;
    load<BLOCK_O>(x, of_o, lines_o, 0, all);
    load<BLOCK_P>(y, of_p, lines_p, 0, all);
#pragma unroll 1
    for (int s = 0; s < steps; s++) {
        const int buffer = s & 1; /* who still reads the other one has not passed the barrier below */
        put<BLOCK_O>(a[buffer], x);
        put<BLOCK_P>(b[buffer], y);
        __syncthreads();
        if (s + 1 < steps) {
            load<BLOCK_O>(x, of_o, lines_o, (s + 1) * STEP, all);
            load<BLOCK_P>(y, of_p, lines_p, (s + 1) * STEP, all);
        }
        multiply(sums, a[buffer], b[buffer], ty, tx);
    }
    /* Four neighbours in memory: pixels, or channels. */
    const bool quads = LAST ? channels % 4 == 0 && own % 4 == 0 : of_image % 4 == 0;
    EACH(i, SIDE)
        EACH(q, QUADS) {
            float v[4];
            long long at[4];
            bool in[4];
            EACH(e, 4) {
                const int io = LAST ? q * 4 + e : i, ip = LAST ? i : q * 4 + e;
                const int local = o0 + of_thread(io, ty, BLOCK_O / SIDE), pixel = p0 + of_thread(ip, tx, ACROSS);
                const int o = group * own + local, image = pixel / of_image, in_image = pixel - image * of_image;
                const int m = LAST ? in_image : o, n = LAST ? o : in_image;
                in[e] = local < own && pixel < pixels;
                at[e] = LAST ? (long long)pixel * channels + o : ((long long)image * channels + o) * of_image + in_image;
                const float value = sums[io][ip] + (bias && in[e] ? __ldg(bias + o) : 0.0f);
                v[e] = kg_epilogue(programs, kg_epilogue_row(programs, image, m), value, image, m, n);
            }
            if (quads) {
                if (in[0])
                    *(float4 *)(output + at[0]) = make_float4(v[0], v[1], v[2], v[3]);
            } else {
                EACH(e, 4)
                    if (in[e])
                        output[at[e]] = v[e];
            }
        }
}
