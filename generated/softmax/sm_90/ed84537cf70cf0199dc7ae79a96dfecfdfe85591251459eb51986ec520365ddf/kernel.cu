/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "min_arch": "sm_90",
  "tunables": {"CLUSTER": [8, 4, 2, 16], "THREADS": [256, 512, 128, 1024], "VECS": [8, 4, 16, 2]},
  "specialize": ["N"],
  "require": "input.dtype != float64 && K == 1 && input.contiguous && output.contiguous && (N % (input.dtype == float32 ? 4 : 8) != 0 || align(input) >= 16) && N + (N % (input.dtype == float32 ? 4 : 8) == 0 ? 0 : 8) <= CLUSTER * THREADS * VECS * (input.dtype == float32 ? 4 : 8) && THREADS * VECS * (input.dtype == float32 ? 1 : 2) <= 8192",
  "launches": [{"kernel": "softmax_cluster", "grid": ["M * CLUSTER"], "block": ["THREADS"], "cluster": ["CLUSTER"],
    "args": ["input", "output", {"i64": "M"}, {"i32": "N"}]}] }
*/
/* Softmax over long contiguous rows, each read once: a cluster of CLUSTER blocks holds a row in its
 * registers.
 *
 * A thread loads VECS vectors of 16 bytes, each warp takes its maximum, exponentiates against it,
 * sums, and sends the pair (maximum, sum) into the shared memory of every block of the cluster by
 * st.async, whose bytes the receiver's mbarrier counts: no fence, which would wait for all memory.
 * Then each warp finds all pairs of the row in its own shared memory and scales what it holds. The
 * cluster barrier that a peer's mbarrier needs before the first store is entered before the loads
 * and left after the sums, so it costs nothing. A block ends when all pairs have come to it, so
 * nobody writes to a block that has ended.
 * Several small blocks a multiprocessor keep loads in flight while others exponentiate and store.
 *
 * Traffic: 2 * M * N elements, the floor of any softmax: (4096, 65536) fp32 is 2.15 GB, 0.504 ms at
 * 4.26 TB/s. In flight at the defaults: 32 KiB a block of 256 threads.
 *
 * Launch bounds: THREADS. A row with NaN or +inf, and a row of -inf, comes out as NaN. Refuses rows
 * that do not fit the cluster's registers (long.cu), and strided ones. */
#define DEV static __device__ __forceinline__
#define LOG2E 1.44269504088896341f
#define V (16 / (int)sizeof(KG_T_input))
#define WARPS (THREADS / 32)
#define PAIRS (CLUSTER * WARPS)

/* With N known, vectors beyond the row are not even counted. */
#if KG_EXACT_N
#define SLOTS (N % V == 0 ? N / V : N / V + 2)
#define NEEDED ((SLOTS + CLUSTER * THREADS - 1) / (CLUSTER * THREADS))
#define HELD (NEEDED < VECS ? (NEEDED < 1 ? 1 : NEEDED) : VECS)
#define FULL (N == HELD * CLUSTER * THREADS * V)
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

DEV float warp_max(float x) {
#pragma unroll
    for (int i = 16; i > 0; i /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, i));
    return x;
}

DEV float warp_sum(float x) {
#pragma unroll
    for (int i = 16; i > 0; i /= 2)
        x += __shfl_xor_sync(0xffffffff, x, i);
    return x;
}

DEV unsigned cluster_rank() {
    unsigned r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}

DEV void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

DEV void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

DEV unsigned shared_at(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

/* A barrier for one arrival and `bytes` bytes, of which the arrival is done here. */
DEV void barrier_start(const unsigned long long *barrier, unsigned bytes) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_at(barrier)), "r"(1));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_at(barrier)),
                 "r"(bytes)
                 : "memory");
}

DEV void barrier_wait(const unsigned long long *barrier) {
    unsigned over = 0;
    while (!over)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
                     "selp.u32 %0, 1, 0, p; }"
                     : "=r"(over)
                     : "r"(shared_at(barrier)), "r"(0)
                     : "memory");
}

DEV unsigned address_of(const void *p, unsigned rank) {
    unsigned at;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_at(p)), "r"(rank));
    return at;
}

/* Writes a pair into the same place of block `rank` of the cluster; its barrier counts the bytes.
 */
DEV void put(const float2 *place, const unsigned long long *barrier, unsigned rank, float2 pair) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
            address_of(place, rank)),
        "f"(pair.x), "f"(pair.y), "r"(address_of(barrier, rank))
        : "memory");
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

/* What this warp's exponentials, taken against `peak`, are multiplied with. A warp of -inf alone
 * has
 * (-inf, 0); where all have it, the sum of 0 gives the NaN that is due. */
DEV float share_of(const float2 *pairs, float peak) {
    float top = -infinity(), sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PAIRS; i += 32)
        if (i + (int)threadIdx.x % 32 < PAIRS)
            top = fmaxf(top, pairs[i + threadIdx.x % 32].x);
    top = warp_max(top);
    top = top == -infinity() ? 0.0f : top;
#pragma unroll
    for (int i = 0; i < PAIRS; i += 32)
        if (i + (int)threadIdx.x % 32 < PAIRS) {
            const float2 pair = pairs[i + threadIdx.x % 32];
            sum += pair.y * exp2_((pair.x - top) * LOG2E);
        }
    return exp2_((peak - top) * LOG2E) / warp_sum(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_cluster(const KG_T_input *input, KG_T_output *output, long long m, int n) {
    __shared__ float2 pairs[PAIRS];
    __shared__ unsigned long long barrier[1];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int rank = (int)cluster_rank();
    const long long row = (long long)blockIdx.x / CLUSTER;
    (void)m;
#if KG_EXACT_N
    n = N;
#endif
    if (threadIdx.x == 0)
        barrier_start(barrier, PAIRS * 8);
    cluster_arrive();
    const KG_T_input *from = input + row * n;
    KG_T_output *to = output + row * n;
    int skew = (int)((unsigned long long)from % 16 / sizeof(KG_T_input));
#if KG_EXACT_N
    if (N % V == 0)
        skew = 0;
#endif
    const bool aligned = (unsigned long long)(to - skew) % 16 == 0;
    const int first = rank * THREADS * HELD + (int)threadIdx.x;
    uint4 raw[HELD];
    float x[HELD][V], peak = -infinity();
#pragma unroll
    for (int i = 0; i < HELD; i++)
        raw[i] = load(from, (first + i * THREADS) * V - skew, n);
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        unpack(raw[i], x[i]);
#pragma unroll
        for (int e = 0; e < V; e++)
            peak = fmaxf(peak, x[i][e]);
    }
    peak = warp_max(peak);
    const float against = peak == -infinity() ? 0.0f : peak;
    const float sum = warp_sum(exponentiate(x, against));
    cluster_wait();
    if (lane < CLUSTER)
        put(pairs + rank * WARPS + warp, barrier, (unsigned)lane, make_float2(peak, sum));
    barrier_wait(barrier);
    const float scale = share_of(pairs, against);
#pragma unroll
    for (int i = 0; i < HELD; i++) {
#pragma unroll
        for (int e = 0; e < V; e++)
            x[i][e] *= scale;
        store(to, (first + i * THREADS) * V - skew, n, x[i], aligned);
    }
}
