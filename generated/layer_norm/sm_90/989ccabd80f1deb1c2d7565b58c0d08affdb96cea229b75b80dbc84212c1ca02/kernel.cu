/* kgen
{ "format": 1, "op": "layer_norm", "target": "cuda", "min_arch": "sm_80",
  "tunables": {"THREADS": [512, 256, 1024, 128], "UNROLL": [2, 1, 4], "WAVES": [2, 4, 1]},
  "require": "output.contiguous && (!present(weight) || weight.contiguous) && (!present(bias) || bias.contiguous) && N < 1073741824",
  "workspace": {"pairs": {"dtype": "float64", "shape": ["M < NUM_SMS && min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 8192)) > 1 ? M * min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 8192)) : 0", "2"]}},
  "launches": [
    {"kernel": "layer_norm_whole", "grid": ["M"], "block": ["THREADS"], "when": "!(M < NUM_SMS && min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 8192)) > 1)",
     "args": ["input", "weight", "bias", "output", {"i32": "N"}, {"f32": "eps"}]},
    {"kernel": "layer_norm_sums", "grid": ["M * min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 8192))"], "block": ["THREADS"], "when": "M < NUM_SMS && min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 8192)) > 1",
     "args": ["input", "pairs", {"i32": "N"}, {"i32": "min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 8192))"}]},
    {"kernel": "layer_norm_write", "grid": ["M * min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 8192))"], "block": ["THREADS"], "when": "M < NUM_SMS && min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 8192)) > 1",
     "args": ["input", "weight", "bias", "output", "pairs", {"i32": "N"}, {"i32": "min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 8192))"}, {"f32": "eps"}]}] }
*/
/* LayerNorm over contiguous rows of any length and alignment, read twice.
 *
 * With a row or more for each multiprocessor, one block does a row, and the second reading comes
 * from L2 as long as the rows in work fit it. With fewer rows, a row is cut into parts of at least
 * 8192 elements, WAVES blocks a multiprocessor in all; the first launch leaves the sums of each
 * part, the second adds up those of its row and writes.
 * Deviations are taken from the mean of the row's first elements, which every warp takes by itself,
 * so that a row far from zero costs no digits and sums from all over the row add up.
 * Sums go from vector to vector in double.
 *
 * Traffic: 3 * M * N elements, 2 * M * N of them from device memory where the second reading hits
 * L2. Floor: 2 * M * N over the rate of a copy.
 *
 * Launch bounds: THREADS. NaN and infinity spread over their row as they do in torch. Refuses rows
 * of 2^30 elements or more. */
#define CENTERED 1
#define WHOLE layer_norm_whole
#define PART_SUMS layer_norm_sums
#define PART_WRITE layer_norm_write
/* Above it squares overflow, so only equal numbers have a variance, and one of them is their mean;
 * distances of others are taken from 0, where they are finite. */
#define MOST_SUM 1e30f
#define DEV static __device__ __forceinline__
#define V (16 / (int)sizeof(KG_T_input))
#define WARPS (THREADS / 32)

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

DEV uint4 load(const KG_T_input *row, int at, int n) {
    if (at < 0 || at + V > n)
        return load_partial(row, at, n);
    return *(const uint4 *)(row + at);
}

/* Of weight or bias, whose own address says whether vectors can be read. */
DEV void load_affine(const KG_T_input *of, int at, int n, float *x) {
    if (at >= 0 && at + V <= n && (unsigned long long)(of + at) % 16 == 0)
        unpack(__ldg((const uint4 *)(of + at)), x);
    else
        unpack(load_partial(of, at, n), x);
}

DEV void store(KG_T_output *row, int at, int n, const float *x, bool aligned) {
    if (aligned && at >= 0 && at + V <= n) {
        *(uint4 *)(row + at) = pack(x);
        return;
    }
#pragma unroll
    for (int e = 0; e < V; e++)
        if (at + e >= 0 && at + e < n)
            row[at + e] = narrow(x[e]);
}

DEV double warp_sum(double x) {
    for (int i = 16; i > 0; i /= 2)
        x += __shfl_xor_sync(0xffffffff, x, i);
    return x;
}

/* Sums over some elements of their distance from the row's shift, and of its square. rms_norm has
 * squares of the elements alone. */
struct sums {
    double sum, square;
};

/* Of all threads, in each of them. Once a kernel: nothing keeps the next call's writes off. */
DEV struct sums block_sums(struct sums s) {
    __shared__ double held[WARPS][2];
    const int lane = (int)threadIdx.x % 32;
    s.sum = CENTERED ? warp_sum(s.sum) : 0.0;
    s.square = warp_sum(s.square);
    if (lane == 0) {
        held[threadIdx.x / 32][0] = s.sum;
        held[threadIdx.x / 32][1] = s.square;
    }
    __syncthreads();
    s.sum = CENTERED ? warp_sum(lane < WARPS ? held[lane][0] : 0.0) : 0.0;
    s.square = warp_sum(lane < WARPS ? held[lane][1] : 0.0);
    return s;
}

/* A distance d becomes d * scale + offset. */
struct map {
    float scale, offset;
};

DEV struct map map_of(struct sums s, int n, float eps) {
    struct map m;
    const double rest = s.sum / n, variance = s.square / n - rest * rest;
    const double scale = 1.0 / sqrt((variance < 0.0 ? 0.0 : variance) + (double)eps);
    m.scale = (float)scale;
    m.offset = (float)(-rest * scale);
    return m;
}

/* A row's vectors [first, last): vector i holds elements [i * V - skew, (i + 1) * V - skew). */
struct part {
    const KG_T_input *row;
    int n, skew, first, last;
    float shift;
};

/* The mean of the row's first elements, one vector a lane; the same in every warp. */
DEV float shift_of(const struct part &p) {
    float x[V], sum = 0.0f;
    const int first = 32 * V - p.skew;
    unpack(load(p.row, (int)threadIdx.x % 32 * V - p.skew, p.n), x);
#pragma unroll
    for (int e = 0; e < V; e++)
        sum += x[e];
    for (int i = 16; i > 0; i /= 2)
        sum += __shfl_xor_sync(0xffffffff, sum, i);
    const int count = p.n < first ? p.n : first;
    if (fabsf(sum) <= MOST_SUM)
        return sum / (float)count;
    for (int i = 1; i < count; i++)
        if (bits(p.row[i]) != bits(p.row[0]))
            return 0.0f;
    unpack(load_partial(p.row, 0, p.n), x);
    return x[0];
}

DEV struct part part_of(const KG_T_input *row, int n, int index, int parts) {
    struct part p;
    p.row = row, p.n = n;
    p.skew = (int)((unsigned long long)row % 16 / sizeof(KG_T_input));
    const int vectors = (n + p.skew + V - 1) / V, each = (vectors + parts - 1) / parts;
    p.first = min(vectors, index * each), p.last = min(vectors, p.first + each);
    p.shift = CENTERED ? shift_of(p) : 0.0f;
    return p;
}

/* UNROLL vectors of the thread from vector i on, THREADS apart: distances from the shift, 0 past the
 * part's end. */
DEV void load_some(const struct part &p, int i, float (&x)[UNROLL][V]) {
    uint4 raw[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        const int at = (i + u * THREADS) * V - p.skew;
        raw[u] = load(p.row, at, i + u * THREADS < p.last ? p.n : at);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        const int at = (i + u * THREADS) * V - p.skew;
        unpack(raw[u], x[u]);
#pragma unroll
        for (int e = 0; CENTERED && e < V; e++) {
            const bool inside = i + u * THREADS < p.last && at + e >= 0 && at + e < p.n;
            x[u][e] = inside ? x[u][e] - p.shift : 0.0f;
        }
    }
}

DEV struct sums scan(const struct part &p) {
    struct sums all = {0.0, 0.0};
    for (int i = p.first + (int)threadIdx.x; i < p.last; i += UNROLL * THREADS) {
        float x[UNROLL][V], sum = 0.0f, square = 0.0f;
        load_some(p, i, x);
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
#pragma unroll
            for (int e = 0; e < V; e++) {
                sum += x[u][e];
                square += x[u][e] * x[u][e];
            }
        all.sum += (double)sum;
        all.square += (double)square;
    }
    return block_sums(all);
}

DEV void write(const struct part &p, const KG_T_weight *weight, const KG_T_weight *bias,
               KG_T_output *row, struct map m) {
    const bool aligned = (unsigned long long)(row - p.skew) % 16 == 0;
    for (int i = p.first + (int)threadIdx.x; i < p.last; i += UNROLL * THREADS) {
        float x[UNROLL][V];
        load_some(p, i, x);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int at = (i + u * THREADS) * V - p.skew;
            const int end = i + u * THREADS < p.last ? p.n : at;
            float w[V], b[V];
            if (weight != nullptr)
                load_affine(weight, at, end, w);
            if (bias != nullptr)
                load_affine(bias, at, end, b);
#pragma unroll
            for (int e = 0; e < V; e++) {
                x[u][e] = x[u][e] * m.scale + m.offset;
                if (weight != nullptr)
                    x[u][e] *= w[e];
                if (bias != nullptr)
                    x[u][e] += b[e];
            }
            store(row, at, end, x[u], aligned);
        }
    }
}

#if CENTERED
#define TENSORS                                                                                    \
    const KG_T_input *input, const KG_T_weight *weight, const KG_T_bias *bias, KG_T_output *output
#else
#define TENSORS const KG_T_input *input, const KG_T_weight *weight, KG_T_output *output
#endif

extern "C" __global__ void __launch_bounds__(THREADS) WHOLE(TENSORS, int n, float eps) {
    const long long at = (long long)blockIdx.x * n;
#if !CENTERED
    const KG_T_input *bias = nullptr;
#endif
    const struct part p = part_of(input + at, n, 0, 1);
    write(p, weight, bias, output + at, map_of(scan(p), n, eps));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    PART_SUMS(const KG_T_input *input, KG_T_pairs *pairs, int n, int parts) {
    const long long row = blockIdx.x / parts;
    const struct sums s = scan(part_of(input + row * n, n, (int)(blockIdx.x % parts), parts));
    if (threadIdx.x == 0) {
        pairs[2 * (long long)blockIdx.x] = s.sum;
        pairs[2 * (long long)blockIdx.x + 1] = s.square;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    PART_WRITE(TENSORS, KG_T_pairs *pairs, int n, int parts, float eps) {
    const long long row = blockIdx.x / parts;
    struct sums all = {0.0, 0.0};
#if !CENTERED
    const KG_T_input *bias = nullptr;
#endif
    for (int i = (int)threadIdx.x; i < parts; i += THREADS) {
        all.sum += pairs[2 * (row * parts + i)];
        all.square += pairs[2 * (row * parts + i) + 1];
    }
    const struct part p = part_of(input + row * n, n, (int)(blockIdx.x % parts), parts);
    write(p, weight, bias, output + row * n, map_of(block_sums(all), n, eps));
}
