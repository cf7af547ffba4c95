/* kgen
{ "format": 1, "op": "rms_norm", "target": "cuda", "min_arch": "sm_90",
  "tunables": {"THREADS": [512, 256], "HELD": [1, 4, 2], "IN_SHARED": [14, 12, 6, 28], "GROUPS": [2, 1, 3], "OFFSET": [1, 0]},
  "require": "output.contiguous && (!present(weight) || weight.contiguous) && N % (input.dtype == float32 ? 4 : 8) == 0 && align(input) >= 16 && (!present(weight) || align(weight) >= 16) && N >= 16384 && ceil_div(N / (input.dtype == float32 ? 4 : 8), NUM_SMS) <= THREADS * (HELD + IN_SHARED) && GROUPS * (THREADS * IN_SHARED * 16 + 2048) <= MAX_SHARED + 1024",
  "workspace": {"pairs": {"dtype": "float32", "shape": ["M", "NUM_SMS", "2"]}, "arrived": {"dtype": "int32", "shape": ["M"], "zero": true}},
  "launches": [{"kernel": "rms_norm_grid", "grid": ["GROUPS * NUM_SMS"], "block": ["THREADS"], "shared": "THREADS * IN_SHARED * 16", "cooperative": true,
    "args": ["input", "weight", "output", "pairs", "arrived", {"i32": "M"}, {"i32": "N"}, {"i32": "NUM_SMS"}, {"f32": "eps"}]}] }
*/
/* RMSNorm over few long rows, each read once: the whole grid holds a row, in the shared memory and
 * the registers of every multiprocessor.
 *
 * GROUPS blocks share a multiprocessor, each for every GROUPS-th row. A block has the same slice of
 * its rows, IN_SHARED vectors of 16 bytes a thread in shared memory and HELD in registers. It adds
 * up its slice, leaves the pair (sum, sum of squares) in the workspace, waits until all blocks of
 * its group have done so, and writes; each vector that is written makes room for one of the next
 * row, whose loads are so under way behind the stores. While one group waits the others load and
 * store; OFFSET has the groups begin one after the other, so that they do not all wait at once.
 * No thread reads what another one loaded, so slices need no barrier.
 *
 * Traffic: 2 * M * N elements, and N of weight for each row, out of L2 as far as they stay
 * there. Floor: 2 * M * N over the rate of a copy; 16 rows of 2^22 floats take 0.126 ms at 4.26 TB/s.
 *
 * Launch bounds: THREADS, GROUPS of them a multiprocessor; the grid must be resident at once. NaN
 * and infinity spread over their row as they do in torch. Refuses rows that the chip does not hold,
 * and vectors that are not aligned (long.cu). */
#define CENTERED 0
#define KERNEL rms_norm_grid
#define MOST 3.402823466e38f
/* Above it squares overflow, so only equal numbers have a variance, and one of them is their mean;
 * distances of others are taken from 0, where they are finite. */
#define MOST_SUM 1e30f
#define DEV static __device__ __forceinline__
#define V (16 / (int)sizeof(KG_T_input))
#define WARPS (THREADS / 32)

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


DEV uint4 load_once(const void *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

DEV void store_once(void *p, uint4 v) {
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
}

/* 16 bytes to shared memory, in this thread's time. */
DEV void copy(const uint4 *to, const uint4 *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(16)
                 : "memory");
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

/* Of all threads; the first warp has the result. */
DEV float2 block_sums(float2 s) {
    __shared__ float2 held[WARPS];
    const int lane = (int)threadIdx.x % 32;
    s = lanes_sums(s, 32);
    __syncthreads(); /* the row before is read */
    if (lane == 0)
        held[threadIdx.x / 32] = s;
    __syncthreads();
    return lanes_sums(lane < WARPS ? held[lane] : make_float2(0.0f, 0.0f), 32);
}

DEV void arrive(KG_T_arrived *at) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(at), "r"(1) : "memory");
}

/* Returns when `all` blocks have arrived; what they wrote before is seen from here on. */
DEV void wait_for(const KG_T_arrived *at, int all) {
    if (threadIdx.x == 0) {
        unsigned seen = 0;
        while ((int)seen < all)
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(at) : "memory");
    }
    __syncthreads();
}

/* The mean of the row's first 32 vectors, of which this lane has one. */
DEV float shift_of(uint4 first) {
    float x[V], sum = 0.0f;
    unpack(first, x);
#pragma unroll
    for (int e = 0; e < V; e++)
        sum += x[e];
    sum = lanes_sum(sum, 32);
    const float one = __shfl_sync(0xffffffff, x[0], 0);
    bool same = true;
#pragma unroll
    for (int e = 0; e < V; e++)
        same = same && x[e] == one;
    same = __all_sync(0xffffffff, same);
    return fabsf(sum) <= MOST_SUM ? sum / (float)(32 * V) : same ? one : 0.0f;
}

DEV void add(uint4 raw, float shift, float2 &s) {
    float x[V];
    unpack(raw, x);
#pragma unroll
    for (int e = 0; e < V; e++) {
        const float d = CENTERED ? x[e] - shift : x[e];
        s.x += d;
        s.y += d * d;
    }
}


#if CENTERED
#define TENSORS                                                                                    \
    const KG_T_input *input, const KG_T_weight *weight, const KG_T_bias *bias, KG_T_output *output
#else
#define TENSORS const KG_T_input *input, const KG_T_weight *weight, KG_T_output *output
#endif

/* weight, bias: of this vector, or NULL. */
DEV uint4 mapped(uint4 raw, const uint4 *weight, const uint4 *bias, float shift, struct map m) {
    float x[V], w[V], b[V];
    if (weight != nullptr)
        unpack(__ldg(weight), w);
    if (bias != nullptr)
        unpack(__ldg(bias), b);
    unpack(raw, x);
#pragma unroll
    for (int e = 0; e < V; e++) {
        x[e] = (CENTERED ? x[e] - shift : x[e]) * m.scale + m.offset;
        if (weight != nullptr)
            x[e] *= w[e];
        if (bias != nullptr)
            x[e] += b[e];
    }
    return pack(x);
}

extern "C" __global__ void __launch_bounds__(THREADS, GROUPS)
    KERNEL(TENSORS, KG_T_pairs *pairs, KG_T_arrived *arrived, int m, int n, int parts, float eps) {
    extern __shared__ uint4 kept[];
#if !CENTERED
    const KG_T_input *bias = nullptr;
#endif
    const int group = (int)blockIdx.x / parts, part = (int)blockIdx.x % parts;
    const int me = (int)threadIdx.x, lane = me % 32, vectors = n / V;
    const int each = (vectors + parts - 1) / parts;
    const long long first = (long long)part * each;
    const int count = first < vectors ? (int)min((long long)each, vectors - first) : 0;
    const uint4 *const w = weight == nullptr ? nullptr : (const uint4 *)weight + first;
    const uint4 *const b = bias == nullptr ? nullptr : (const uint4 *)bias + first;
    uint4 held[HELD], head;
    if (OFFSET && group > 0 && group < m)
        wait_for(arrived + group - 1, parts);
    if (group < m) {
        const uint4 *from = (const uint4 *)input + (long long)group * vectors;
        head = load_once(from + lane);
#pragma unroll 1
        for (int i = 0; i < IN_SHARED; i++)
            if (i * THREADS + me < count)
                copy(kept + i * THREADS + me, from + first + i * THREADS + me);
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if ((IN_SHARED + i) * THREADS + me < count)
                held[i] = load_once(from + first + (IN_SHARED + i) * THREADS + me);
    }
    for (int row = group; row < m; row += GROUPS) {
        const bool more = row + GROUPS < m;
        const uint4 *next = (const uint4 *)input + (long long)(row + GROUPS) * vectors + first;
        uint4 *to = (uint4 *)output + (long long)row * vectors + first;
        const float shift = CENTERED ? shift_of(head) : 0.0f;
        float2 s = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if ((IN_SHARED + i) * THREADS + me < count)
                add(held[i], shift, s);
        asm volatile("cp.async.wait_all;" ::: "memory");
#pragma unroll 1
        for (int i = 0; i < IN_SHARED; i++)
            if (i * THREADS + me < count)
                add(kept[i * THREADS + me], shift, s);
        s = block_sums(s);
        if (me == 0) {
            pairs[2 * ((long long)row * parts + part)] = s.x;
            pairs[2 * ((long long)row * parts + part) + 1] = s.y;
            arrive(arrived + row);
        }
        if (more)
            head = load_once(next - first + lane);
        wait_for(arrived + row, parts);
        s = make_float2(0.0f, 0.0f);
        for (int i = lane; i < parts; i += 32) {
            s.x += pairs[2 * ((long long)row * parts + i)];
            s.y += pairs[2 * ((long long)row * parts + i) + 1];
        }
        const struct map f = map_of(lanes_sums(s, 32), n, eps);
#pragma unroll 1
        for (int i = 0; i < IN_SHARED; i++) {
            const int at = i * THREADS + me;
            if (at < count) {
                store_once(to + at, mapped(kept[at], w ? w + at : w, b ? b + at : b, shift, f));
                if (more)
                    copy(kept + at, next + at);
            }
        }
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int at = (IN_SHARED + i) * THREADS + me;
            if (at < count) {
                store_once(to + at, mapped(held[i], w ? w + at : w, b ? b + at : b, shift, f));
                if (more)
                    held[i] = load_once(next + at);
            }
        }
    }
}
