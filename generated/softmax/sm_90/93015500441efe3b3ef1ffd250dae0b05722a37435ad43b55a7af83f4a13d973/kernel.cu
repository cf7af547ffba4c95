/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "min_arch": "sm_80",
  "tunables": {"THREADS": [512, 256, 1024, 128], "UNROLL": [4, 2, 8, 1], "WAVES": [2, 1, 4]},
  "require": "input.dtype != float64 && K == 1 && input.contiguous && output.contiguous && N < 1073741824",
  "workspace": {"pairs": {"dtype": "float32", "shape": ["M < NUM_SMS ? M : 0", "max(1, min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 4096)))", "2"]}},
  "launches": [
    {"kernel": "softmax_whole", "grid": ["M"], "block": ["THREADS"], "when": "M >= NUM_SMS || min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 4096)) <= 1",
     "args": ["input", "output", {"i32": "N"}]},
    {"kernel": "softmax_scan", "grid": ["M * min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 4096))"], "block": ["THREADS"], "when": "M < NUM_SMS && min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 4096)) > 1",
     "args": ["input", "pairs", {"i32": "N"}, {"i32": "min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 4096))"}]},
    {"kernel": "softmax_scale", "grid": ["M * min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 4096))"], "block": ["THREADS"], "when": "M < NUM_SMS && min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 4096)) > 1",
     "args": ["input", "output", "pairs", {"i32": "N"}, {"i32": "min(ceil_div(WAVES * NUM_SMS, max(M, 1)), ceil_div(N, 4096))"}]}] }
*/
/* Softmax over contiguous rows of any length and alignment, read twice.
 *
 * With a row or more for each multiprocessor, one block does a row: each thread keeps a running
 * maximum and the sum against it over its vectors, the block joins them, and the row is read again,
 * from L2 as long as the rows in work fit it. With fewer rows, a row is cut into parts of at least
 * 4096 elements, WAVES blocks a multiprocessor in all; softmax_scan leaves a pair (maximum, sum) a
 * part, softmax_scale joins the pairs of its row and writes.
 *
 * Traffic: 3 * M * N elements, 2 * M * N of them from device memory where the second reading hits
 * L2. Floor: 2 * M * N over the rate of a copy. In flight: THREADS * UNROLL vectors of 16 bytes.
 *
 * Launch bounds: THREADS. A row with NaN or +inf, and a row of -inf, comes out as NaN. Refuses
 * strided rows (columns.cu has those of a middle dim) and rows of 2^30 elements or more. */
#define DEV static __device__ __forceinline__
#define LOG2E 1.44269504088896341f
#define V (16 / (int)sizeof(KG_T_input))
#define WARPS (THREADS / 32)

DEV float infinity() {
    return __int_as_float(0x7f800000);
}

/* 2^x within 2 ulp; below 2^-126 it is 0. */
DEV float exp2_(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#if KG_DTYPE_input == KG_F32
#define MINUS_INFINITY 0xff800000u
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
#define MINUS_INFINITY 0xff80u
DEV float widen(unsigned short x) {
    return __uint_as_float((unsigned)x << 16);
}
DEV unsigned pack2(float low, float high) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
#else
#define MINUS_INFINITY 0xfc00u
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

/* Elements [at, at + V) of a row of n, as they lie; those outside read as -inf, which adds nothing.
 * row + at is at a multiple of 16 bytes. Conversion is left for later: it would wait for the load.
 */
DEV uint4 load_partial(const KG_T_input *row, int at, int n) {
    unsigned word[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        word[i] = 0;
#pragma unroll
        for (int e = 0; e < V / 4; e++) {
            const int k = at + i * (V / 4) + e;
            word[i] |= (k >= 0 && k < n ? bits(row[k]) : MINUS_INFINITY) << 16 * e;
        }
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

DEV uint4 load(const KG_T_input *row, int at, int n) {
    if (at < 0 || at + V > n)
        return load_partial(row, at, n);
    return *(const uint4 *)(row + at);
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

/* A maximum and the sum of exponentials against it; (-inf, 0) of nothing, (-inf, NaN) of NaN alone.
 */
DEV float2 join(float2 a, float2 b) {
    const float top = fmaxf(a.x, b.x), low = top == -infinity() ? 0.0f : top;
    return make_float2(top, a.y * exp2_((a.x - low) * LOG2E) + b.y * exp2_((b.x - low) * LOG2E));
}

/* The pair of all threads, in each of them. Pairs of warps that other threads may still read from
 * a former call are in the way: once a kernel. */
DEV float2 block_join(float2 mine) {
    __shared__ float2 pairs[WARPS];
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int i = 16; i > 0; i /= 2)
        mine = join(mine, make_float2(__shfl_xor_sync(0xffffffff, mine.x, i),
                                      __shfl_xor_sync(0xffffffff, mine.y, i)));
    if (lane == 0)
        pairs[threadIdx.x / 32] = mine;
    __syncthreads();
    mine = lane < WARPS ? pairs[lane] : make_float2(-infinity(), 0.0f);
#pragma unroll
    for (int i = 16; i > 0; i /= 2)
        mine = join(mine, make_float2(__shfl_xor_sync(0xffffffff, mine.x, i),
                                      __shfl_xor_sync(0xffffffff, mine.y, i)));
    return mine;
}

/* A row's vectors [first, last): vector i holds elements [i * V - skew, (i + 1) * V - skew). */
struct part {
    const KG_T_input *row;
    int n, skew, first, last;
};

DEV struct part part_of(const KG_T_input *row, int n, int index, int parts) {
    struct part p;
    p.row = row, p.n = n;
    p.skew = (int)((unsigned long long)row % 16 / sizeof(KG_T_input));
    const int vectors = (n + p.skew + V - 1) / V, each = (vectors + parts - 1) / parts;
    p.first = min(vectors, index * each), p.last = min(vectors, p.first + each);
    return p;
}

/* UNROLL vectors of the thread from vector i on, THREADS apart; -inf past the part's end. */
DEV void load_some(const struct part &p, int i, float (&x)[UNROLL][V]) {
    uint4 raw[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        const int at = (i + u * THREADS) * V - p.skew;
        raw[u] = load(p.row, at, i + u * THREADS < p.last ? p.n : at);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
        unpack(raw[u], x[u]);
}

DEV float2 scan(const struct part &p) {
    float2 all = make_float2(-infinity(), 0.0f);
    for (int i = p.first + (int)threadIdx.x; i < p.last; i += UNROLL * THREADS) {
        float x[UNROLL][V];
        load_some(p, i, x);
        float2 some = make_float2(-infinity(), 0.0f);
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
#pragma unroll
            for (int e = 0; e < V; e++)
                some.x = fmaxf(some.x, x[u][e]);
        const float low = some.x == -infinity() ? 0.0f : some.x;
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
#pragma unroll
            for (int e = 0; e < V; e++)
                some.y += exp2_((x[u][e] - low) * LOG2E);
        all = join(all, some);
    }
    return all;
}

DEV void write(const struct part &p, KG_T_output *row, float2 all) {
    const float low = all.x == -infinity() ? 0.0f : all.x, scale = 1.0f / all.y;
    const bool aligned = (unsigned long long)(row - p.skew) % 16 == 0;
    for (int i = p.first + (int)threadIdx.x; i < p.last; i += UNROLL * THREADS) {
        float x[UNROLL][V];
        load_some(p, i, x);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
#pragma unroll
            for (int e = 0; e < V; e++)
                x[u][e] = exp2_((x[u][e] - low) * LOG2E) * scale;
            const int at = (i + u * THREADS) * V - p.skew;
            store(row, at, i + u * THREADS < p.last ? p.n : at, x[u], aligned);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_whole(const KG_T_input *input, KG_T_output *output, int n) {
    const long long at = (long long)blockIdx.x * n;
    const struct part p = part_of(input + at, n, 0, 1);
    write(p, output + at, block_join(scan(p)));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_scan(const KG_T_input *input, KG_T_pairs *pairs, int n, int parts) {
    const long long row = blockIdx.x / parts;
    const struct part p = part_of(input + row * n, n, (int)(blockIdx.x % parts), parts);
    const float2 all = block_join(scan(p));
    if (threadIdx.x == 0) {
        pairs[2 * (long long)blockIdx.x] = all.x;
        pairs[2 * (long long)blockIdx.x + 1] = all.y;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_scale(const KG_T_input *input, KG_T_output *output, KG_T_pairs *pairs, int n,
                  int parts) {
    const long long row = blockIdx.x / parts;
    float2 all = make_float2(-infinity(), 0.0f);
    for (int i = (int)threadIdx.x; i < parts; i += THREADS)
        all =
            join(all, make_float2(pairs[2 * (row * parts + i)], pairs[2 * (row * parts + i) + 1]));
    const struct part p = part_of(input + row * n, n, (int)(blockIdx.x % parts), parts);
    write(p, output + row * n, block_join(all));
}
