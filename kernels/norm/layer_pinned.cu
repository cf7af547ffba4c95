/* kgen
{ "format": 1, "op": "layer_norm", "target": "cuda", "min_arch": "sm_90",
  "tunables": {"THREADS": [256, 512], "PLACES": [32, 16, 8, 4], "HELD": [4, 2, 0], "GROUPS": [1, 2, 4, 8, 16, 33], "AHEAD": [4, 2, 6, 0], "WHEN": [0, 1, 2], "LINES": [0, 1], "LAST": [0, 1], "APART": [1, 16]},
  "require": "output.contiguous && (!present(weight) || weight.contiguous) && (!present(bias) || bias.contiguous) && N % (input.dtype == float32 ? 4 : 8) == 0 && align(input) >= 16 && (!present(weight) || align(weight) >= 16) && (!present(bias) || align(bias) >= 16) && N >= 16384 && (GROUPS == 1 || GROUPS <= M && GROUPS <= NUM_SMS) && align_up(ceil_div(N / (input.dtype == float32 ? 4 : 8), NUM_SMS / GROUPS), 8) <= THREADS * PLACES && (PLACES == 4 || 2 * ceil_div(N / (input.dtype == float32 ? 4 : 8), NUM_SMS / GROUPS) > THREADS * PLACES) && THREADS * PLACES <= 8192 && (THREADS == 256 || input.dtype == float32 && PLACES == 16 && WHEN == 0 && HELD == 2 && AHEAD <= 4) && (present(weight) + present(bias)) * THREADS * (PLACES - HELD) * 16 + 512 <= MAX_SHARED && (HELD == 0 || THREADS * (PLACES - HELD + 1) * 32 + 512 > MAX_SHARED) && (AHEAD > 0 || WHEN + LINES == 0) && (WHEN < 2 || LINES == 0)",
  "workspace": {"pairs": {"dtype": "int64", "shape": ["GROUPS", "2", "NUM_SMS / GROUPS", "APART"], "zero": true}},
  "launches": [{"kernel": "layer_norm_pinned", "grid": ["NUM_SMS / GROUPS", "GROUPS"], "block": ["THREADS"], "shared": "32 + (present(weight) + present(bias)) * THREADS * (PLACES - HELD) * 16", "cooperative": true,
    "args": ["input", "weight", "bias", "output", "pairs", {"i32": "M"}, {"i32": "N"}, {"i32": "align_up(ceil_div(N / (input.dtype == float32 ? 4 : 8), NUM_SMS / GROUPS), 8)"}, {"f32": "eps"}]}] }
*/
/* LayerNorm over few long rows: weight and bias stay on the chip for all rows, spread over the blocks
 * of a group, and each row is read once and stays in their registers until it is written.
 *
 * A block of a group (of all multiprocessors, or of a part of them with rows of its own) has the same
 * slice of the group's rows, of weight and of bias. Of weight and bias all but HELD vectors of 16
 * bytes a thread lie in shared memory, those and the row's PLACES vectors in registers. It adds up its
 * slice, tells the others, waits for their sums, and writes; each vector that is written makes room
 * for one of the next row.
 * While blocks wait for each other the memory is busy with the next row: its bytes are asked for into
 * the L2, AHEAD quarters of a row ahead of the loads, at once before the wait (WHEN 0), at once behind
 * the loads of the row before (1), or in turn with them (2); by one thread, or with LINES by all, a
 * line each.
 *
 * Blocks tell each other a pair (sum, sum of squares) in one word of 64 bits, which is stored and
 * looked at whole and says by itself that it is there: a sum of squares has no sign, so its sign is
 * set in the group's rows 0 and 1, clear in 2 and 3, and so on, and row r lies where r - 2 did. Nobody
 * writes there who has not seen all of r - 1, which come from blocks that had seen all of r - 2.
 * Pairs are APART words apart.
 * No thread reads what another one loaded, so slices need no barrier.
 * Deviations are taken from the mean of the row's first elements, so that a row far from zero costs
 * no digits and sums from all over the row add up; always in the same order.
 *
 * Traffic: 2 * M * N elements, and weight and bias once. Floor: that over the rate of a copy; 16 rows
 * of 2^22 floats take 0.134 ms at 4.26 TB/s.
 *
 * Launch bounds: THREADS, one block a multiprocessor; the grid must be resident at once. NaN and
 * infinity spread over their row as they do in torch. Refuses rows whose slices do not fit a block,
 * and vectors that are not aligned (long.cu). */
#define CENTERED 1
#define KERNEL layer_norm_pinned
#define MOST 3.402823466e38f
/* Above it squares overflow, so only equal numbers have a variance, and one of them is their mean;
 * distances of others are taken from 0, where they are finite. */
#define MOST_SUM 1e30f
#define DEV static __device__ __forceinline__
#define V (16 / (int)sizeof(KG_T_input))
#define WARPS (THREADS / 32)
#define IN_SHARED (PLACES - HELD)
#define DEPTH (AHEAD * PLACES / 4)
#define LOOKS 5 /* pairs a lane: 160 blocks at once */
#define LINE 8  /* vectors of a line of 128 bytes */
#define SIGN 0x80000000u

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

/* LAST: of what is not read again the L2 is told so. */
DEV uint4 load_once(const void *p) {
    uint4 v;
#if LAST
    asm volatile("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
#else
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
#endif
    return v;
}

/* Nothing that is stored is read here, so loads may pass it. */
DEV void store_once(void *p, uint4 v) {
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w));
}

/* 16 bytes to shared memory, in this thread's time. */
DEV void copy(const uint4 *to, const uint4 *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(16)
                 : "memory");
}

/* Into the L2. */
DEV void prefetch(const uint4 *from, int count) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(count * 16));
}

DEV void prefetch_line(const uint4 *from) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
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
        if (CENTERED)
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

/* ---- between the blocks of a group ---- */

/* sign: what says that this row's pair is there. */
DEV void tell(KG_T_pairs *at, float2 s, unsigned sign) {
    const unsigned squares = (__float_as_uint(s.y) & ~SIGN) | sign;
    const unsigned long long both = (unsigned long long)squares << 32 | __float_as_uint(s.x);
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(at), "l"(both) : "memory");
}

DEV unsigned long long look(const KG_T_pairs *at) {
    unsigned long long both;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(both) : "l"(at) : "memory");
    return both;
}

/* The sums over all blocks, by one warp, which waits for them. */
DEV float2 gather(const KG_T_pairs *pairs, int parts, unsigned sign) {
    float2 s = make_float2(0.0f, 0.0f);
    const int lane = (int)threadIdx.x % 32;
    pairs += lane * APART;
#pragma unroll 1
    for (int left = parts - lane; left > -lane; left -= 32 * LOOKS, pairs += 32 * LOOKS * APART) {
        unsigned long long seen[LOOKS];
#pragma unroll
        for (int k = 0; k < LOOKS; k++)
            seen[k] = left > 32 * k ? look(pairs + 32 * k * APART) : 0;
        for (bool again = true; again;) {
            again = false;
#pragma unroll
            for (int k = 0; k < LOOKS; k++)
                if (left > 32 * k && ((unsigned)(seen[k] >> 32) & SIGN) != sign) {
                    seen[k] = look(pairs + 32 * k * APART);
                    again = true;
                }
        }
#pragma unroll
        for (int k = 0; k < LOOKS; k++)
            if (left > 32 * k) {
                s.x += __uint_as_float((unsigned)seen[k]);
                s.y += __uint_as_float((unsigned)(seen[k] >> 32) & ~SIGN);
            }
    }
    __syncwarp();
    return lanes_sums(s, 32);
}

/* ---- a block's slice ---- */

/* This thread's number; what a row makes of it would else be kept in registers from row to row. */
DEV int self() {
    int me = (int)threadIdx.x;
    asm volatile("" : "+r"(me));
    return me;
}

/* Of those that ask for rows, where the first warp is last: it has other work. */
DEV int who() {
    const int me = self();
    return me < 32 ? me + THREADS - 32 : me - 32;
}

/* The same vectors of each row, of weight and of bias; rows GROUPS apart are this group's. */
struct place {
    const uint4 *from; /* in the input's first row */
    int first, count, vectors, rows;
};

/* Asks for places `begin` to `end`, counted on from row to row of the group and from `row`'s first: `who`
 * of `all` threads that do so. */
DEV void ask(struct place p, int row, int begin, int end, int who, int all) {
#pragma unroll
    for (int k = 0; k * PLACES < end; k++) {
        const int at = max(begin - k * PLACES, 0) * THREADS;
        const int to = min(min(end - k * PLACES, PLACES) * THREADS, p.count);
        if (row + k * GROUPS < p.rows && at < to && (LINES || who == 0)) {
            const uint4 *from = p.from + (long long)(row + k * GROUPS) * p.vectors;
            if (!LINES)
                prefetch(from + at, to - at);
#pragma unroll 1
            for (int i = at + who * LINE; LINES && i < to; i += all * LINE)
                prefetch_line(from + i);
        }
    }
}

/* Weight or bias. at, step: thread t's vector of place i lies at kept[at + step * (i * THREADS + t)]; of
 * an absent one all are one vector. */
struct affine {
    int at, step;
    uint4 held[HELD > 0 ? HELD : 1];
};

/* An absent one is kept[room], another lies from kept[at] on. */
DEV struct affine pin(struct place p, const uint4 *from, float value, uint4 *kept, int room, int at) {
    struct affine a;
    float x[V];
    const int me = (int)threadIdx.x;
#pragma unroll
    for (int e = 0; e < V; e++)
        x[e] = value;
    a.at = from == nullptr ? room : at;
    a.step = from != nullptr;
    if (me == 0)
        kept[room] = pack(x);
#pragma unroll 1
    for (int i = 0; i < IN_SHARED && from != nullptr; i++)
        if (i * THREADS + me < p.count)
            copy(kept + at + i * THREADS + me, from + p.first + i * THREADS + me);
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const int j = (IN_SHARED + i) * THREADS + me;
        a.held[i] = from != nullptr && j < p.count ? load_once(from + p.first + j) : pack(x);
    }
    return a;
}

/* Place i of weight or bias; at: where it lies in shared memory, in bytes. */
DEV uint4 pinned(const struct affine &a, const uint4 *kept, int i, int at) {
    if (i < IN_SHARED)
        return *(const uint4 *)((const char *)kept + at);
    uint4 v = a.held[i < IN_SHARED ? 0 : i - IN_SHARED];
    /* Unpacked ahead of the rows they would take twice the registers. */
    asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w));
    return v;
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

/* Whether place i is this thread's. left: its distance from the slice's end. DENSE: all places but the
 * last are full, as all are when a row nearly fills the chip. */
template <bool DENSE> DEV bool has(int left, int i) {
    return (DENSE && i < PLACES - 1) || left > i * THREADS;
}

template <bool DENSE> DEV float2 slice_sums(const uint4 (&raw)[PLACES], int left, float shift) {
    float2 s = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < PLACES; i++)
        if (has<DENSE>(left, i))
            add(raw[i], shift, s);
    return s;
}

/* Writes a row and loads the next one, if there is one. */
template <bool DENSE>
DEV void put(uint4 (&raw)[PLACES], struct place p, uint4 *output, int row, float shift,
             struct map f, const uint4 *kept, const struct affine &w, const struct affine &b) {
    const int me = self(), left = p.count - me;
    const bool more = row + GROUPS < p.rows;
    const uint4 *from = p.from + (long long)(row + GROUPS) * p.vectors + me;
    uint4 *to = output + (long long)row * p.vectors + p.first + me;
    int w_at = (w.at + w.step * me) * 16, w_step = w.step * THREADS * 16;
    int b_at = (b.at + b.step * me) * 16, b_step = b.step * THREADS * 16;
    /* Else all addresses would be computed at once, or anew for each place. */
    asm volatile("" : "+l"(from), "+l"(to));
    asm volatile("" : "+r"(w_at), "+r"(b_at), "+r"(w_step), "+r"(b_step));
#pragma unroll
    for (int i = 0; i < PLACES; i++) {
        if (has<DENSE>(left, i)) {
            const uint4 weight = pinned(w, kept, i, w_at);
            const uint4 bias = CENTERED ? pinned(b, kept, i, b_at) : weight;
            store_once(to + i * THREADS, mapped(raw[i], weight, bias, shift, f));
            if (more)
                raw[i] = load_once(from + i * THREADS);
        }
        if (WHEN == 2 && i % 4 == 0)
            ask(p, row + GROUPS, i + DEPTH, min(i + 4, PLACES) + DEPTH, who(), THREADS);
        w_at += w_step, b_at += b_step;
    }
    if (WHEN == 1)
        ask(p, row + GROUPS, max(PLACES, DEPTH), PLACES + DEPTH, who(), THREADS);
}

/* Of a row's first elements, of which this lane has a vector. */
DEV void say_shift(struct place p, const uint4 *input, int row, float *to) {
    const float shift = shift_of(load_once(input + (long long)row * p.vectors + threadIdx.x % 32));
    if (threadIdx.x % 32 == 0)
        *to = shift;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    KERNEL(TENSORS, KG_T_pairs *pairs, int m, int n, int each, float eps) {
    extern __shared__ uint4 kept[]; /* 1, 0, weight, bias */
    __shared__ float2 sums[WARPS];
    __shared__ float said[4]; /* to all threads: the row's map; shifts of even and odd turns */
    const int part = (int)blockIdx.x, parts = (int)gridDim.x, group = (int)blockIdx.y;
    struct place p;
    p.vectors = n / V, p.rows = m;
    p.first = part * each;
    p.count = max(min(each, p.vectors - p.first), 0);
    p.from = (const uint4 *)input + p.first;
    if (group >= m)
        return;

    const bool dense = p.count >= (PLACES - 1) * THREADS;
    uint4 raw[PLACES];
#pragma unroll
    for (int i = 0; i < PLACES; i++)
        if (has<false>(p.count - (int)threadIdx.x, i))
            raw[i] = load_once(p.from + (long long)group * p.vectors + threadIdx.x + i * THREADS);
    const struct affine w = pin(p, (const uint4 *)weight, 1.0f, kept, 0, 2);
#if CENTERED
    const struct affine b =
        pin(p, (const uint4 *)bias, 0.0f, kept, 1, weight == nullptr ? 2 : 2 + IN_SHARED * THREADS);
#else
    const struct affine b = w;
#endif
    if (WHEN > 0)
        ask(p, group, PLACES, PLACES + DEPTH, who(), THREADS);
    if (CENTERED && threadIdx.x / 32 == WARPS - 1)
        say_shift(p, (const uint4 *)input, group, said + 2);
    __syncthreads();

    for (int row = group, turn = 0; row < m; row += GROUPS, turn++) {
        const int me = self(), warp = me / 32, lane = me % 32, left = p.count - me;
        const float *const shift = said + 2 + turn % 2;
        float2 s = dense ? slice_sums<true>(raw, left, *shift) : slice_sums<false>(raw, left, *shift);
        s = lanes_sums(s, 32);
        if (lane == 0)
            sums[warp] = s;
        __syncthreads();
        if (warp == 0) {
            KG_T_pairs *at = pairs + (2 * group + turn % 2) * parts * APART;
            const unsigned sign = turn / 2 % 2 ? 0 : SIGN;
            s = lanes_sums(sums[lane % WARPS], WARPS);
            if (lane == 0)
                tell(at + part * APART, s, sign);
            const struct map f = map_of(gather(at, parts, sign), n, eps);
            if (lane == 0)
                said[0] = f.scale, said[1] = f.offset;
        } else {
            if (WHEN == 0 && AHEAD > 0 && turn == 0)
                ask(p, row, PLACES, PLACES + DEPTH, who(), THREADS - 32);
            else if (WHEN == 0 && AHEAD > 0)
                ask(p, row, max(PLACES, DEPTH), PLACES + DEPTH, who(), THREADS - 32);
            if (CENTERED && warp == WARPS - 1 && row + GROUPS < m)
                say_shift(p, (const uint4 *)input, row + GROUPS, said + 2 + (turn + 1) % 2);
        }
        __syncthreads();
        if (turn == 0)
            asm volatile("cp.async.wait_all;" ::: "memory");
        const struct map f = {said[0], said[1]};
        if (dense)
            put<true>(raw, p, (uint4 *)output, row, *shift, f, kept, w, b);
        else
            put<false>(raw, p, (uint4 *)output, row, *shift, f, kept, w, b);
    }
}
