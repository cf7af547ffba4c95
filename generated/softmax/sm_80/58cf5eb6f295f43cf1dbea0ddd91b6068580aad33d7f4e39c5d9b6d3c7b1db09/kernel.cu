/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "min_arch": "sm_80",
  "tunables": {"ROW_THREADS": [256, 32, 128, 512, 1024, 64, 16, 8, 4], "ROWS": [1, 4, 8, 2, 16, 32], "VECS": [4, 1, 2, 8]},
  "specialize": ["N"],
  "require": "input.dtype != float64 && K == 1 && input.contiguous && output.contiguous && (N % (input.dtype == float32 ? 4 : 8) != 0 || align(input) >= 16) && N + (N % (input.dtype == float32 ? 4 : 8) == 0 ? 0 : 8) <= ROW_THREADS * VECS * (input.dtype == float32 ? 4 : 8) && ROW_THREADS * ROWS >= 64 && ROW_THREADS * ROWS <= 1024 && ROW_THREADS * ROWS * VECS * (input.dtype == float32 ? 1 : 2) <= 8192",
  "launches": [{"kernel": "softmax_rows", "grid": ["ceil_div(M, ROWS)"], "block": ["ROW_THREADS * ROWS"],
    "args": ["input", "output", {"i64": "M"}, {"i32": "N"}]}] }
*/
/* Softmax over contiguous rows that fit the registers of ROW_THREADS threads.
 *
 * A thread holds VECS vectors of 16 bytes of its row as floats, loaded before anything is computed.
 * Each warp takes its own maximum, exponentiates against it and sums; warps of one row exchange the
 * pair (maximum, sum) through shared memory, so that a row costs one barrier, and none when it
 * belongs to one warp. Vectors lie on 16-byte boundaries of memory: where N is no multiple of a
 * vector, a row's first and last vector are partial and go element by element.
 *
 * Traffic: 2 * M * N elements. Floor: that over the rate of a copy; 2^27 floats take 0.25 ms
 * at 4.26 TB/s. At the defaults a thread has 64 bytes in flight.
 *
 * Launch bounds: ROW_THREADS * ROWS threads, at most 1024. A row with NaN or +inf, and a row of
 * -inf, comes out as NaN. Refuses strided rows and rows that do not fit (cluster.cu, long.cu). */
#define DEV static __device__ __forceinline__
#define LOG2E 1.44269504088896341f
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
    if (!FULL && (at < 0 || at + V > n))
        return load_partial(row, at, n);
    return *(const uint4 *)(row + at);
}

DEV void store_partial(KG_T_output *row, int at, int n, const float *x) {
#pragma unroll
    for (int e = 0; e < V; e++)
        if (at + e >= 0 && at + e < n)
            row[at + e] = narrow(x[e]);
}

/* A full row is aligned, since outputs begin at a multiple of 256 bytes. */
DEV void store(KG_T_output *row, int at, int n, const float *x, bool aligned) {
    if (FULL ? n > 0 : aligned && at >= 0 && at + V <= n)
        *(uint4 *)(row + at) = pack(x);
    else if (!FULL)
        store_partial(row, at, n, x);
}

DEV float lanes_max(float x) {
#pragma unroll
    for (int i = WARP_LANES / 2; i > 0; i /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, i));
    return x;
}

DEV float lanes_sum(float x) {
#pragma unroll
    for (int i = WARP_LANES / 2; i > 0; i /= 2)
        x += __shfl_xor_sync(0xffffffff, x, i);
    return x;
}

/* x becomes e^(x - peak); returns the thread's sum. */
DEV float exponentiate(float (&x)[HELD][V], float peak) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < HELD; i++)
#pragma unroll
        for (int e = 0; e < V; e++) {
            x[i][e] = exp2_((x[i][e] - peak) * LOG2E);
            sum += x[i][e];
        }
    return sum;
}

/* What this warp's exponentials, taken against `peak`, are multiplied with. The pairs of the row's
 * warps lie in shared memory; a warp of -inf alone has (-inf, 0). */
DEV float share_of(const float2 *pairs, float peak) {
    const int i = (int)threadIdx.x % 32;
    const float2 pair = i < ROW_WARPS ? pairs[i] : make_float2(-infinity(), 0.0f);
    float top = lanes_max(pair.x);
    top = top == -infinity() ? 0.0f : top;
    const float sum = lanes_sum(pair.y * exp2_((pair.x - top) * LOG2E));
    return exp2_((peak - top) * LOG2E) / sum;
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS *ROWS)
    softmax_rows(const KG_T_input *input, KG_T_output *output, long long m, int n) {
    __shared__ float2 pairs[ROWS * ROW_WARPS];
    const int lane = (int)threadIdx.x % ROW_THREADS, group = (int)threadIdx.x / ROW_THREADS;
    const long long row = (long long)blockIdx.x * ROWS + group;
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
    float x[HELD][V], peak = -infinity();
#pragma unroll
    for (int i = 0; i < HELD; i++)
        raw[i] = load(from, (i * ROW_THREADS + lane) * V - skew, length);
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        unpack(raw[i], x[i]);
#pragma unroll
        for (int e = 0; e < V; e++)
            peak = fmaxf(peak, x[i][e]);
    }
    peak = lanes_max(peak);
    /* Of a row of one warp, -inf - -inf gives the NaN that is due; among warps the sum of 0 does.
     */
    const float against = ROW_WARPS > 1 && peak == -infinity() ? 0.0f : peak;
    const float sum = lanes_sum(exponentiate(x, against));
    float scale = 1.0f / sum;
    if (ROW_WARPS > 1) {
        if (lane % 32 == 0)
            pairs[group * ROW_WARPS + lane / 32] = make_float2(peak, sum);
        __syncthreads();
        scale = share_of(pairs + group * ROW_WARPS, against);
    }
#pragma unroll
    for (int i = 0; i < HELD; i++) {
#pragma unroll
        for (int e = 0; e < V; e++)
            x[i][e] *= scale;
        store(to, (i * ROW_THREADS + lane) * V - skew, length, x[i], aligned);
    }
}
