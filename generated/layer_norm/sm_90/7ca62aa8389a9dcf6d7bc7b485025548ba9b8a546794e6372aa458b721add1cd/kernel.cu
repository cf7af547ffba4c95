/* kgen
{ "format": 1, "op": "layer_norm", "target": "cuda", "min_arch": "sm_80",
  "tunables": {"ROW_THREADS": [256, 128, 32, 512, 64, 8], "ROWS": [1, 4, 2, 16], "VECS": [2, 4, 8], "TURNS": [8, 4, 2, 1], "BLOCKS": [2, 4, 1]},
  "specialize": ["N"],
  "require": "output.contiguous && (!present(weight) || weight.contiguous) && (!present(bias) || bias.contiguous) && N % (input.dtype == float32 ? 4 : 8) == 0 && align(input) >= 16 && (!present(weight) || align(weight) >= 16) && (!present(bias) || align(bias) >= 16) && N <= ROW_THREADS * VECS * (input.dtype == float32 ? 4 : 8) && ROW_THREADS * ROWS >= 64 && ROW_THREADS * ROWS <= 1024 && ROW_THREADS * ROWS * BLOCKS <= 2048 && ROW_THREADS * ROWS * BLOCKS * (VECS * (input.dtype == float32 ? 16 : 20) + 24) <= 65536",
  "launches": [{"kernel": "layer_norm_rows", "grid": ["ceil_div(M, ROWS * TURNS)"], "block": ["ROW_THREADS * ROWS"],
    "args": ["input", "weight", "bias", "output", {"i64": "M"}, {"i32": "N"}, {"f32": "eps"}]}] }
*/
/* LayerNorm over contiguous rows of whole vectors that fit the registers of ROW_THREADS threads.
 *
 * A block does TURNS times ROWS rows. A thread has VECS vectors of 16 bytes of its row, and those of
 * weight and bias in registers for all its rows; as soon as a row is unpacked, the loads of the
 * next one are under way behind its sums and its stores.
 * Each warp takes the mean of what it holds and sums up the distances from it and their squares; one
 * exchange through shared memory puts the warps' sums on one footing, so that a row far from zero
 * costs no digits. A row costs one barrier, and none when it belongs to one warp.
 *
 * Traffic: 2 * M * N elements, and weight and bias once for each block. Floor: 2 * M * N over the rate of
 * a copy; 8192 x 8192 bf16 take 0.063 ms at 4.26 TB/s.
 *
 * Launch bounds: ROW_THREADS * ROWS threads, at least BLOCKS blocks a multiprocessor. NaN and infinity spread
 * over their row as they do in torch. Refuses rows that do not fit, and rows, weight and bias that are
 * not whole aligned vectors (ragged.cu, long.cu). */
#define CENTERED 1
#define KERNEL layer_norm_rows
#define MOST 3.402823466e38f
/* Above it squares overflow, so only equal numbers have a variance, and one of them is their mean;
 * distances of others are taken from 0, where they are finite. */
#define MOST_SUM 1e30f
#define DEV static __device__ __forceinline__
#define V (16 / (int)sizeof(KG_T_input))
#define WARP_LANES (ROW_THREADS < 32 ? ROW_THREADS : 32)
#define ROW_WARPS (ROW_THREADS / WARP_LANES)

/* With N known, vectors beyond the row are not even counted. */
#if KG_EXACT_N
#define NEEDED ((N / V + ROW_THREADS - 1) / ROW_THREADS)
#define HELD (NEEDED < VECS ? (NEEDED < 1 ? 1 : NEEDED) : VECS)
#define FULL (N == HELD * ROW_THREADS * V)
#else
#define HELD VECS
#define FULL 0
#endif

#if KG_DTYPE_input == KG_F32
DEV void unpack(uint4 v, float *x) {
    x[0] = __uint_as_float(v.x), x[1] = __uint_as_float(v.y);
    x[2] = __uint_as_float(v.z), x[3] = __uint_as_float(v.w);
}
DEV uint4 pack(const float *x) {
    return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
                      __float_as_uint(x[3]));
}
#else
#if KG_DTYPE_input == KG_BF16
DEV float widen(unsigned short x) {
    return __uint_as_float((unsigned)x << 16);
}
DEV unsigned pack2(float low, float high) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
#else
DEV float widen(unsigned short x) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x));
    return r;
}
DEV unsigned pack2(float low, float high) {
    unsigned r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
#endif
DEV void unpack(uint4 v, float *x) {
    const unsigned word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = widen((unsigned short)word[i]);
        x[2 * i + 1] = widen((unsigned short)(word[i] >> 16));
    }
}
DEV uint4 pack(const float *x) {
    return make_uint4(pack2(x[0], x[1]), pack2(x[2], x[3]), pack2(x[4], x[5]), pack2(x[6], x[7]));
}
#endif


/* In its place among other such loads, so that a prefetch is one. */
DEV uint4 load(const uint4 *p) {
    uint4 v;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

/* The thread's vectors of a row that begins at p, which has `vectors` of them; 0 beyond. */
DEV void load_row(const KG_T_input *p, int lane, int vectors, uint4 (&raw)[HELD]) {
    const uint4 *from = (const uint4 *)p + lane;
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        raw[i] = make_uint4(0, 0, 0, 0);
        if (FULL ? vectors > 0 : i * ROW_THREADS + lane < vectors)
            raw[i] = load(from + i * ROW_THREADS);
    }
}

/* The compiler would unpack what all rows share ahead of the loop, at twice the registers. */
DEV void keep_packed(uint4 &v) {
    asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w));
}

DEV float lanes_sum(float x, int lanes) {
    for (int i = lanes / 2; i > 0; i /= 2)
        x += __shfl_xor_sync(0xffffffff, x, i);
    return x;
}

/* Of the elements that a warp holds of a row: how many, a float near their mean (rms_norm: 0 and 0),
 * and the sums of their distances from it and of the squares of those. x becomes those distances,
 * and 0 beyond the row. */
DEV float4 part_of(float (&x)[HELD][V], int lane, int vectors) {
    float sum = 0.0f, count = 0.0f, mean = 0.0f;
    float4 p = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (CENTERED) {
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            count += FULL || i * ROW_THREADS + lane < vectors ? (float)V : 0.0f;
#pragma unroll
            for (int e = 0; e < V; e++)
                sum += x[i][e];
        }
        p.x = FULL ? (float)(HELD * V * WARP_LANES) : lanes_sum(count, WARP_LANES);
        sum = lanes_sum(sum, WARP_LANES);
        mean = p.x > 0.0f ? sum / p.x : 0.0f;
        if (__any_sync(0xffffffff, !(fabsf(sum) <= MOST_SUM))) {
            const float one = __shfl_sync(0xffffffff, x[0][0], 0, WARP_LANES);
            float others = 0.0f;
#pragma unroll
            for (int i = 0; i < HELD; i++)
#pragma unroll
                for (int e = 0; e < V; e++)
                    others += (FULL || i * ROW_THREADS + lane < vectors) && x[i][e] != one;
            others = lanes_sum(others, WARP_LANES);
            if (!(fabsf(sum) <= MOST_SUM))
                mean = others > 0.0f ? 0.0f : one;
        }
        p.y = mean;
    }
#pragma unroll
    for (int i = 0; i < HELD; i++)
#pragma unroll
        for (int e = 0; e < V; e++) {
            if (CENTERED)
                x[i][e] = FULL || i * ROW_THREADS + lane < vectors ? x[i][e] - mean : 0.0f;
            p.z += x[i][e];
            p.w += x[i][e] * x[i][e];
        }
    p.z = CENTERED ? lanes_sum(p.z, WARP_LANES) : 0.0f;
    p.w = lanes_sum(p.w, WARP_LANES);
    return p;
}

/* A distance d from this warp's mean becomes d * scale + offset. */
struct map {
    float scale, offset;
};

/* mean: of the warp that asks; parts: of all warps of the row, each lane having one or none. */
DEV struct map map_of(float mean, float4 part, int n, int lanes, float eps) {
    struct map m;
    const float each = 1.0f / (float)n;
    float base = 0.0f, rest = 0.0f;
    if (CENTERED) {
        base = __shfl_sync(0xffffffff, part.y, 0, lanes);
        base += lanes_sum(part.x > 0.0f ? (part.y - base) * (part.x * each) : 0.0f, lanes);
        const float off = part.x > 0.0f ? part.y - base : 0.0f;
        part.w += off * part.z + off * (part.z + part.x * off);
        part.z += part.x * off;
        rest = lanes_sum(part.z, lanes) * each;
    }
    const float squares = lanes_sum(part.w, lanes) * each;
    const float variance = squares <= MOST ? squares - rest * rest : squares;
    m.scale = 1.0f / sqrtf((variance < 0.0f ? 0.0f : variance) + eps);
    m.offset = CENTERED ? (mean - base - rest) * m.scale : 0.0f;
    return m;
}

#if CENTERED
#define TENSORS                                                                                    \
    const KG_T_input *input, const KG_T_weight *weight, const KG_T_bias *bias, KG_T_output *output
#else
#define TENSORS const KG_T_input *input, const KG_T_weight *weight, KG_T_output *output
#endif

extern "C" __global__ void __launch_bounds__(ROW_THREADS *ROWS, BLOCKS)
    KERNEL(TENSORS, long long m, int n, float eps) {
    __shared__ float4 parts[2][ROWS * ROW_WARPS];
    const int lane = (int)threadIdx.x % ROW_THREADS, group = (int)threadIdx.x / ROW_THREADS;
#if !CENTERED
    const KG_T_input *bias = nullptr;
#endif
#if KG_EXACT_N
    n = N;
#endif
    const int vectors = n / V;
    uint4 w[HELD], b[HELD], raw[HELD];
    long long row = (long long)blockIdx.x * ROWS + group;
    load_row(input + row * n, lane, row < m ? vectors : 0, raw);
    if (weight != nullptr)
        load_row(weight, lane, vectors, w);
    if (bias != nullptr)
        load_row(bias, lane, vectors, b);
    /* All groups of a block go round as often, for its barriers. */
    for (int turn = 0; row - group < m; turn ^= 1) {
        const int here = row < m ? vectors : 0;
        uint4 *to = (uint4 *)output + row * vectors;
        float x[HELD][V];
#pragma unroll
        for (int i = 0; i < HELD; i++)
            unpack(raw[i], x[i]);
        row += (long long)gridDim.x * ROWS;
        load_row(input + row * n, lane, row < m ? vectors : 0, raw);
        float4 part = part_of(x, lane, here);
        const float mean = part.y;
        if (ROW_WARPS > 1) {
            if (lane % 32 == 0)
                parts[turn][group * ROW_WARPS + lane / 32] = part;
            __syncthreads();
            part = parts[turn][group * ROW_WARPS + lane % ROW_WARPS];
        }
        const struct map f = map_of(mean, part, n, ROW_WARPS, eps);
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            float scale[V], more[V];
            if (weight != nullptr) {
                keep_packed(w[i]);
                unpack(w[i], scale);
            }
            if (bias != nullptr) {
                keep_packed(b[i]);
                unpack(b[i], more);
            }
#pragma unroll
            for (int e = 0; e < V; e++) {
                x[i][e] = x[i][e] * f.scale + f.offset;
                if (weight != nullptr)
                    x[i][e] *= scale[e];
                if (bias != nullptr)
                    x[i][e] += more[e];
            }
            if (FULL ? here > 0 : i * ROW_THREADS + lane < here)
                to[i * ROW_THREADS + lane] = pack(x[i]);
        }
    }
}
