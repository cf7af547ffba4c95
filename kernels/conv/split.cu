/* kgen
{ "format": 1, "op": "conv2d", "target": "cuda", "min_arch": "sm_90",
  "tunables": {"BLOCK_N": [96, 128, 64], "LAST": [0, 1]},
  "specialize": ["KH", "KW"],
  "require": "input.dtype == float32 && LAST == channels_last && G == 1 && C * KH * KW >= 16 && N <= 65535 && O <= 65536 && N * P < 1073741824 && C * H * W < 1073741824 && C * KH * KW <= 262144 && max(DH, DW) <= 65536 && max(SH, SW) <= 65536 && N * ((H + 2 * PH) * ((C <= 4 && SW % 2 == 0 && DW == 1) ? align_up(W + 2 * PW + 1, 2) : W + 2 * PW) * ((C <= 4 && SW % 2 == 0 && DW == 1) ? 4 : align_up(C, 8)) / 8) < 1073741824",
  "holes": ["EPILOGUE"],
  "workspace": {"planes": {"dtype": "float16", "shape": ["2 * N * ((H + 2 * PH) * ((C <= 4 && SW % 2 == 0 && DW == 1) ? align_up(W + 2 * PW + 1, 2) : W + 2 * PW) * ((C <= 4 && SW % 2 == 0 && DW == 1) ? 4 : align_up(C, 8)) / 8)", 8]},
                "weights": {"dtype": "float16", "shape": ["ceil_div(O, BLOCK_N) * ceil_div(((C <= 4 && SW % 2 == 0 && DW == 1) ? KH * ceil_div(KW, 2) : KH * KW * ((C <= 4 && SW % 2 == 0 && DW == 1) ? 4 : align_up(C, 8)) / 8), 8)", "128 * BLOCK_N"]},
                "scales": {"dtype": "float32", "shape": ["N + O", 2]},
                "state": {"dtype": "int64", "zero": true, "shape": ["2 * N + O"]}},
  "launches": [
    {"kernel": "split_tops", "grid": ["min(ceil_div(C * H * W, 4096), 32)", "N"], "block": [256],
     "args": ["input", "state", {"i32": "N"}, {"i32": "C"}, {"i32": "H"}, {"i32": "W"}, {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"}, {"i64": "input.stride(2)"}, {"i64": "input.stride(3)"}]},
    {"kernel": "split_images", "grid": ["ceil_div(((H + 2 * PH) * ((C <= 4 && SW % 2 == 0 && DW == 1) ? align_up(W + 2 * PW + 1, 2) : W + 2 * PW) * ((C <= 4 && SW % 2 == 0 && DW == 1) ? 4 : align_up(C, 8)) / 8), 256)", "N"], "block": [256],
     "args": ["input", "planes", "scales", "state", {"i32": "N"}, {"i32": "C"}, {"i32": "H"}, {"i32": "W"}, {"i32": "PH"}, {"i32": "PW"}, {"i32": "((C <= 4 && SW % 2 == 0 && DW == 1) ? align_up(W + 2 * PW + 1, 2) : W + 2 * PW)"}, {"i32": "((C <= 4 && SW % 2 == 0 && DW == 1) ? 4 : align_up(C, 8))"}, {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"}, {"i64": "input.stride(2)"}, {"i64": "input.stride(3)"}]},
    {"kernel": "split_weights", "grid": ["align_up(O, BLOCK_N)"], "block": [128],
     "args": ["weight", "weights", "scales", "state", {"i32": "N"}, {"i32": "O"}, {"i32": "C"}, {"i32": "KH"}, {"i32": "KW"}, {"i32": "((C <= 4 && SW % 2 == 0 && DW == 1) ? 4 : align_up(C, 8))"}, {"i32": "ceil_div(((C <= 4 && SW % 2 == 0 && DW == 1) ? KH * ceil_div(KW, 2) : KH * KW * ((C <= 4 && SW % 2 == 0 && DW == 1) ? 4 : align_up(C, 8)) / 8), 8)"}, {"i64": "weight.stride(0)"}, {"i64": "weight.stride(1)"}, {"i64": "weight.stride(2)"}, {"i64": "weight.stride(3)"}]},
    {"kernel": "conv_split", "grid": ["min(NUM_SMS, ceil_div(N * P, 128) * ceil_div(O, BLOCK_N))"], "block": [384], "shared": "1024 + 3 * (32768 + 256 * BLOCK_N) + 48 * BLOCK_N + 64",
     "args": ["planes", "weights", "scales", "bias", "output", "programs", {"i32": "N"}, {"i32": "O"}, {"i32": "KH"}, {"i32": "KW"}, {"i32": "SH"}, {"i32": "SW"}, {"i32": "DH"}, {"i32": "DW"},
              {"i32": "H + 2 * PH"}, {"i32": "((C <= 4 && SW % 2 == 0 && DW == 1) ? align_up(W + 2 * PW + 1, 2) : W + 2 * PW)"}, {"i32": "((C <= 4 && SW % 2 == 0 && DW == 1) ? 4 : align_up(C, 8))"}, {"i32": "OW"}, {"i32": "P"}]},
    {"kernel": "conv_strays", "grid": ["4 * NUM_SMS"], "block": [256],
     "args": ["input", "weight", "bias", "output", "state", "programs", {"i32": "N"}, {"i32": "O"}, {"i32": "C"}, {"i32": "H"}, {"i32": "W"}, {"i32": "KH"}, {"i32": "KW"},
              {"i32": "SH"}, {"i32": "SW"}, {"i32": "PH"}, {"i32": "PW"}, {"i32": "DH"}, {"i32": "DW"}, {"i32": "OW"}, {"i32": "P"}, {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"}, {"i64": "input.stride(2)"}, {"i64": "input.stride(3)"}, {"i64": "weight.stride(0)"}, {"i64": "weight.stride(1)"}, {"i64": "weight.stride(2)"}, {"i64": "weight.stride(3)"}]}] }
*/
/* Convolutions of float32 with the accuracy of float32, by the tensor cores of Hopper, as an implicit
 * product of pixels and channels; one group, any shape, strides and alignment.
 *
 * Each image and each weight of an output channel is scaled by a power of two, so that its largest element
 * is in [2^14, 2^15), and split into two planes of float16: high = f16(x) and low = f16(2048 (x - high)), 22
 * bits of each element down to 2^-28 of the largest. The sum is high high + (high low + low high) / 2048; low
 * low is beyond 2^-22. The tensor cores' sums truncate, so high high goes to registers by FADD every 64
 * terms, while the corrections run; these are 2^-11 of the whole and stay in their own accumulator.
 *
 * What two planes cannot hold is never guessed. An image (a weight) is a stray when it has an Inf or a NaN,
 * when its largest element is below 2^-112, when one of its elements is below 2^-36 of the largest, or when
 * its small elements lose too much: an element at 2^-d of the largest is off by 2^(d - 50) of itself, and the
 * mean square of these must stay below 2^-44. Its planes are zero, and conv_strays computes what it has a part
 * in by FFMA, an element a thread: slow, and right.
 *
 * split_images writes the padded image with channels innermost: 16 bytes hold eight channels of a place or,
 * of at most four channels under an even stride, four channels of two places side by side, so that a row of
 * a window is one run of memory. A window is never written: the feeder's 128 threads gather 128 pixels by 64
 * terms at a time by cp.async, both planes, where they lie, in the swizzled order that wgmma reads; eight
 * threads read 128 bytes of one pixel's window. Weights lie in tiles of that order, each one bulk copy.
 *
 * conv_split: 128 pixels x BLOCK_N channels a block, 3 stages; a warpgroup feeds, two multiply 64 x BLOCK_N
 * each with three sets of accumulators.
 *
 * Traffic: the image read twice and its planes written once, 4 bytes an element (of fewer than 8 channels
 * up to 16); then planes out of the L2, each element once for every window that holds it. Floor: 6 * N * O
 * * P * C * KH * KW flops over 4096 a clock and multiprocessor.
 *
 * Launch bounds: 384 and one block a multiprocessor; 256 and 128 for the others. Refuses half types (mma.cu)
 * and groups (fma.cu). */
#define DEV static __device__ __forceinline__
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)
#define STAGES 3
#define LEFT_PLANE 16384              /* 128 lines of 64 float16 */
#define RIGHT_PLANE (BLOCK_N * 128)
#define STAGE_BYTES (2 * (LEFT_PLANE + RIGHT_PLANE))
#define FACTORS_BYTES (12 * BLOCK_N)  /* of channels, and bias */
#define FACTORS_AT (STAGES * STAGE_BYTES)
#define BARRIERS_AT (FACTORS_AT + 4 * FACTORS_BYTES)
#define SUMS (BLOCK_N / 2)            /* of a thread */
#define LOW_SCALE 2048.0f

typedef unsigned char u8;
typedef unsigned short half_bits;
typedef unsigned int u32;
typedef unsigned long long u64;

#if KG_EXACT_KH
#define TAPS_H KH
#else
#define TAPS_H kh
#endif
#if KG_EXACT_KW
#define TAPS_W KW
#else
#define TAPS_W kw
#endif

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

/* Eight elements into eight of each plane; zeros of a stray. */
DEV void split8(const float (&x)[8], float by, bool stray, uint4 &high, uint4 &low) {
    u32 h[4], l[4];
    EACH(i, 4) {
        const float a = stray ? 0.0f : x[2 * i] * by, b = stray ? 0.0f : x[2 * i + 1] * by;
        h[i] = pack_f16(a, b);
        l[i] = pack_f16((a - widen(h[i] & 0xffff)) * LOW_SCALE, (b - widen(h[i] >> 16)) * LOW_SCALE);
    }
    high = make_uint4(h[0], h[1], h[2], h[3]), low = make_uint4(l[0], l[1], l[2], l[3]);
}
/* Where 16 bytes of a plane are in their tile: the swizzle of 128 bytes. */
DEV int chunk_at(int line, int chunk) { return line * 8 + (chunk ^ (line & 7)); }

/* What is zero when it begins: how much each image loses, its largest element, and which weights are strays. */
struct state { u64 *misfits; u32 *tops; int *weights; };
DEV struct state state_of(const void *at, int images) {
    u64 *all = (u64 *)at;
    return {all, (u32 *)(all + images), (int *)(all + 2ll * images)};
}
DEV bool stray_image(const struct state &s, int image, int elements) {
    return hopeless(s.tops[image]) || s.misfits[image] > (u64)elements;
}
DEV u32 max_of_warp(u32 x) {
    EACH(i, 5) x = max(x, __shfl_xor_sync(0xffffffff, x, 16 >> i));
    return x;
}

/* The largest element of each image, a column of blocks an image. */
extern "C" __global__ void __launch_bounds__(256)
    split_tops(const KG_T_input *input, KG_T_state *memory, int images, int c, int h, int w, long long x0, long long x1,
               long long x2, long long x3) {
    const int image = (int)blockIdx.y, all = c * h * w, step = (int)gridDim.x * 256;
    const float *from = input + image * x0;
    /* Elements without gaps, in whatever order. */
    const bool dense = (x3 == 1 && x2 == w && x1 == (long long)h * w) || (x1 == 1 && x3 == c && x2 == (long long)w * c);
    u32 top = 0;
#pragma unroll 8
    for (int i = (int)blockIdx.x * 256 + (int)threadIdx.x; i < all; i += step) {
        long long at = i;
        if (!dense) {
            const int row = i / w;
            at = i % w * x3 + row % h * x2 + row / h * x1;
        }
        top = max(top, magnitude(__ldg(from + at)));
    }
    top = max_of_warp(top);
    if (threadIdx.x % 32 == 0)
        atomicMax(state_of(memory, images).tops + image, top);
}

/* Sixteen bytes of each plane a thread. wide, cp: places of a row and channels of a place in the planes. */
extern "C" __global__ void __launch_bounds__(256)
    split_images(const KG_T_input *input, KG_T_planes *planes, KG_T_scales *scales, KG_T_state *memory, int images, int c, int h,
                 int w, int ph, int pw, int wide, int cp, long long x0, long long x1, long long x2, long long x3) {
    const int image = (int)blockIdx.y, pieces = cp / 8, row_chunks = cp == 4 ? wide / 2 : wide * pieces;
    const int chunks = (h + 2 * ph) * row_chunks, at = (int)blockIdx.x * 256 + (int)threadIdx.x;
    const struct state zeros = state_of(memory, images);
    const u32 top = zeros.tops[image];
    const struct scaling s = scaling_of(top);
    if (at == 0)
        ((float2 *)scales)[image] = s.back;
    if (at >= chunks)
        return;
    /* Neighbouring threads read neighbours: channels where these are, else places. */
    const int row = at / row_chunks, rest = at - row * row_chunks, y = row - ph;
    const int place = cp == 4 ? rest * 2 : x1 == 1 ? rest / pieces : rest % wide;
    const int first = cp == 4 ? 0 : (x1 == 1 ? rest % pieces : rest / wide) * 8;
    const float *from = input + image * x0 + y * x2;
    float v[8];
    u64 lost = 0;
    EACH(e, 8) {
        const int x = place - pw + (cp == 4 ? e / 4 : 0), channel = cp == 4 ? e % 4 : first + e;
        v[e] = (u32)y < (u32)h && (u32)x < (u32)w && channel < c ? __ldg(from + x * x3 + channel * x1) : 0.0f;
    }
    EACH(e, 8) lost += loss(magnitude(v[e]), top);
    if (lost != 0)
        atomicAdd(zeros.misfits + image, lost);
    uint4 *to = (uint4 *)planes + (long long)image * chunks + row * row_chunks + (cp == 4 ? rest : place * pieces + first / 8);
    split8(v, s.by, hopeless(top), to[0], to[(long long)images * chunks]);
}

/* What a piece of eight terms of a weight is: of tap (i, j), and of j + 1 when there are four channels. */
struct taps { int i, j, c; };
DEV struct taps taps_of(int q, int kh, int kw, int cp) {
    (void)kh;
    if (cp == 4) {
        const int run = (TAPS_W + 1) / 2;
        return {q / run, q % run * 2, 0};
    }
    const int tap = q / (cp / 8);
    return {tap / TAPS_W, tap % TAPS_W, q % (cp / 8) * 8};
}

/* One block an output channel. */
extern "C" __global__ void __launch_bounds__(128)
    split_weights(const KG_T_weight *weight, KG_T_weights *weights, KG_T_scales *scales, KG_T_state *memory, int images, int o,
                  int c, int kh, int kw, int cp, int steps, long long w0, long long w1, long long w2, long long w3) {
    __shared__ u32 parts[4];
    __shared__ u64 losses[1];
    const int line = (int)blockIdx.x, taps = TAPS_H * TAPS_W, all = c * taps, t = (int)threadIdx.x;
    const float *from = weight + line * w0;
    u32 top = 0;
    if (t == 0)
        *losses = 0;
    for (int i = t; i < all && line < o; i += 128) {
        const int tap = i % taps;
        top = max(top, magnitude(__ldg(from + i / taps * w1 + tap / TAPS_W * w2 + tap % TAPS_W * w3)));
    }
    top = max_of_warp(top);
    if (t % 32 == 0)
        parts[t / 32] = top;
    __syncthreads();
    EACH(i, 4) top = max(top, parts[i]);
    const struct scaling s = scaling_of(top);
    uint4 *tile = (uint4 *)weights + (long long)(line / BLOCK_N) * steps * (RIGHT_PLANE / 8);
    u64 lost = 0;
    for (int q = t; q < steps * 8; q += 128) {
        const struct taps p = taps_of(q, kh, kw, cp);
        float v[8];
        EACH(e, 8) {
            const int j = p.j + (cp == 4 ? e / 4 : 0), channel = cp == 4 ? e % 4 : p.c + e;
            const bool in = line < o && p.i < TAPS_H && j < TAPS_W && channel < c;
            v[e] = in ? __ldg(from + channel * w1 + p.i * w2 + j * w3) : 0.0f;
            lost += loss(magnitude(v[e]), top);
        }
        uint4 *to = tile + (long long)(q / 8) * (RIGHT_PLANE / 8) + chunk_at(line % BLOCK_N, q % 8);
        split8(v, s.by, hopeless(top), to[0], to[RIGHT_PLANE / 16]);
    }
    if (lost != 0)
        atomicAdd(losses, lost);
    __syncthreads();
    if (t == 0 && line < o) {
        ((float2 *)scales)[images + line] = s.back;
        state_of(memory, images).weights[line] = hopeless(top) || *losses > (u64)all;
    }
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
/* 16 bytes, or zeros. */
DEV void copy_async(u32 to, const void *from, bool in) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(in ? 16 : 0) : "memory");
}
DEV void set_shared(u32 at, float2 v) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(v.x), "f"(v.y) : "memory");
}
DEV float2 shared2(u32 at) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");
    return v;
}
DEV float4 shared4(u32 at) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at) : "memory");
    return v;
}
/* No read of d moves above the wait before it. */
DEV void pin(float (&d)[SUMS]) { EACH(i, SUMS) asm volatile("" : "+f"(d[i])::"memory"); }
/* K-major, 128-byte swizzle, 1024 bytes from 8 lines to the next. */
DEV u64 operand_at(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)64 << 32 | (u64)1 << 62;
}
#define OF(d, i)                                                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#if BLOCK_N == 128
#define ALL "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
            "%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55," \
            "%56,%57,%58,%59,%60,%61,%62,%63"
#define INTO OF(d, 0), OF(d, 8), OF(d, 16), OF(d, 24), OF(d, 32), OF(d, 40), OF(d, 48), OF(d, 56)
#define SHAPE "m64n128k16"
#define PLACES "%64, %65, p, 1, 1, 0, 0;"
#define MORE "%66"
#elif BLOCK_N == 96
#define ALL "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
            "%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define INTO OF(d, 0), OF(d, 8), OF(d, 16), OF(d, 24), OF(d, 32), OF(d, 40)
#define SHAPE "m64n96k16"
#define PLACES "%48, %49, p, 1, 1, 0, 0;"
#define MORE "%50"
#elif BLOCK_N == 64
#define ALL "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
            "%28,%29,%30,%31"
#define INTO OF(d, 0), OF(d, 8), OF(d, 16), OF(d, 24)
#define SHAPE "m64n64k16"
#define PLACES "%32, %33, p, 1, 1, 0, 0;"
#define MORE "%34"
#endif
#define PRODUCT                                                                                    \
    DEV void product(float (&d)[SUMS], u64 a, u64 b, int more) {                                   \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " MORE ", 0; "                                \
                     "wgmma.mma_async.sync.aligned." SHAPE ".f32.f16.f16 {" ALL "}, " PLACES " }"  \
                     : INTO : "l"(a), "l"(b), "r"(more));                                          \
    }
PRODUCT
DEV void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/* ---- units of work ---- */
struct sizes { int pixels, channels, of_image, ow, steps, chunks, tiles_n, tiles; }; /* chunks of eight terms */
struct ring { int stage; u32 phase; };
DEV void step(struct ring &r) {
    if (++r.stage == STAGES)
        r.stage = 0, r.phase ^= 1;
}

/* ---- the feeder ---- */
struct feeder {
    const uint4 *planes;
    const u8 *weights;
    long long plane; /* chunks from the high to the low one */
    u32 shared, full, empty;
    int kh, kw, sh, sw, dh, dw, high, wide, cp;
};
/* Chunks from a window's begin to a piece of it. */
DEV int reach(const struct feeder &f, int q) {
    const int kh = f.kh, kw = f.kw;
    const struct taps p = taps_of(q, kh, kw, f.cp);
    const int place = p.i * f.dh * f.wide + p.j * f.dw;
    return f.cp == 4 ? place / 2 : place * (f.cp / 8) + p.c / 8;
}
/* All 128 threads: this one has piece tid % 8 of lines tid / 8 + 16 i. */
DEV void feed(const struct feeder &f, const struct sizes &s, int tid) {
    struct ring r = {0, 0};
    const int piece = tid % 8;
    u32 behind = 0; /* the barrier of the stage before, whose copies are on their way */
#pragma unroll 1
    for (int t = (int)blockIdx.x; t < s.tiles; t += (int)gridDim.x) {
        const int n = t % s.tiles_n, first = t / s.tiles_n * 128;
        int from[8];
        EACH(i, 8) {
            const int pixel = first + tid / 8 + 16 * i, image = pixel / s.of_image, in_image = pixel - image * s.of_image;
            const int row = image * f.high + in_image / s.ow * f.sh, column = in_image % s.ow * f.sw;
            from[i] = pixel >= s.pixels ? -1 : f.cp == 4 ? row * (f.wide / 2) + column / 2 : (row * f.wide + column) * (f.cp / 8);
        }
        const u8 *weights = f.weights + (long long)n * s.steps * (2 * RIGHT_PLANE);
#pragma unroll 1
        for (int k = 0; k < s.steps; k++) {
            const u32 full = f.full + 8 * r.stage, to = f.shared + r.stage * STAGE_BYTES;
            const int q = k * 8 + piece, away = reach(f, q);
            barrier_wait(f.empty + 8 * r.stage, r.phase ^ 1);
            if (tid == 0) {
                barrier_expect(full, 2 * RIGHT_PLANE);
                load_bytes(to + 2 * LEFT_PLANE, weights + (long long)k * (2 * RIGHT_PLANE), 2 * RIGHT_PLANE, full);
            }
            EACH(i, 8) {
                const bool in = from[i] >= 0 && q < s.chunks;
                const uint4 *chunk = f.planes + (in ? from[i] + away : 0);
                const u32 there = to + chunk_at(tid / 8 + 16 * i, piece) * 16;
                copy_async(there, chunk, in);
                copy_async(there + LEFT_PLANE, chunk + f.plane, in);
            }
            asm volatile("cp.async.commit_group;" ::: "memory");
            if (behind) {
                asm volatile("cp.async.wait_group 1;" ::: "memory");
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); /* wgmma reads what cp.async wrote */
                barrier_arrive(behind);
            }
            behind = full;
            step(r);
        }
    }
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    if (behind)
        barrier_arrive(behind);
}

/* ---- the consumers ---- */
/* sums and low: high high, and the corrections times LOW_SCALE, of a consumer's 64 x BLOCK_N. */
DEV void multiply(float (&sums)[SUMS], float (&low)[SUMS], const struct sizes &s, struct ring &r, u32 left, u32 right, u32 full,
                  u32 empty) {
    float high[SUMS];
    EACH(i, SUMS) sums[i] = 0.0f;
#pragma unroll 1
    for (int k = 0; k < s.steps; k++) {
        barrier_wait(full + 8 * r.stage, r.phase);
        const u32 at = r.stage * STAGE_BYTES;
        const u64 a = operand_at(left + at), a_low = operand_at(left + LEFT_PLANE + at);
        const u64 b = operand_at(right + at), b_low = operand_at(right + RIGHT_PLANE + at);
        products_fence();
        EACH(i, 4) product(high, a + 2 * i, b + 2 * i, i);
        products_commit();
        EACH(i, 4) product(low, a + 2 * i, b_low + 2 * i, k | i);
        EACH(i, 4) product(low, a_low + 2 * i, b + 2 * i, 1);
        products_commit();
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); /* the corrections run on */
        pin(high);
        EACH(i, SUMS) sums[i] += high[i];
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (threadIdx.x % 32 == 0)
            barrier_arrive(empty + 8 * r.stage);
        step(r);
    }
    pin(low);
}

/* pixel: this thread's first, 8 before its other; at: shared memory with the factors of the tile's channels, then the bias. */
DEV void finish(const float (&sums)[SUMS], const float (&low)[SUMS], const float2 *of_images, u32 at, KG_PROGRAMS programs,
                KG_T_output *output, const struct sizes &s, int pixel, int channel) {
    const bool pairs = LAST && s.channels % 2 == 0;
    EACH(h, 2) {
        const int p = pixel + 8 * h, image = p / s.of_image, in_image = p - image * s.of_image;
        const float2 f = __ldg(of_images + min(image, (s.pixels - 1) / s.of_image));
        const long long next = LAST ? 1 : s.of_image; /* from channel to channel */
        float *to = output + (LAST ? (long long)p * s.channels : (long long)image * s.channels * s.of_image + in_image) + channel * next;
        EACH(j, BLOCK_N / 8) {
            const float4 g = shared4(at + 64 * j + (int)threadIdx.x % 4 * 16);
            const float2 bias = shared2(at + 8 * BLOCK_N + 32 * j + (int)threadIdx.x % 4 * 8);
            const int i = 4 * j + 2 * h, c = channel + 8 * j;
            float x[2] = {fmaf(low[i], 1.0f / LOW_SCALE, sums[i]) * (f.x * g.x) * (f.y * g.y) + bias.x,
                          fmaf(low[i + 1], 1.0f / LOW_SCALE, sums[i + 1]) * (f.x * g.z) * (f.y * g.w) + bias.y};
            EACH(e, 2) {
                const int m = LAST ? in_image : c + e, n = LAST ? c + e : in_image;
                x[e] = kg_epilogue(programs, kg_epilogue_row(programs, image, m), x[e], image, m, n);
            }
            if (pairs) {
                if (p < s.pixels && c < s.channels)
                    *(float2 *)to = make_float2(x[0], x[1]);
            } else {
                EACH(e, 2)
                    if (p < s.pixels && c + e < s.channels)
                        to[e * next] = x[e];
            }
            to += 8 * next;
        }
    }
}

extern "C" __global__ void __launch_bounds__(384, 1)
    conv_split(const KG_T_planes *planes, const KG_T_weights *weights, const KG_T_scales *scales, const KG_T_bias *bias,
               KG_T_output *output, KG_PROGRAMS programs, int images, int channels, int kh, int kw, int sh, int sw, int dh, int dw,
               int high, int wide, int cp, int ow, int of_image) {
    extern __shared__ u8 raw[];
    const u32 shared = ((u32)__cvta_generic_to_shared(raw) + 1023) & ~1023u;
    const u32 full = shared + BARRIERS_AT, empty = full + 8 * STAGES;
    const int warpgroup = __shfl_sync(0xffffffff, (int)threadIdx.x / 128, 0), tid = (int)threadIdx.x % 128;
    const int chunks = cp == 4 ? TAPS_H * ((TAPS_W + 1) / 2) : TAPS_H * TAPS_W * (cp / 8);
    const int tiles_n = (channels + BLOCK_N - 1) / BLOCK_N, pixels = images * of_image;
    const struct sizes s = {pixels, channels, of_image, ow, (chunks + 7) / 8, chunks, tiles_n, (pixels + 127) / 128 * tiles_n};
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++)
            barrier_init(full + 8 * i, 129), barrier_init(empty + 8 * i, 8);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        const long long plane = (long long)images * high * (cp == 4 ? wide / 2 : wide * (cp / 8));
        feed({(const uint4 *)planes, (const u8 *)weights, plane, shared, full, empty, kh, kw, sh, sw, dh, dw, high, wide, cp}, s, tid);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int consumer = warpgroup - 1, lane = tid % 32;
    const float2 *of_images = (const float2 *)scales, *of_channels = of_images + images;
    struct ring r = {0, 0};
    u32 at = shared + FACTORS_AT + consumer * FACTORS_BYTES; /* and in turn two behind: nobody waits for who reads */
    u32 other = at + 2 * FACTORS_BYTES;
    float sums[SUMS], low[SUMS];
#pragma unroll 1
    for (int t = (int)blockIdx.x; t < s.tiles; t += (int)gridDim.x) {
        const int pixel = t / s.tiles_n * 128 + consumer * 64 + tid / 32 * 16 + lane / 4, channel = t % s.tiles_n * BLOCK_N;
        const float2 none = make_float2(0.0f, 0.0f); /* these are on their way while the products run */
        const bool in = tid < BLOCK_N && channel + tid < channels;
        const float2 of_channel = in ? __ldg(of_channels + channel + tid) : none;
        const float of_bias = bias && in ? __ldg(bias + channel + tid) : 0.0f;
        multiply(sums, low, s, r, shared + consumer * 8192, shared + 2 * LEFT_PLANE, full, empty);
        if (tid < BLOCK_N) {
            set_shared(at + tid * 8, of_channel);
            asm volatile("st.shared.f32 [%0], %1;" ::"r"(at + 8 * BLOCK_N + tid * 4), "f"(of_bias) : "memory");
        }
        asm volatile("bar.sync %0, 128;" ::"r"(1 + consumer) : "memory");
        finish(sums, low, of_images, at, programs, output, s, pixel, channel + lane % 4 * 2);
        const u32 next = other;
        other = at, at = next;
    }
}

/* ---- strays ---- */
extern "C" __global__ void __launch_bounds__(256)
    conv_strays(const KG_T_input *input, const KG_T_weight *weight, const KG_T_bias *bias, KG_T_output *output,
                const KG_T_state *memory, KG_PROGRAMS programs, int images, int channels, int c, int h, int w, int kh, int kw, int sh,
                int sw, int ph, int pw, int dh, int dw, int ow, int of_image, long long x0, long long x1, long long x2, long long x3,
                long long w0, long long w1, long long w2, long long w3) {
    __shared__ int any[1];
    const struct state s = state_of(memory, images);
    const int elements = c * h * w;
    if (threadIdx.x == 0)
        *any = 0;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < images + channels; i += 256)
        if (i < images ? stray_image(s, i, elements) : s.weights[i - images])
            *any = 1;
    __syncthreads();
    if (!*any)
        return;
    const long long all = (long long)images * channels * of_image;
    for (long long i = (long long)blockIdx.x * 256 + (int)threadIdx.x; i < all; i += (long long)gridDim.x * 256) {
        const long long outer = i / (LAST ? channels : of_image);
        const int inner = (int)(i - outer * (LAST ? channels : of_image));
        const int image = (int)(outer / (LAST ? of_image : channels)), middle = (int)(outer - (long long)image * (LAST ? of_image : channels));
        const int o = LAST ? inner : middle, pixel = LAST ? middle : inner;
        if (!stray_image(s, image, elements) && !s.weights[o])
            continue;
        const int y0 = pixel / ow * sh - ph, left = pixel % ow * sw - pw;
        float sum = 0.0f;
        for (int channel = 0; channel < c; channel++)
            for (int a = 0; a < TAPS_H; a++)
                for (int b = 0; b < TAPS_W; b++) {
                    const int y = y0 + a * dh, x = left + b * dw;
                    if ((u32)y < (u32)h && (u32)x < (u32)w)
                        sum = fmaf(__ldg(input + image * x0 + channel * x1 + y * x2 + x * x3),
                                   __ldg(weight + o * w0 + channel * w1 + a * w2 + b * w3), sum);
                }
        sum += bias ? __ldg(bias + o) : 0.0f;
        output[i] = kg_epilogue(programs, kg_epilogue_row(programs, image, LAST ? pixel : o), sum, image, LAST ? pixel : o, LAST ? o : pixel);
    }
}
