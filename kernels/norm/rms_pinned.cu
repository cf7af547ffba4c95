/* kgen
{ "format": 1, "op": "rms_norm", "target": "cuda", "min_arch": "sm_90",
  "tunables": {"THREADS": [256, 512], "BLOCKS": [2, 1], "IN_SHARED": [14, 15, 12, 6], "HELD": [2, 4], "KEPT": [4, 6]},
  "require": "output.contiguous && (!present(weight) || weight.contiguous) && N % (input.dtype == float32 ? 4 : 8) == 0 && align(input) >= 16 && (!present(weight) || align(weight) >= 16) && N >= 16384 && THREADS * BLOCKS == 512 && KEPT <= IN_SHARED && ceil_div(N / (input.dtype == float32 ? 4 : 8), BLOCKS * NUM_SMS) <= THREADS * (HELD + IN_SHARED) && BLOCKS * (THREADS * IN_SHARED * 16 + 2048) <= MAX_SHARED + 1024",
  "workspace": {"pairs": {"dtype": "float32", "shape": ["M", "BLOCKS * NUM_SMS", "2"]}, "arrived": {"dtype": "int32", "shape": ["M"], "zero": true}},
  "launches": [{"kernel": "rms_norm_pinned", "grid": ["BLOCKS * NUM_SMS"], "block": ["THREADS"], "shared": "THREADS * IN_SHARED * 16", "cooperative": true,
    "args": ["input", "weight", "output", "pairs", "arrived", {"i32": "M"}, {"i32": "N"}, {"i32": "BLOCKS * NUM_SMS"}, {"f32": "eps"}]}] }
*/
/* RMSNorm over few long rows: the weight stays on the chip for all rows, spread over the whole
 * grid, and a row goes by.
 *
 * A block has the same slice of every row, and of the weight: IN_SHARED vectors of 16 bytes of
 * each a thread in shared memory, HELD in registers. It reads a row for its sums, leaves the pair (sum,
 * sum of squares) in the workspace, reads the next row, and only then writes the first, when all other
 * blocks have long arrived: nobody waits. Of the row between its two readings a thread keeps KEPT
 * vectors in registers; the others are found in the L2 once more.
 * No thread reads what another one loaded, so slices need no barrier.
 *
 * Traffic: 2 * M * N elements, and out of the L2 those that are not kept. Floor: 2 * M * N over the
 * rate of a copy; 16 rows of 2^22 floats take 0.126 ms at 4.26 TB/s.
 *
 * Launch bounds: THREADS, BLOCKS of them a multiprocessor; the grid must be resident at once. NaN
 * and infinity spread over their row as they do in torch. Refuses rows whose weight the chip
 * does not hold, and vectors that are not aligned (long.cu). */
#define CENTERED 0
#define KERNEL rms_norm_pinned
#define MOST 3.402823466e38f
/* Above it squares overflow, so only equal numbers have a variance, and one of them is their mean;
 * distances of others are taken from 0, where they are finite. */
#define MOST_SUM 1e30f
#define DEV static __device__ __forceinline__
#define V (16 / (int)sizeof(KG_T_input))
#define WARPS (THREADS / 32)
#define PLACES (IN_SHARED + HELD)
#define AT_ONCE (V == 4 ? 4 : 2) /* loads that are not kept */

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

/* What is not read again. */
DEV uint4 load_last(const void *p) {
    uint4 v;
    asm volatile("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];"
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

/* What a thread has of a row between its two readings. */
struct slice {
    uint4 kept[KEPT];
    float shift;
};

/* This block's vectors of all rows, of which this thread has every THREADS-th. */
struct place {
    const uint4 *from; /* the input's first row */
    uint4 *to;
    long long first; /* within a row */
    int count, vectors, parts, part;
};

DEV bool has(struct place p, int i) {
    return i * THREADS + (int)threadIdx.x < p.count;
}

DEV const uint4 *where(struct place p, int row, int i) {
    return p.from + (long long)row * p.vectors + p.first + i * THREADS + (int)threadIdx.x;
}

/* Asks for what is kept of a row; the lane's vector of its head. */
DEV uint4 begin(struct place p, int row, struct slice &s) {
    const uint4 head = load_once(p.from + (long long)row * p.vectors + threadIdx.x % 32);
#pragma unroll
    for (int i = 0; i < KEPT; i++)
        if (has(p, i))
            s.kept[i] = load_last(where(p, row, i));
    return head;
}

/* Reads the rest, adds all up and tells the other blocks. */
DEV void finish(struct place p, int row, uint4 head, struct slice &s, KG_T_pairs *pairs,
                KG_T_arrived *arrived) {
    float2 sums = make_float2(0.0f, 0.0f);
    uint4 raw[AT_ONCE];
    s.shift = CENTERED ? shift_of(head) : 0.0f;
#pragma unroll
    for (int i = KEPT; i < PLACES; i += AT_ONCE) {
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (i + k < PLACES && has(p, i + k))
                raw[k] = load_once(where(p, row, i + k));
        if (i == KEPT) {
#pragma unroll
            for (int k = 0; k < KEPT; k++)
                if (has(p, k))
                    add(s.kept[k], s.shift, sums);
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (i + k < PLACES && has(p, i + k))
                add(raw[k], s.shift, sums);
    }
    sums = block_sums(sums);
    if (threadIdx.x == 0) {
        pairs[2 * ((long long)row * p.parts + p.part)] = sums.x;
        pairs[2 * ((long long)row * p.parts + p.part) + 1] = sums.y;
        arrive(arrived + row);
    }
}

/* Of the whole row, when all blocks have arrived. */
DEV struct map total(struct place p, int row, int n, float eps, const KG_T_pairs *pairs,
                     const KG_T_arrived *arrived) {
    float2 s = make_float2(0.0f, 0.0f);
    wait_for(arrived + row, p.parts);
    for (int i = (int)threadIdx.x % 32; i < p.parts; i += 32) {
        s.x += pairs[2 * ((long long)row * p.parts + i)];
        s.y += pairs[2 * ((long long)row * p.parts + i) + 1];
    }
    return map_of(lanes_sums(s, 32), n, eps);
}

DEV uint4 mapped(uint4 raw, uint4 weight, uint4 bias, float shift, struct map m) {
    float x[V], w[V], b[V];
    unpack(raw, x);
    unpack(weight, w);
    if (CENTERED)
        unpack(bias, b);
#pragma unroll
    for (int e = 0; e < V; e++) {
        x[e] = ((CENTERED ? x[e] - shift : x[e]) * m.scale + m.offset) * w[e];
        if (CENTERED)
            x[e] += b[e];
    }
    return pack(x);
}

/* Weight and bias of this thread. */
struct affine {
    const uint4 *kept; /* in shared memory: weight, and after it bias */
    uint4 weight[HELD], bias[HELD];
};

DEV void put(struct place p, int row, int i, uint4 raw, float shift, struct map m,
             const struct affine &a) {
    const int at = i * THREADS + (int)threadIdx.x;
    uint4 *to = p.to + (long long)row * p.vectors + p.first + at;
    if (i >= IN_SHARED) {
        uint4 w = a.weight[max(i - IN_SHARED, 0)], b = a.bias[max(i - IN_SHARED, 0)];
        /* Unpacked ahead of the rows they would take twice the registers. */
        asm volatile("" : "+r"(w.x), "+r"(w.y), "+r"(w.z), "+r"(w.w));
        if (CENTERED)
            asm volatile("" : "+r"(b.x), "+r"(b.y), "+r"(b.z), "+r"(b.w));
        store_once(to, mapped(raw, w, b, shift, m));
    } else
        store_once(to, mapped(raw, a.kept[at], CENTERED ? a.kept[IN_SHARED * THREADS + at] : raw, shift, m));
}

DEV void write(struct place p, int row, const struct slice &s, struct map m, const struct affine &a) {
    uint4 raw[AT_ONCE];
#pragma unroll
    for (int i = KEPT; i < PLACES; i += AT_ONCE) {
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (i + k < PLACES && has(p, i + k))
                raw[k] = load_last(where(p, row, i + k));
        if (i == KEPT) {
#pragma unroll
            for (int k = 0; k < KEPT; k++)
                if (has(p, k))
                    put(p, row, k, s.kept[k], s.shift, m, a);
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (i + k < PLACES && has(p, i + k))
                put(p, row, i + k, raw[k], s.shift, m, a);
    }
}

/* Writes `row` and, before that, has read the one behind it. */
DEV void step(struct place p, int row, int m, int n, float eps, struct slice &now, struct slice &next,
              const struct affine &a, KG_T_pairs *pairs, KG_T_arrived *arrived) {
    uint4 head = make_uint4(0, 0, 0, 0);
    if (row + 1 < m)
        head = begin(p, row + 1, next);
    const struct map f = total(p, row, n, eps, pairs, arrived);
    if (row + 1 < m)
        finish(p, row + 1, head, next, pairs, arrived);
    write(p, row, now, f, a);
}

/* This thread's part of weight or bias to shared memory and registers; `value` where there is none. */
DEV void pin(struct place p, const uint4 *from, float value, uint4 *kept, uint4 *held) {
    float x[V];
#pragma unroll
    for (int e = 0; e < V; e++)
        x[e] = value;
#pragma unroll 1
    for (int i = 0; i < IN_SHARED; i++) {
        const int at = i * THREADS + (int)threadIdx.x;
        if (at < p.count && from != nullptr)
            copy(kept + at, from + p.first + at);
        else
            kept[at] = pack(x);
    }
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const int at = (IN_SHARED + i) * THREADS + (int)threadIdx.x;
        held[i] = at < p.count && from != nullptr ? load_once(from + p.first + at) : pack(x);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    KERNEL(TENSORS, KG_T_pairs *pairs, KG_T_arrived *arrived, int m, int n, int parts, float eps) {
    extern __shared__ uint4 kept[];
    struct place p;
    p.vectors = n / V, p.parts = parts, p.part = (int)blockIdx.x;
    const int each = (p.vectors + parts - 1) / parts;
    p.first = (long long)p.part * each;
    p.count = p.first < p.vectors ? (int)min((long long)each, p.vectors - p.first) : 0;
    p.from = (const uint4 *)input, p.to = (uint4 *)output;
    struct slice one, other;
    struct affine a;
    uint4 head = make_uint4(0, 0, 0, 0);
    if (m > 0)
        head = begin(p, 0, one);
    a.kept = kept;
    pin(p, (const uint4 *)weight, 1.0f, kept, a.weight);
#if CENTERED
    pin(p, (const uint4 *)bias, 0.0f, kept + IN_SHARED * THREADS, a.bias);
#endif
    if (m > 0)
        finish(p, 0, head, one, pairs, arrived);
    asm volatile("cp.async.wait_all;" ::: "memory");
    for (int row = 0; row < m; row += 2) {
        step(p, row, m, n, eps, one, other, a, pairs, arrived);
        if (row + 1 < m)
            step(p, row + 1, m, n, eps, other, one, a, pairs, arrived);
    }
}
