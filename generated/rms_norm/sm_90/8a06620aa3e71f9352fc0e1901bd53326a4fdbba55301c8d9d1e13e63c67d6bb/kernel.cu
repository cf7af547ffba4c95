/* kgen
{ "format": 1, "op": "rms_norm", "target": "cuda", "min_arch": "sm_80",
  "tunables": {"ROW_THREADS": [256, 32, 128, 512, 1024, 64, 16, 8], "ROWS": [1, 4, 8, 2, 16, 32], "VECS": [4, 1, 2, 8]},
  "specialize": ["N"],
  "require": "output.contiguous && (!present(weight) || weight.contiguous) && (N % (input.dtype == float32 ? 4 : 8) != 0 || align(input) >= 16) && N + (N % (input.dtype == float32 ? 4 : 8) == 0 ? 0 : 8) <= ROW_THREADS * VECS * (input.dtype == float32 ? 4 : 8) && ROW_THREADS * ROWS >= 64 && ROW_THREADS * ROWS <= 1024 && ROW_THREADS * ROWS * VECS * (input.dtype == float32 ? 1 : 2) <= 8192",
  "launches": [{"kernel": "rms_norm_ragged", "grid": ["ceil_div(M, ROWS)"], "block": ["ROW_THREADS * ROWS"],
    "args": ["input", "weight", "output", {"i64": "M"}, {"i32": "N"}, {"f32": "eps"}]}] }
*/
/* RMSNorm over contiguous rows of any alignment that fit the registers of ROW_THREADS threads.
 *
 * A thread holds VECS vectors of 16 bytes of its row as floats, loaded before anything is computed.
 * The warps of a row exchange their sums of squares through shared memory. A row costs one barrier, and none when it
 * belongs to one warp. Vectors lie on 16-byte boundaries of memory: where N is no multiple of a
 * vector, a row's first and last vector are partial and go element by element.
 *
 * Traffic: 2 * M * N elements; weight comes from L1 but for the first row of a
 * multiprocessor. Floor: 2 * M * N over the rate of a copy; 8192 x 8192 bf16 take
 * 0.063 ms at 4.26 TB/s.
 *
 * Launch bounds: ROW_THREADS * ROWS threads, at most 1024. NaN and infinity spread over their row as
 * they do in torch. Refuses rows that do not fit (long.cu). */
#define CENTERED 0
#define KERNEL rms_norm_ragged
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
#define SLOTS (N % V == 0 ? N / V : N / V + 2)
#define NEEDED ((SLOTS + ROW_THREADS - 1) / ROW_THREADS)
#define HELD (NEEDED < VECS ? (NEEDED < 1 ? 1 : NEEDED) : VECS)
#define FULL (N == HELD * ROW_THREADS * V)
#else
#define HELD VECS
#define FULL 0
#endif

#if KG_DTYPE_input == KG_F32
DEV unsigned bits(float x) {
    return __float_as_uint(x);
}
DEV float narrow(float x) {
    return x;
}
DEV void unpack(uint4 v, float *x) {
    x[0] = __uint_as_float(v.x), x[1] = __uint_as_float(v.y);
    x[2] = __uint_as_float(v.z), x[3] = __uint_as_float(v.w);
}
DEV uint4 pack(const float *x) {
    return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
                      __float_as_uint(x[3]));
}
#else
DEV unsigned bits(unsigned short x) {
    return x;
}
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
DEV unsigned short narrow(float x) {
    return (unsigned short)pack2(x, 0.0f);
}
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


/* Elements [at, at + V) of a row of n, as they lie; those outside read as 0. row + at is at a
 * multiple of 16 bytes. Conversion is left for later: it would wait for the load. */
template <class T> DEV uint4 load_partial(const T *row, int at, int n) {
    unsigned word[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        word[i] = 0;
#pragma unroll
        for (int e = 0; e < V / 4; e++) {
            const int k = at + i * (V / 4) + e;
            word[i] |= (k >= 0 && k < n ? bits(row[k]) : 0u) << 16 * e;
        }
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

DEV uint4 load_whole(const void *p) {
    uint4 v;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

DEV uint4 load(const KG_T_input *row, int at, int n) {
    if (!FULL && (at < 0 || at + V > n))
        return load_partial(row, at, n);
    return load_whole(row + at);
}

/* Of weight or bias, whose own address says whether vectors can be read. */
DEV void load_affine(const KG_T_input *of, int at, int n, float *x) {
    if ((FULL || (at >= 0 && at + V <= n)) && (unsigned long long)(of + at) % 16 == 0)
        unpack(__ldg((const uint4 *)(of + at)), x);
    else
        unpack(load_partial(of, at, n), x);
}

DEV void store(KG_T_output *row, int at, int n, const float *x, bool aligned) {
    if (FULL ? n > 0 : aligned && at >= 0 && at + V <= n) {
        *(uint4 *)(row + at) = pack(x);
    } else if (!FULL) {
#pragma unroll
        for (int e = 0; e < V; e++)
            if (at + e >= 0 && at + e < n)
                row[at + e] = narrow(x[e]);
    }
}

/* Sums over some elements of their distance from the row's shift, and of its square. rms_norm has
 * squares of the elements alone. */
DEV float2 lanes_sums(float2 s, int lanes) {
    for (int i = lanes / 2; i > 0; i /= 2) {
        s.y += __shfl_xor_sync(0xffffffff, s.y, i);
        if (CENTERED)
            s.x += __shfl_xor_sync(0xffffffff, s.x, i);
    }
    return s;
}

DEV float lanes_sum(float x, int lanes) {
    for (int i = lanes / 2; i > 0; i /= 2)
        x += __shfl_xor_sync(0xffffffff, x, i);
    return x;
}

/* A distance d becomes d * scale + offset. */
struct map {
    float scale, offset;
};

DEV struct map map_of(float2 s, int n, float eps) {
    struct map m;
    const float rest = CENTERED ? s.x / (float)n : 0.0f;
    const float squares = s.y / (float)n;
    const float variance = squares <= MOST ? squares - rest * rest : squares;
    m.scale = 1.0f / sqrtf((variance < 0.0f ? 0.0f : variance) + eps);
    m.offset = -rest * m.scale;
    return m;
}

/* The mean of the row's first elements, one vector a lane; the same in every warp of the row. */
DEV float shift_of(const KG_T_input *row, int skew, int n) {
    float x[V], sum = 0.0f;
    const int lane = (int)threadIdx.x % WARP_LANES, first = WARP_LANES * V - skew;
    const int at = lane * V - skew;
    unpack(load(row, at, n), x);
#pragma unroll
    for (int e = 0; e < V; e++)
        sum += x[e];
    sum = lanes_sum(sum, WARP_LANES);
    const int count = n < first ? n : first;
    if (fabsf(sum) <= MOST_SUM)
        return sum / (float)count;
    for (int i = 1; i < count; i++)
        if (bits(row[i]) != bits(row[0]))
            return 0.0f;
    unpack(load_partial(row, 0, n), x);
    return x[0];
}

/* x becomes its distance from shift, and 0 outside the row; returns the thread's sums. */
DEV float2 deviations(float (&x)[HELD][V], float shift, int lane, int skew, int n) {
    float2 s = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const int at = (i * ROW_THREADS + lane) * V - skew;
        const bool whole = FULL || (at >= 0 && at + V <= n);
#pragma unroll
        for (int e = 0; e < V; e++) {
            if (CENTERED)
                x[i][e] = whole || (at + e >= 0 && at + e < n) ? x[i][e] - shift : 0.0f;
            s.x += x[i][e];
            s.y += x[i][e] * x[i][e];
        }
    }
    return s;
}

#if CENTERED
#define TENSORS                                                                                    \
    const KG_T_input *input, const KG_T_weight *weight, const KG_T_bias *bias, KG_T_output *output
#else
#define TENSORS const KG_T_input *input, const KG_T_weight *weight, KG_T_output *output
#endif

extern "C" __global__ void __launch_bounds__(ROW_THREADS *ROWS)
    KERNEL(TENSORS, long long m, int n, float eps) {
    __shared__ float2 pairs[ROWS * ROW_WARPS];
    const int lane = (int)threadIdx.x % ROW_THREADS, group = (int)threadIdx.x / ROW_THREADS;
    const long long row = (long long)blockIdx.x * ROWS + group;
#if !CENTERED
    const KG_T_input *bias = nullptr;
#endif
#if KG_EXACT_N
    n = N;
#endif
    const int length = row < m ? n : 0;
    const KG_T_input *from = input + (row < m ? row * n : 0);
    KG_T_output *to = output + (row < m ? row * n : 0);
    int skew = (int)((unsigned long long)from % 16 / sizeof(KG_T_input));
#if KG_EXACT_N
    if (N % V == 0)
        skew = 0;
#endif
    const bool aligned = (unsigned long long)(to - skew) % 16 == 0;
    uint4 raw[HELD];
    float x[HELD][V];
#pragma unroll
    for (int i = 0; i < HELD; i++)
        raw[i] = load(from, (i * ROW_THREADS + lane) * V - skew, length);
    const float shift = CENTERED ? shift_of(from, skew, length) : 0.0f;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        unpack(raw[i], x[i]);
    float2 sums = lanes_sums(deviations(x, shift, lane, skew, length), WARP_LANES);
    if (ROW_WARPS > 1) {
        if (lane % 32 == 0)
            pairs[group * ROW_WARPS + lane / 32] = sums;
        __syncthreads();
        const int i = (int)threadIdx.x % 32;
        sums = i < ROW_WARPS ? pairs[group * ROW_WARPS + i] : make_float2(0.0f, 0.0f);
        sums = lanes_sums(sums, 32);
    }
    const struct map f = map_of(sums, n, eps);
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const int at = (i * ROW_THREADS + lane) * V - skew;
        float w[V], b[V];
        if (weight != nullptr)
            load_affine(weight, at, length, w);
        if (bias != nullptr)
            load_affine(bias, at, length, b);
#pragma unroll
        for (int e = 0; e < V; e++) {
            x[i][e] = x[i][e] * f.scale + f.offset;
            if (weight != nullptr)
                x[i][e] *= w[e];
            if (bias != nullptr)
                x[i][e] += b[e];
        }
        store(to, at, length, x[i], aligned);
    }
}
