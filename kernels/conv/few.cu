/* kgen
{ "format": 1, "op": "conv2d", "target": "cuda", "min_arch": "sm_90",
  "tunables": {"BLOCK_N": [96, 64], "TAP_W": [1, 2, 3, 4], "TILES": [4, 3, 2, 6, 8, 12], "LEFT": [0, 1], "LAST": [0, 1]},
  "specialize": ["C", "KH", "KW", "SH", "SW"],
  "require": "input.dtype == float32 && LAST == channels_last && G == 1 && DH == 1 && DW == 1 && C * KH * KW >= 16 && (TAP_W == 1 || (TAP_W - 1) * SW < KW) && C <= 64 && max(KH, KW) <= 256 && max(SH, SW) <= 256 && max(OH, OW) <= 16384 && O <= 65536 && N <= 65535 && N * P < 1073741824 && N * ceil_div((OH - 1) * (OW + (ceil_div(KW, TAP_W * SW) - 1) * TAP_W) + OW, 64) < 16777216 && (C - 1) * input.stride(1) + (H - 1) * input.stride(2) + (W - 1) * input.stride(3) < 1073741824 && (TILES + ceil_div(((ceil_div(KH, SH) - 1) * (OW + (ceil_div(KW, TAP_W * SW) - 1) * TAP_W) + (ceil_div(KW, TAP_W * SW) - 1) * TAP_W), 64)) - TILES < 32 && ceil_div(KH, SH) * (ceil_div(KW, TAP_W * SW) * ceil_div(min(SH, KH) * C * min(TAP_W * SW, KW), 8) - (ceil_div(KW, TAP_W * SW) * min(TAP_W * SW, KW) - KW) * min(SH, KH) * C / 8) * (32 * BLOCK_N + 2) + 16 + 32 * (ceil_div(min(SH, KH) * C * min(TAP_W * SW, KW), 8) * (align_up(64 * TILES + ((ceil_div(KH, SH) - 1) * (OW + (ceil_div(KW, TAP_W * SW) - 1) * TAP_W) + (ceil_div(KW, TAP_W * SW) - 1) * TAP_W) - 4, 8) + 4) + ceil_div(KH, SH) * (ceil_div(KW, TAP_W * SW) * ceil_div(min(SH, KH) * C * min(TAP_W * SW, KW), 8) - (ceil_div(KW, TAP_W * SW) * min(TAP_W * SW, KW) - KW) * min(SH, KH) * C / 8) % 2 * 64) + 16 * (TILES + ceil_div(((ceil_div(KH, SH) - 1) * (OW + (ceil_div(KW, TAP_W * SW) - 1) * TAP_W) + (ceil_div(KW, TAP_W * SW) - 1) * TAP_W), 64)) + 16 * BLOCK_N + 208 <= MAX_SHARED",
  "holes": ["EPILOGUE"],
  "workspace": {"weights": {"dtype": "float16", "shape": ["ceil_div(O, BLOCK_N)", "ceil_div(KH, SH) * (ceil_div(KW, TAP_W * SW) * ceil_div(min(SH, KH) * C * min(TAP_W * SW, KW), 8) - (ceil_div(KW, TAP_W * SW) * min(TAP_W * SW, KW) - KW) * min(SH, KH) * C / 8)", "16 * BLOCK_N"]},
                "scales": {"dtype": "float32", "shape": ["align_up(O, BLOCK_N)", 4]}},
  "launches": [
    {"kernel": "split_weights", "grid": ["align_up(O, BLOCK_N)"], "block": [128],
     "args": ["weight", "weights", "scales", {"i32": "O"}, {"i32": "C"}, {"i32": "KH"}, {"i32": "KW"}, {"i32": "SH"}, {"i32": "SW"}, {"i32": "OH"}, {"i32": "OW"}, {"i64": "weight.stride(0)"}, {"i64": "weight.stride(1)"}, {"i64": "weight.stride(2)"}, {"i64": "weight.stride(3)"}]},
    {"kernel": "conv_few", "grid": ["ceil_div(O, BLOCK_N) * max(1, min(NUM_SMS / ceil_div(O, BLOCK_N), ceil_div(N * ceil_div((OH - 1) * (OW + (ceil_div(KW, TAP_W * SW) - 1) * TAP_W) + OW, 64), 2)))"], "block": [512], "pdl": true, "shared": "ceil_div(KH, SH) * (ceil_div(KW, TAP_W * SW) * ceil_div(min(SH, KH) * C * min(TAP_W * SW, KW), 8) - (ceil_div(KW, TAP_W * SW) * min(TAP_W * SW, KW) - KW) * min(SH, KH) * C / 8) * (32 * BLOCK_N + 2) + 16 + 32 * (ceil_div(min(SH, KH) * C * min(TAP_W * SW, KW), 8) * (align_up(64 * TILES + ((ceil_div(KH, SH) - 1) * (OW + (ceil_div(KW, TAP_W * SW) - 1) * TAP_W) + (ceil_div(KW, TAP_W * SW) - 1) * TAP_W) - 4, 8) + 4) + ceil_div(KH, SH) * (ceil_div(KW, TAP_W * SW) * ceil_div(min(SH, KH) * C * min(TAP_W * SW, KW), 8) - (ceil_div(KW, TAP_W * SW) * min(TAP_W * SW, KW) - KW) * min(SH, KH) * C / 8) % 2 * 64) + 16 * (TILES + ceil_div(((ceil_div(KH, SH) - 1) * (OW + (ceil_div(KW, TAP_W * SW) - 1) * TAP_W) + (ceil_div(KW, TAP_W * SW) - 1) * TAP_W), 64)) + 16 * BLOCK_N + 208",
     "args": ["input", "weight", "weights", "scales", "bias", "output", "programs", {"i32": "N"}, {"i32": "O"}, {"i32": "C"}, {"i32": "KH"}, {"i32": "KW"}, {"i32": "SH"}, {"i32": "SW"}, {"i32": "OH"}, {"i32": "OW"}, {"i32": "H"}, {"i32": "W"}, {"i32": "PH"}, {"i32": "PW"}, {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"}, {"i64": "input.stride(2)"}, {"i64": "input.stride(3)"}, {"i64": "weight.stride(0)"}, {"i64": "weight.stride(1)"}, {"i64": "weight.stride(2)"}, {"i64": "weight.stride(3)"}]}] }
*/
/* Convolutions of float32 with the accuracy of float32, by the tensor cores of Hopper, where all weights of
 * BLOCK_N output channels fit into shared memory: the first layer of a network, of few input channels. One
 * group, no dilation; any stride, padding, size and strides of memory.
 *
 * A place holds what begins at one output pixel: the rows of a vertical stride by TAP_W horizontal strides by
 * all channels, as one vector. A window is then a few places, (KH / SH) x (KW / SW / TAP_W), and a neighbouring
 * pixel's window is the next place: 11 x 11 of 3 channels under a stride of 4 is 3 x 3 places of 48 terms,
 * 432 for 363. A row of places is as long as a row of pixels and what hangs over, and rows lie one after the other,
 * so that pixels are numbered by their first place, with a few between the rows that are no pixel.
 *
 * In shared memory a vector lies in pieces of eight terms, and a piece of all places side by side, 16 bytes each.
 * Eight neighbouring pixels are then 128 bytes, a core matrix of wgmma without a swizzle, and 64 pixels of any
 * piece of any place of the window an operand where it lies: no window is gathered, in shared memory or elsewhere.
 *
 * Two planes of float16 and three products, as in split.cu. Its reasons hold: the planes' scale is one of TILES x 64
 * pixels here, and of a weight's channel; high high goes to registers every 64 terms. TILES x 64 pixels whose places
 * two planes cannot hold, and such weights, are computed by FFMA behind the rest: slow, and right.
 *
 * conv_few, a block: one tile of channels, its weights loaded once, and pixels in order. Two warpgroups read the
 * image twice (for its largest element, then to split it into planes); two multiply 64 pixels x BLOCK_N in turns. A
 * slot is 64 places; it is filled again as soon as the tiles that read it are done.
 *
 * Traffic: image and output once; of the image (TILES * 64 + what hangs over) / (TILES * 64) through the L2, twice.
 * Floor: 6 * N * O * P * C * KH * KW flops over 4096 a clock and multiprocessor.
 *
 * Launch bounds: 512 and one block a multiprocessor. Refuses half types (mma.cu), groups (fma.cu), and what does
 * not fit (split.cu). */
#define DEV static __device__ __forceinline__
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)
#define PRODUCERS 256
#define SUMS (BLOCK_N / 2)         /* of a thread */
#define PIECE_BYTES (32 * BLOCK_N) /* of weights: 8 terms in two planes */
#define LOW_SCALE 2048.0f
#define EXACT (KG_EXACT_C && KG_EXACT_KH && KG_EXACT_KW && KG_EXACT_SH && KG_EXACT_SW)

typedef unsigned char u8;
typedef unsigned short half_bits;
typedef unsigned int u32;
typedef unsigned long long u64;

#if EXACT /* as shape_of has them */
#define ROWS_OF_PLACE (SH < KH ? SH : KH)
#define RUN (ROWS_OF_PLACE * C)
#define COLUMNS (TAP_W * SW < KW ? TAP_W * SW : KW)
#define TAPS_W ((KW + TAP_W * SW - 1) / (TAP_W * SW))
#define CUT ((TAPS_W * COLUMNS - KW) * RUN / 8)
#define TOTAL ((KH + SH - 1) / SH * (TAPS_W * ((RUN * COLUMNS + 7) / 8) - CUT))
#define STEPS ((TOTAL + 1) / 2)
/* Elements that a producer's thread asks for at once. */
#define BATCH (RUN <= 16 ? RUN : RUN % 12 == 0 ? 12 : RUN % 8 == 0 ? 8 : RUN % 4 == 0 ? 4 : RUN % 2 == 0 ? 2 : 1)
#else
#define BATCH 1
#endif

/* ---- the shape ---- */
struct shape {
    int o, c, kh, kw, sh, sw, oh, ow;
    int rows, columns, run;         /* of a place: of the image; run: terms of a column of it, row by row */
    int taps_h, taps_w;             /* places of a window */
    int pieces, cut;                /* of a place; those that the last place of a window's row does without */
    int total, odd, steps;          /* pieces of a window; whether the first is a step by itself, with zeros; steps of 16 terms */
    int pitch, reach, length;       /* places of a row; from a window's first place to its last; of a piece in shared memory */
    int plane;                      /* 16 bytes */
    int slots, needed, tiles_image; /* slots: of a block's places, and those that a tile reads */
    u32 of_pitch;                   /* 2^32 over pitch, rounded up */
};
DEV int divide_up(int a, int b) { return (a + b - 1) / b; }
DEV struct shape shape_of(int o, int c, int kh, int kw, int sh, int sw, int oh, int ow) {
#if EXACT
    c = C, kh = KH, kw = KW, sh = SH, sw = SW;
#endif
    struct shape s;
    s.o = o, s.c = c, s.kh = kh, s.kw = kw, s.sh = sh, s.sw = sw, s.oh = oh, s.ow = ow;
    s.rows = min(sh, kh), s.columns = min(TAP_W * sw, kw), s.run = s.rows * c;
    s.taps_h = divide_up(kh, sh), s.taps_w = divide_up(kw, TAP_W * sw);
    s.pieces = divide_up(s.run * s.columns, 8), s.cut = (s.taps_w * s.columns - kw) * s.run / 8;
    s.total = s.taps_h * (s.taps_w * s.pieces - s.cut), s.odd = s.total % 2, s.steps = divide_up(s.total, 2);
    s.pitch = ow + (s.taps_w - 1) * TAP_W, s.reach = (s.taps_h - 1) * s.pitch + (s.taps_w - 1) * TAP_W;
    /* 64 bytes beyond a multiple of 128: columns that lie three pieces apart are stored without a conflict. */
    s.length = divide_up(64 * TILES + s.reach - 4, 8) * 8 + 4;
    s.plane = s.pieces * s.length + s.odd * 64; /* behind it what the first piece meets */
    s.needed = 1 + divide_up(s.reach, 64), s.slots = TILES + s.needed - 1;
    s.tiles_image = divide_up((oh - 1) * s.pitch + ow, 64);
    s.of_pitch = 0xffffffffu / (u32)s.pitch + 1;
    return s;
}
/* A place of an image, and the place `on` behind it: exact, since what is divided is less than a row and a share,
 * and times the pitch less than 2^32. */
struct place { int row, column; };
DEV struct place place_at(const struct shape &s, int nth) { return {nth / s.pitch, nth % s.pitch}; }
DEV struct place place_behind(const struct shape &s, struct place from, int on) {
    const int column = from.column + on, rows = s.pitch == 1 ? column : (int)__umulhi((u32)column, s.of_pitch);
    return {from.row + rows, column - rows * s.pitch};
}
/* Which piece of eight terms of a window is the nth, of which place of it: by pieces and then by places, so
 * that the second of a step lies behind the first. */
struct piece { int piece, i, j; };
DEV struct piece piece_of(const struct shape &s, int n) {
    const int narrow = s.taps_h * (s.taps_w - 1), wide = s.taps_h * s.taps_w, left = n - s.cut * narrow;
    if (left < 0)
        return {n / narrow, n % narrow / (s.taps_w - 1), n % (s.taps_w - 1)};
    return {s.cut + left / wide, left % wide / s.taps_w, left % s.taps_w};
}
/* Columns that the last place of a window's row has no use for come first in a place. */
DEV int column_at(const struct shape &s, int nth) {
    const int last = s.kw - (s.taps_w - 1) * s.columns, column = nth + last;
    return column < s.columns ? column : column - s.columns;
}
DEV int nth_of(const struct shape &s, int column) {
    const int last = s.kw - (s.taps_w - 1) * s.columns;
    return column < last ? column + s.columns - last : column - last;
}

/* Where things are in shared memory behind the weights, in bytes. */
struct layout { u32 planes, table, factors, scales, parts, full, empty, ready; };
DEV struct layout layout_of(const struct shape &s) {
    struct layout l;
    l.planes = s.total * PIECE_BYTES, l.table = l.planes + 32 * s.plane, l.factors = l.table + (s.steps + 3) / 4 * 16;
    l.scales = l.factors + 16 * BLOCK_N, l.parts = l.scales + 64, l.full = l.parts + 128, l.empty = l.full + 8 * s.slots;
    l.ready = l.empty + 8 * s.slots;
    return l;
}

/* ---- the split ---- */
DEV u32 magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }
DEV float exp2i(int e) { return __int_as_float((e + 127) << 23); }
DEV int exponent(u32 magnitude) { return magnitude >> 23 ? (int)(magnitude >> 23) : 9 - __clz((int)magnitude); }

/* How much an element loses where the largest is `top`: 2^44 times the square of its relative error, when
 * that is worth counting. */
DEV u64 loss(u32 x, u32 top) {
    const int d = exponent(top) - exponent(x);
    return x == 0 || d < 28 ? 0 : d >= 36 ? 1ull << 36 : 1ull << 2 * (d - 28);
}
DEV bool hopeless(u32 top) { return top >= 0x7f800000u || (top != 0 && top < 15u << 23); }

/* The power of two, and two factors that undo it, so that no step of that overflows. */
struct scaling { float by; float2 back; };
DEV struct scaling scaling_of(u32 top) {
    const int e = min(14 - ((int)(top >> 23) - 127), 126);
    return {exp2i(e), make_float2(exp2i(-e >> 1), exp2i(-e - (-e >> 1)))};
}
DEV u32 pack_f16(float low, float high) {
    u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r;
}
DEV float widen(u32 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"((half_bits)x)); return y; }
/* Two elements into two of each plane. */
DEV u32 split2(float a, float b, u32 &low) {
    const u32 high = pack_f16(a, b);
    low = pack_f16((a - widen(high & 0xffff)) * LOW_SCALE, (b - widen(high >> 16)) * LOW_SCALE);
    return high;
}
DEV u32 max_of_warp(u32 x) {
    EACH(i, 5) x = max(x, __shfl_xor_sync(0xffffffff, x, 16 >> i));
    return x;
}
DEV u32 min_of_warp(u32 x) {
    EACH(i, 5) x = min(x, __shfl_xor_sync(0xffffffff, x, 16 >> i));
    return x;
}

/* One block an output channel. scales: the two factors that undo a channel's, and whether it is a stray. */
extern "C" __global__ void __launch_bounds__(128)
    split_weights(const KG_T_weight *weight, KG_T_weights *weights, KG_T_scales *scales, int o, int c, int kh, int kw, int sh, int sw,
                  int oh, int ow, long long w0, long long w1, long long w2, long long w3) {
    __shared__ u32 parts[4];
    __shared__ u64 losses[1];
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    const struct shape s = shape_of(o, c, kh, kw, sh, sw, oh, ow);
    const int line = (int)blockIdx.x, t = (int)threadIdx.x, taps = s.kh * s.kw, all = s.c * taps;
    const float *from = weight + line * w0;
    u32 top = 0;
    if (t == 0)
        *losses = 0;
    for (int i = t; i < all && line < o; i += 128) {
        const int tap = i % taps;
        top = max(top, magnitude(__ldg(from + i / taps * w1 + tap / s.kw * w2 + tap % s.kw * w3)));
    }
    top = max_of_warp(top);
    if (t % 32 == 0)
        parts[t / 32] = top;
    __syncthreads();
    EACH(i, 4) top = max(top, parts[i]);
    const struct scaling by = scaling_of(top);
    const bool lost_all = hopeless(top);
    u64 lost = 0;
    /* A piece is 16 bytes of each channel in the high plane, then in the low one. */
    uint4 *to = (uint4 *)weights + (long long)(line / BLOCK_N) * s.total * (PIECE_BYTES / 16) + line % BLOCK_N;
    for (int n = t; n < s.total; n += 128) {
        const struct piece p = piece_of(s, n);
        float v[8];
        EACH(e, 8) {
            const int term = p.piece * 8 + e, nth = term / s.run, of_run = term - nth * s.run, row = of_run / s.c;
            const int y = p.i * s.sh + row, column = column_at(s, nth), x = p.j * s.columns + column;
            const bool in = line < o && nth < s.columns && y < s.kh && x < s.kw;
            v[e] = in ? __ldg(from + (of_run - row * s.c) * w1 + y * w2 + x * w3) : 0.0f;
            lost += loss(magnitude(v[e]), top);
            v[e] = lost_all ? 0.0f : v[e] * by.by;
        }
        uint4 high, low;
        high.x = split2(v[0], v[1], low.x), high.y = split2(v[2], v[3], low.y);
        high.z = split2(v[4], v[5], low.z), high.w = split2(v[6], v[7], low.w);
        to[n * (PIECE_BYTES / 16)] = high, to[n * (PIECE_BYTES / 16) + BLOCK_N] = low;
    }
    if (lost != 0)
        atomicAdd(losses, lost);
    __syncthreads();
    if (t == 0)
        ((float4 *)scales)[line] = make_float4(by.back.x, by.back.y, lost_all || *losses > (u64)all ? 1.0f : 0.0f, 0.0f);
}

/* ---- primitives ---- */
DEV void barrier_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}
DEV void barrier_expect(u32 bar, u32 n) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(n) : "memory");
}
DEV void barrier_arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }
DEV void barrier_wait(u32 bar, u32 parity) {
    u32 over = 0;
    while (!over)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(over) : "r"(bar), "r"(parity) : "memory");
}
DEV void load_bytes(u32 to, const u8 *from, u32 bytes, u32 bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(to), "l"(from), "r"(bytes), "r"(bar) : "memory");
}
DEV float4 shared4(u32 at) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at) : "memory");
    return v;
}
DEV void sync_some(int barrier, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }
DEV void matrices(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
/* No read of d moves above the wait before it. */
DEV void pin(float (&d)[SUMS]) { EACH(i, SUMS) asm volatile("" : "+f"(d[i])::"memory"); }
/* An operand K-major without a swizzle: 128 bytes of eight lines, the next eight lines behind them. Its descriptor's upper half is
 * a constant, the lower one its address and the way from eight terms to the next (lead), both in 16 bytes. */
DEV u32 operand_at(u32 address, u32 lead) { return address >> 4 | lead << 16; }
DEV u64 whole(u32 operand) { return (u64)operand | (u64)8 << 32; }
#define OF(d, i)                                                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#if BLOCK_N == 96
#define ALL "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
            "%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define INTO OF(d, 0), OF(d, 8), OF(d, 16), OF(d, 24), OF(d, 32), OF(d, 40)
#define SHAPE "m64n96k16"
#define PLACES "%48, %49, p, 1, 1, 0, 0;"
#define MORE "%50"
#define WORD_PLACES "{%48, %49, %50, %51}, %52, p, 1, 1, 0;"
#define WORD_MORE "%53"
#elif BLOCK_N == 64
#define ALL "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
            "%28,%29,%30,%31"
#define INTO OF(d, 0), OF(d, 8), OF(d, 16), OF(d, 24)
#define SHAPE "m64n64k16"
#define PLACES "%32, %33, p, 1, 1, 0, 0;"
#define MORE "%34"
#define WORD_PLACES "{%32, %33, %34, %35}, %36, p, 1, 1, 0;"
#define WORD_MORE "%37"
#endif
#define PRODUCT                                                                                    \
    DEV void product(float (&d)[SUMS], u64 a, u64 b, int more) {                                   \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " MORE ", 0; "                                \
                     "wgmma.mma_async.sync.aligned." SHAPE ".f32.f16.f16 {" ALL "}, " PLACES " }"  \
                     : INTO : "l"(a), "l"(b), "r"(more));                                          \
    }                                                                                              \
    DEV void product(float (&d)[SUMS], const u32 (&a)[4], u64 b, int more) {                       \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " WORD_MORE ", 0; "                           \
                     "wgmma.mma_async.sync.aligned." SHAPE ".f32.f16.f16 {" ALL "}, " WORD_PLACES " }" \
                     : INTO : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more));      \
    }
PRODUCT
DEV void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/* ---- units of work ---- */
/* Up to TILES tiles of 64 pixels of one image; all roles walk through the same ones, the nth at a time. */
struct share { int image, tile, count; };
DEV struct share share_at(const struct shape &s, int tile, int end) {
    const int image = tile / s.tiles_image, in_image = tile - image * s.tiles_image;
    return {image, in_image, min(min(TILES, s.tiles_image - in_image), end - tile)};
}
struct image_source {
    const float *input, *weight, *bias;
    int h, w, ph, pw;
    long long x0, x1, x2, x3, w0, w1, w2, w3;
};

/* ---- the producers ---- */
/* A column of a place: where its first element would be, and which of its elements there are. */
struct column { const float *from; int y; bool inside; };
DEV struct column column_of(const struct shape &s, const struct image_source &g, const float *image, struct place place, int column) {
    const int x = place.column * s.sw + column - g.pw, y = place.row * s.sh - g.ph;
    const float *from = image + (y * (int)g.x2 + x * (int)g.x3);
    asm volatile("" : "+l"(from)); /* computed once, not for each element */
    return {from, y, (u32)x < (u32)g.w};
}
DEV void load_run(float (&v)[BATCH], const struct shape &s, const struct image_source &g, const struct column &of, int first) {
    EACH(e, BATCH) {
        const int row = (first + e) / s.c, channel = (first + e) - row * s.c;
        v[e] = of.inside && (u32)(of.y + row) < (u32)g.h ? __ldg(of.from + (row * (int)g.x2 + channel * (int)g.x1)) : 0.0f;
    }
}
/* The largest element of all producers' and the least that is not zero. */
struct extremes { u32 top, least; };
DEV struct extremes of_producers(struct extremes x, u32 *parts, int thread) {
    x.top = max_of_warp(x.top), x.least = min_of_warp(x.least);
    sync_some(1, PRODUCERS); /* nobody reads the ones before */
    if (thread % 32 == 0)
        parts[thread / 32] = x.top, parts[8 + thread / 32] = x.least;
    sync_some(1, PRODUCERS);
    EACH(i, 8) x.top = max(x.top, parts[i]), x.least = min(x.least, parts[8 + i]);
    return x;
}
/* BATCH terms of a place, from term `at` on, into both planes. */
DEV void store_run(u8 *planes, const float (&v)[BATCH], float by, u32 low_plane, u32 piece_bytes, u32 place, int at) {
    u8 *const there = planes + place * 16;
#if EXACT
    if constexpr (BATCH % 2 == 0 && RUN % 2 == 0) {
        u32 high[BATCH / 2 + 1], low[BATCH / 2 + 1];
        EACH(i, BATCH / 2) high[i] = split2(v[2 * i] * by, v[(2 * i + 1) % BATCH] * by, low[i]);
        if (BATCH % 4 == 0 && RUN % 4 == 0) {
            EACH(i, BATCH / 4) {
                const u32 term = at + 4 * i;
                u8 *const to = there + (term >> 3) * piece_bytes + (term & 7) * 2;
                *(uint2 *)to = make_uint2(high[2 * i], high[2 * i + 1]);
                *(uint2 *)(to + low_plane) = make_uint2(low[2 * i], low[2 * i + 1]);
            }
        } else {
            EACH(i, BATCH / 2) {
                const u32 term = at + 2 * i;
                u8 *const to = there + (term >> 3) * piece_bytes + (term & 7) * 2;
                *(u32 *)to = high[i], *(u32 *)(to + low_plane) = low[i];
            }
        }
    } else
#endif
    EACH(i, BATCH) {
        const u32 term = at + i;
        u8 *const to = there + (term >> 3) * piece_bytes + (term & 7) * 2;
        u32 low;
        *(half_bits *)to = (half_bits)split2(v[i] * by, 0.0f, low);
        *(half_bits *)(to + low_plane) = (half_bits)low;
    }
}

/* All 256 threads; each has a column of every 256th. */
DEV void produce(const struct shape &s, const struct layout &l, const struct image_source &g, u8 *memory, u32 shared, int tile,
                 int end, int thread) {
    u32 *const parts = (u32 *)(memory + l.parts);
    const u32 piece_bytes = 16 * s.length, low_plane = 16 * s.plane;
    u32 nth = 0;
#pragma unroll 1
    for (struct share a; tile < end; tile += a.count, nth++) {
        a = share_at(s, tile, end);
        const float *image = g.input + a.image * g.x0;
        asm volatile("" : "+l"(image));
        const int first = a.tile * 64, items = min(a.count * 64, (s.oh - 1) * s.pitch + s.ow - first) * s.columns + s.reach * s.columns;
        const struct place begin = place_at(s, first);
        struct extremes x = {0, 0xffffffffu};
#pragma unroll 2
        for (int i = thread; i < items; i += PRODUCERS) {
            const struct column of = column_of(s, g, image, place_behind(s, begin, i / s.columns), i % s.columns);
#pragma unroll 1
            for (int e = 0; e < s.run; e += BATCH) {
                float v[BATCH];
                load_run(v, s, g, of, e);
                EACH(k, BATCH) x.top = max(x.top, magnitude(v[k])), x.least = min(x.least, magnitude(v[k]) - 1);
            }
        }
        x = of_producers(x, parts, thread);
        bool stray = hopeless(x.top);
        if (!stray && x.top != 0 && exponent(x.top) - exponent(x.least + 1) >= 28) {
            u64 lost = 0;
            for (int i = thread; i < items; i += PRODUCERS) {
                const struct column of = column_of(s, g, image, place_behind(s, begin, i / s.columns), i % s.columns);
                for (int e = 0; e < s.run; e += BATCH) {
                    float v[BATCH];
                    load_run(v, s, g, of, e);
                    EACH(k, BATCH) lost += loss(magnitude(v[k]), x.top);
                }
            }
            sync_some(1, PRODUCERS);
            u64 *const sum = (u64 *)(memory + l.parts);
            if (thread == 0)
                *sum = 0;
            sync_some(1, PRODUCERS);
            if (lost != 0)
                atomicAdd(sum, lost);
            sync_some(1, PRODUCERS);
            stray = *sum > (u64)items * s.run;
        }
        const struct scaling by = scaling_of(x.top);
        if (thread == 0)
            *(float4 *)(memory + l.scales + nth % 4 * 16) = make_float4(by.back.x, by.back.y, stray ? 1.0f : 0.0f, 0.0f);
#pragma unroll 1
        for (int slot = 0; slot < s.slots; slot++) {
            const int here = min(64 * s.columns, items - slot * 64 * s.columns);
            bool waited = false;
#pragma unroll 1
            for (int i = thread; i < here; i += PRODUCERS) {
                const u32 in_slot = i / s.columns, place = slot * 64 + in_slot;
                const int column = i - in_slot * s.columns, at_term = nth_of(s, column) * s.run;
                struct column of = column_of(s, g, image, place_behind(s, begin, place), column);
                of.inside = of.inside && !stray;
#pragma unroll 1
                for (int e = 0; e < s.run; e += BATCH) {
                    float v[BATCH];
                    load_run(v, s, g, of, e);
                    if (!waited) /* these are on their way meanwhile */
                        barrier_wait(shared + l.empty + 8 * slot, nth & 1 ^ 1);
                    waited = true;
                    store_run(memory + l.planes, v, by.by, low_plane, piece_bytes, place, at_term + e);
                }
            }
            if (!waited)
                barrier_wait(shared + l.empty + 8 * slot, nth & 1 ^ 1);
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); /* wgmma reads what these stores wrote */
            __syncwarp();
            if (thread % 32 == 0)
                barrier_arrive(shared + l.full + 8 * slot);
        }
    }
}

/* ---- the consumers ---- */
/* Operands in shared memory: lines of a tile and how far its tile is from the first (16 bytes), weights. */
struct operands { const u32 *table; u32 left, tile, low_plane, right; };
/* COUNT steps from step k of high high, into `high`, and of the corrections times LOW_SCALE, which are added to low or, FIRST, are
 * it; not waited for. An odd piece comes first, and meets the same zeros in each tile, and weights that they cancel. */
template <int COUNT, bool FIRST>
DEV void terms(float (&high)[SUMS], float (&low)[SUMS], const struct shape &s, const struct operands &o, int k) {
    u32 a[COUNT], b[COUNT];
    EACH(i, COUNT) a[i] = o.table[k + i] + o.left - (FIRST && i == 0 && s.odd ? o.tile << 16 : 0);
    EACH(i, COUNT) b[i] = o.right + (2 * (k + i) - (FIRST && i == 0 ? 0 : s.odd)) * (PIECE_BYTES / 16);
#if LEFT
    /* Warp w has lines 16 w on; lanes of eight the lines of a matrix: the second eight lines, then the other eight terms. */
    const u32 lane = threadIdx.x % 32, line = threadIdx.x / 32 % 4 * 16 + lane % 16;
    u32 words[COUNT][4];
    EACH(i, COUNT) matrices(words[i], ((a[i] & 0x3fff) + line + (lane / 16 ? a[i] >> 16 : 0)) * 16);
#else
    u64 words[COUNT];
    EACH(i, COUNT) words[i] = whole(a[i]);
#endif
    products_fence();
    EACH(i, COUNT) product(high, words[i], whole(b[i]), i);
    products_commit();
    EACH(i, COUNT) product(low, words[i], whole(b[i] + BLOCK_N), !FIRST || i);
    EACH(i, COUNT) product(low, whole(a[i] + o.low_plane), whole(b[i]), 1);
    products_commit();
}
/* The first steps are what the others leave; their sums are no others'. */
DEV void multiply(float (&sums)[SUMS], float (&low)[SUMS], const struct shape &s, const struct operands &o) {
    float high[SUMS];
#if EXACT
    constexpr int GROUP = 4, HEAD = (STEPS - 1) % GROUP + 1;
    int k = HEAD;
    terms<HEAD, true>(sums, low, s, o, 0);
#else
    constexpr int GROUP = 2;
    int k = 2 - s.steps % 2;
    if (k == 1)
        terms<1, true>(sums, low, s, o, 0);
    else
        terms<2, true>(sums, low, s, o, 0);
#endif
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT ? 0 : 1) : "memory");
    pin(sums);
#pragma unroll 1
    for (; k < s.steps; k += GROUP) {
        terms<GROUP, false>(high, low, s, o, k);
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); /* the corrections run on */
        pin(high);
        EACH(i, SUMS) sums[i] += high[i];
#if LEFT
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); /* the corrections read what the next steps load */
#endif
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    pin(low);
}
/* The pixel of a place of its image, or -1. */
DEV int pixel_of(const struct shape &s, struct place p) { return p.row < s.oh && p.column < s.ow ? p.row * s.ow + p.column : -1; }

/* begin: the tile's first place; line: this thread's first, 8 before its other; factors: two of each of the tile's channels, the bias, and nothing. */
DEV void finish(const float (&sums)[SUMS], const float (&low)[SUMS], float4 scale, u32 factors, KG_PROGRAMS programs,
                KG_T_output *output, const struct shape &s, int image, struct place begin, int line, int channel) {
    const bool pairs = LAST && s.o % 2 == 0;
    const int pixels = s.oh * s.ow;
    asm volatile("" : "+r"(line), "+r"(channel)); /* what follows from these is not kept in registers from tile to tile */
    EACH(h, 2) {
        const int p = pixel_of(s, place_behind(s, begin, line + 8 * h));
        if (p < 0)
            continue;
        const long long next = LAST ? 1 : pixels; /* from channel to channel */
        float *to = output + (LAST ? ((long long)image * pixels + p) * s.o : (long long)image * s.o * pixels + p) + channel * next;
        EACH(j, BLOCK_N / 8) {
            const int i = 4 * j + 2 * h, c = channel + 8 * j;
            if (c >= s.o)
                break;
            float x[2];
            EACH(e, 2) {
                const float4 g = shared4(factors + (8 * j + (int)threadIdx.x % 4 * 2 + e) * 16);
                x[e] = fmaf(low[i + e], 1.0f / LOW_SCALE, sums[i + e]) * (scale.x * g.x) * (scale.y * g.y) + g.z;
                const int m = LAST ? p : c + e, n = LAST ? c + e : p;
                x[e] = kg_epilogue(programs, kg_epilogue_row(programs, image, m), x[e], image, m, n);
            }
            if (pairs) {
                *(float2 *)to = make_float2(x[0], x[1]);
            } else {
                to[0] = x[0];
                if (c + 1 < s.o)
                    to[next] = x[1];
            }
            to += 8 * next;
        }
    }
}

/* What has a stray's part in a tile, once more: by a warpgroup, an element a thread. */
DEV void mend(const struct shape &s, const struct image_source &g, const float4 *factors, KG_PROGRAMS programs, KG_T_output *output,
              int image, struct place begin, int channels, bool all, int tid) {
    const int pixels = s.oh * s.ow;
#pragma unroll 1
    for (int e = tid; e < 64 * BLOCK_N; e += 128) {
        const int p = pixel_of(s, place_behind(s, begin, e % 64)), of_tile = e / 64, o = channels + of_tile;
        if (p < 0 || o >= s.o || !(all || factors[of_tile].w != 0.0f))
            continue;
        const int y0 = p / s.ow * s.sh - g.ph, left = p % s.ow * s.sw - g.pw;
        float sum = 0.0f;
#pragma unroll 1
        for (int channel = 0; channel < s.c; channel++)
#pragma unroll 1
            for (int a = 0; a < s.kh; a++)
#pragma unroll 1
                for (int b = 0; b < s.kw; b++) {
                    const int y = y0 + a, x = left + b;
                    if ((u32)y < (u32)g.h && (u32)x < (u32)g.w)
                        sum = fmaf(__ldg(g.input + image * g.x0 + channel * g.x1 + y * g.x2 + x * g.x3),
                                   __ldg(g.weight + o * g.w0 + channel * g.w1 + a * g.w2 + b * g.w3), sum);
                }
        sum += factors[of_tile].z;
        const int m = LAST ? p : o, n = LAST ? o : p;
        output[LAST ? ((long long)image * pixels + p) * s.o + o : ((long long)image * s.o + o) * pixels + p] =
            kg_epilogue(programs, kg_epilogue_row(programs, image, m), sum, image, m, n);
    }
}

DEV void consume(const struct shape &s, const struct layout &l, const struct image_source &g, const u8 *memory, u32 shared,
                 KG_PROGRAMS programs, KG_T_output *output, int tile, int end, int channels, bool strays, int consumer, int tid) {
    const float4 *const factors = (const float4 *)(memory + l.factors);
    const int lane = tid % 32;
    const u32 right = operand_at(shared, PIECE_BYTES / 16);
    float sums[SUMS], low[SUMS];
    u32 nth = 0;
#pragma unroll 1
    for (struct share a; tile < end; tile += a.count, nth++) {
        a = share_at(s, tile, end);
        /* Tiles in turns, also from share to share. A tile that is not there is let go like the others, so that each
         * slot is let go equally often. */
#pragma unroll 1
        for (int i = (tile + consumer) & 1; i < TILES; i += 2) {
            barrier_wait(shared + l.full + 8 * (i + s.needed - 1), nth & 1);
            const float4 scale = *(const float4 *)(memory + l.scales + nth % 4 * 16);
            if (i < a.count)
                multiply(sums, low, s, {(const u32 *)(memory + l.table), ((shared + l.planes) >> 4) + i * 64, (u32)i * 64, (u32)s.plane, right});
            if (lane < s.needed)
                barrier_arrive(shared + l.empty + 8 * (i + lane));
            if (i >= a.count)
                continue;
            const struct place begin = place_at(s, (a.tile + i) * 64);
            finish(sums, low, scale, shared + l.factors, programs, output, s, a.image, begin, tid / 32 * 16 + lane / 4, channels + lane % 4 * 2);
            if (strays || scale.z != 0.0f) {
                sync_some(3 + consumer, 128); /* these are written after the others */
                mend(s, g, factors, programs, output, a.image, begin, channels, scale.z != 0.0f, tid);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(512, 1)
    conv_few(const KG_T_input *input, const KG_T_weight *weight, const KG_T_weights *weights, const KG_T_scales *scales,
             const KG_T_bias *bias, KG_T_output *output, KG_PROGRAMS programs, int images, int o, int c, int kh, int kw, int sh, int sw,
             int oh, int ow, int h, int w, int ph, int pw, long long x0, long long x1, long long x2, long long x3, long long w0,
             long long w1, long long w2, long long w3) {
    extern __shared__ u8 memory[];
    const struct shape s = shape_of(o, c, kh, kw, sh, sw, oh, ow);
    const struct layout l = layout_of(s);
    const struct image_source g = {input, weight, bias, h, w, ph, pw, x0, x1, x2, x3, w0, w1, w2, w3};
    const u32 shared = (u32)__cvta_generic_to_shared(memory);
    const int thread = (int)threadIdx.x, role = __shfl_sync(0xffffffff, thread / 256, 0);
    const int tiles_n = divide_up(o, BLOCK_N), groups = (int)gridDim.x / tiles_n, group = (int)blockIdx.x / tiles_n;
    const int of_n = (int)blockIdx.x % tiles_n, tiles = images * s.tiles_image;
    const int begin = (int)((u32)tiles * (u32)group / (u32)groups), end = (int)((u32)tiles * (u32)(group + 1) / (u32)groups);
    if (thread == 0) {
        for (int i = 0; i < s.slots; i++) { /* each of the tiles that read a slot lets it go, by four warps */
            barrier_init(shared + l.full + 8 * i, PRODUCERS / 32);
            barrier_init(shared + l.empty + 8 * i, 4 * (min(i, TILES - 1) - max(0, i - s.needed + 1) + 1));
        }
        barrier_init(shared + l.ready, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    for (int i = thread; i < s.steps; i += 512) {
        const struct piece p = piece_of(s, max(2 * i - s.odd, 0)), q = piece_of(s, 2 * i - s.odd + 1);
        const int at = p.piece * s.length + p.i * s.pitch + p.j * TAP_W;
        const int next = s.odd && i == 0 ? s.pieces * s.length : q.piece * s.length + q.i * s.pitch + q.j * TAP_W;
        ((u32 *)(memory + l.table))[i] = operand_at(at * 16, next - at);
    }
    for (int i = thread; i < 2 * s.plane; i += 512) /* terms that no image fills, and zeros */
        ((uint4 *)(memory + l.planes))[i] = make_uint4(0, 0, 0, 0);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (role == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        produce(s, l, g, memory, shared, begin, end, thread);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 200;");
    asm volatile("griddepcontrol.wait;" ::: "memory"); /* for the weights */
    const int tid = thread - 256;
    if (tid == 0) {
        const u8 *from = (const u8 *)weights + (long long)of_n * s.total * PIECE_BYTES;
        barrier_expect(shared + l.ready, s.total * PIECE_BYTES);
        for (int i = 0; i < s.total; i++)
            load_bytes(shared + i * PIECE_BYTES, from + i * PIECE_BYTES, PIECE_BYTES, shared + l.ready);
    }
    u32 *const any = (u32 *)(memory + l.parts + 64);
    if (tid == 0)
        *any = 0;
    sync_some(2, 256);
    if (tid < BLOCK_N) {
        const int channel = of_n * BLOCK_N + tid;
        const float4 f = ((const float4 *)scales)[channel];
        ((float4 *)(memory + l.factors))[tid] = make_float4(f.x, f.y, bias && channel < o ? __ldg(bias + channel) : 0.0f, f.z);
        if (f.z != 0.0f)
            *any = 1;
    }
    sync_some(2, 256);
    const bool strays = *any != 0;
    barrier_wait(shared + l.ready, 0);
    consume(s, l, g, memory, shared, programs, output, begin, end, of_n * BLOCK_N, strays, tid / 128, tid % 128);
}
