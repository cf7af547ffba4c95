/* kgen's own checking kernels: what a GPU's judge does to memory between two runs of a Candidate.
 *
 * Not a file of its own: the build puts check_core.h in front (cmake/embed.cmake) and NVRTC compiles
 * both at first use, without a header. Every kernel is bound by memory: 16 bytes a thread a load,
 * grid-stride loops of several loads before the first use, 256 threads a block, no shared memory
 * before the end. Traffic: fill writes n; check, hash and read read n; copy and differ 2n; compare
 * reads n elements and 8n bytes of oracle. Sums are combined a block at a time into `partials`,
 * which the host adds up in order, so that the same bytes give the same numbers on the same GPU. */

struct bytes16 {
    kg_word64 lo, hi;
};
static_assert(sizeof(bytes16) == 16, "a vector load");

#define KG_KERNEL extern "C" __global__ void __launch_bounds__(256)

static __device__ __forceinline__ bytes16 load16(const void *p) {
    ulonglong2 v = *(const ulonglong2 *)p;
    return {v.x, v.y};
}

static __device__ __forceinline__ void store16(void *p, bytes16 v) {
    *(ulonglong2 *)p = make_ulonglong2(v.lo, v.hi);
}

static __device__ __forceinline__ kg_word64 thread_id() {
    return (kg_word64)blockIdx.x * blockDim.x + threadIdx.x;
}

static __device__ __forceinline__ kg_word64 thread_count() {
    return (kg_word64)gridDim.x * blockDim.x;
}

/* The byte that a pattern has at an address: byte address % 8 of the word. */
static __device__ __forceinline__ unsigned char pattern_at(kg_word64 word, kg_word64 address) {
    return (unsigned char)(word >> (address % 8 * 8));
}

/* [begin, end) in whole vectors, and what lies before and behind them. */
struct range16 {
    unsigned char *begin, *end, *first, *last;
};

static __device__ __forceinline__ range16 split16(unsigned char *begin, kg_word64 n) {
    kg_word64 at = (kg_word64)begin, first = (at + 15) / 16 * 16, last = (at + n) / 16 * 16;
    if (first > at + n || last < first)
        first = last = at + n;
    return {begin, begin + n, (unsigned char *)first, (unsigned char *)last};
}

/* Fills n bytes with a word, by address. */
KG_KERNEL kg_check_fill(unsigned char *to, kg_word64 n, kg_word64 word) {
    range16 r = split16(to, n);
    kg_word64 i = thread_id(), step = thread_count(), whole = (kg_word64)(r.last - r.first) / 16;
    for (kg_word64 k = i; k < whole; k += step)
        store16(r.first + 16 * k, {word, word});
    kg_word64 head = (kg_word64)(r.first - r.begin), tail = (kg_word64)(r.end - r.last);
    for (kg_word64 k = i; k < head; k += step)
        r.begin[k] = pattern_at(word, (kg_word64)(r.begin + k));
    for (kg_word64 k = i; k < tail; k += step)
        r.last[k] = pattern_at(word, (kg_word64)(r.last + k));
}

/* Bands that must hold their words: one a row of the grid. first[band] becomes the offset of the
 * first byte that does not, or stays at all ones. */
struct kg_bands {
    unsigned char *at[128];
    kg_word64 bytes[128], word[128];
};

KG_KERNEL kg_check_bands(const kg_bands bands, kg_word64 *first) {
    unsigned char *begin = bands.at[blockIdx.y];
    kg_word64 n = bands.bytes[blockIdx.y], word = bands.word[blockIdx.y];
    range16 r = split16(begin, n);
    kg_word64 i = thread_id(), step = thread_count(), whole = (kg_word64)(r.last - r.first) / 16;
    kg_word64 found = ~0ull;
    for (kg_word64 k = i; k < whole; k += step) {
        bytes16 v = load16(r.first + 16 * k);
        for (int b = 0; (v.lo != word || v.hi != word) && b < 16; b++) {
            kg_word64 half = b < 8 ? v.lo : v.hi, at = (kg_word64)(r.first - begin) + 16 * k + b;
            if ((unsigned char)(half >> (b % 8 * 8)) != pattern_at(word, b) && at < found)
                found = at;
        }
    }
    kg_word64 head = (kg_word64)(r.first - r.begin), tail = (kg_word64)(r.end - r.last);
    for (kg_word64 k = i; k < head + tail; k += step) {
        unsigned char *p = k < head ? r.begin + k : r.last + (k - head);
        kg_word64 at = (kg_word64)(p - begin);
        if (*p != pattern_at(word, (kg_word64)p) && at < found)
            found = at;
    }
    if (found != ~0ull)
        atomicMin(&first[blockIdx.y], found);
}

/* *first becomes the offset of the first byte in which a and b differ. Both begin on 16 bytes. */
KG_KERNEL kg_check_differ(const unsigned char *a, const unsigned char *b, kg_word64 n,
                          kg_word64 *first) {
    kg_word64 i = thread_id(), step = thread_count(), whole = n / 16, found = ~0ull;
    for (kg_word64 k = i; k < whole; k += 2 * step) {
        kg_word64 m = k + step < whole ? k + step : k;
        bytes16 x = load16(a + 16 * k), y = load16(b + 16 * k);
        bytes16 z = load16(a + 16 * m), w = load16(b + 16 * m);
        kg_word64 at = x.lo != y.lo || x.hi != y.hi ? k : z.lo != w.lo || z.hi != w.hi ? m : whole;
        if (at < whole && 16 * at < found)
            found = 16 * at;
    }
    if (whole * 16 + i < n && a[whole * 16 + i] != b[whole * 16 + i] && whole * 16 + i < found)
        found = whole * 16 + i;
    if (found == ~0ull)
        return;
    while (found < n && a[found] == b[found])
        found++;
    atomicMin(first, found);
}

/* ---- sums over a block ---- */

static __device__ __forceinline__ kg_word64 sum_words(kg_word64 v) {
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_down_sync(~0u, v, d);
    return v;
}

/* Of 256 threads; the result is thread 0's. */
static __device__ __forceinline__ kg_hash_sums block_hash(kg_hash_sums s) {
    __shared__ kg_hash_sums warps[8];
    s.a = sum_words(s.a);
    s.b = sum_words(s.b);
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = s;
    __syncthreads();
    for (int w = 1; threadIdx.x == 0 && w < 8; w++) {
        s.a += warps[w].a;
        s.b += warps[w].b;
    }
    return s;
}

/* Adds the hash of n bytes, which begin on 16, to *to. */
KG_KERNEL kg_check_hash(const unsigned char *from, kg_word64 n, kg_word64 secret,
                        kg_hash_sums *to) {
    kg_word64 i = thread_id(), step = thread_count(), whole = n / 16;
    kg_hash_sums s = {0, 0};
    kg_word64 k = i;
    for (; k + 3 * step < whole; k += 4 * step) {
        bytes16 v[4];
        for (int j = 0; j < 4; j++)
            v[j] = load16(from + 16 * (k + j * step));
        for (int j = 0; j < 4; j++)
            kg_hash_word(&s, v[j].lo, v[j].hi, k + j * step, secret);
    }
    for (; k < whole; k += step) {
        bytes16 v = load16(from + 16 * k);
        kg_hash_word(&s, v.lo, v.hi, k, secret);
    }
    if (i == 0 && n % 16 != 0) {
        bytes16 v = {0, 0};
        for (kg_word64 b = 0; b < n % 16; b++)
            *(b < 8 ? &v.lo : &v.hi) |= (kg_word64)from[whole * 16 + b] << (b % 8 * 8);
        kg_hash_word(&s, v.lo, v.hi, whole, secret);
    }
    s = block_hash(s);
    if (threadIdx.x == 0) {
        atomicAdd(&to->a, s.a);
        atomicAdd(&to->b, s.b);
    }
}

static __device__ __forceinline__ kg_sums shuffled(const kg_sums *s, int d) {
    kg_sums o;
    o.d2 = __shfl_down_sync(~0u, s->d2, d);
    o.r2 = __shfl_down_sync(~0u, s->r2, d);
    o.worst = __shfl_down_sync(~0u, s->worst, d);
    o.scale = __shfl_down_sync(~0u, s->scale, d);
    o.far = __shfl_down_sync(~0u, s->far, d);
    o.unwritten = __shfl_down_sync(~0u, s->unwritten, d);
    o.nonfinite = __shfl_down_sync(~0u, s->nonfinite, d);
    o.misplaced = __shfl_down_sync(~0u, s->misplaced, d);
    o.unequal = __shfl_down_sync(~0u, s->unequal, d);
    return o;
}

static __device__ __forceinline__ void finish(kg_sums *s, kg_sums *partials) {
    __shared__ kg_sums warps[8];
    for (int d = 16; d > 0; d /= 2) {
        kg_sums o = shuffled(s, d);
        kg_add_sums(s, &o);
    }
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = *s;
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    for (int w = 1; w < 8; w++)
        kg_add_sums(s, &warps[w]);
    kg_add_sums(&partials[blockIdx.x], s);
}

/* ---- outputs against oracles ---- */

/* How an element of a dtype is read: its bits, and its value. */
struct f32 {
    typedef kg_word32 word;
    static __device__ __forceinline__ double value(word b) { return kg_value_f32(b); }
};
struct f64 {
    typedef kg_word64 word;
    static __device__ __forceinline__ double value(word b) { return kg_bits_double(b); }
};
struct f16 {
    typedef unsigned short word;
    static __device__ __forceinline__ double value(word b) { return kg_value_f16(b); }
};
struct bf16 {
    typedef unsigned short word;
    static __device__ __forceinline__ double value(word b) { return kg_value_bf16(b); }
};

template <class Word, class Signed> struct whole {
    typedef Word word;
    static __device__ __forceinline__ long long value(word b) { return (long long)(Signed)b; }
};

static __device__ __forceinline__ void add_one(kg_sums *s, double x, kg_word64 oracle, int poisoned,
                                               kg_range range) {
    kg_add_float(s, x, kg_bits_double(oracle), poisoned, range);
}

static __device__ __forceinline__ void add_one(kg_sums *s, long long x, kg_word64 oracle,
                                               int poisoned, kg_range) {
    kg_add_integer(s, x, (long long)oracle, poisoned);
}

/* Both begin on 16 bytes. A thread takes 16 bytes of output and the oracles of its elements (up to
 * 128 bytes) before it looks at any. */
template <class T>
static __device__ __forceinline__ void compare(const void *out_, const kg_word64 *oracle,
                                               kg_word64 n, kg_word64 poison, kg_range range,
                                               kg_sums *partials) {
    typedef typename T::word word;
    constexpr int each = 16 / sizeof(word);
    const word *out = (const word *)out_;
    kg_sums s = {0, 0, 0, 0, 0, 0, 0, 0, 0};
    kg_word64 i = thread_id(), step = thread_count(), groups = n / each;
    for (kg_word64 k = i; k < groups; k += step) {
        bytes16 v = load16(out + each * k), r[each / 2];
        for (int e = 0; e < each / 2; e++)
            r[e] = load16(oracle + each * k + 2 * e);
#pragma unroll
        for (int e = 0; e < each; e++) {
            word b = (word)((e < each / 2 ? v.lo : v.hi) >> (e % (each / 2) * 8 * sizeof(word) % 64));
            add_one(&s, T::value(b), e % 2 ? r[e / 2].hi : r[e / 2].lo, b == (word)poison, range);
        }
    }
    for (kg_word64 k = groups * each + i; k < n; k += step)
        add_one(&s, T::value(out[k]), oracle[k], out[k] == (word)poison, range);
    finish(&s, partials);
}

#define KG_COMPARE(name, type)                                                                     \
    KG_KERNEL kg_check_compare_##name(const void *out, const kg_word64 *oracle, kg_word64 n,       \
                                      kg_word64 poison, double largest, double close,              \
                                      kg_sums *partials) {                                         \
        compare<type>(out, oracle, n, poison, {largest, close}, partials);                         \
    }

typedef whole<unsigned char, signed char> i8;
typedef whole<unsigned char, unsigned char> u8;
typedef whole<unsigned short, short> i16;
typedef whole<kg_word32, int> i32;
typedef whole<kg_word64, long long> i64;

KG_COMPARE(float32, f32)
KG_COMPARE(float64, f64)
KG_COMPARE(float16, f16)
KG_COMPARE(bfloat16, bf16)
KG_COMPARE(int8, i8)
KG_COMPARE(uint8, u8)
KG_COMPARE(int16, i16)
KG_COMPARE(int32, i32)
KG_COMPARE(int64, i64)
KG_COMPARE(bool, u8)

/* ---- what a kernel leaves behind ---- */

/* One block a multiprocessor, with all the shared memory that a block can have: what is there
 * outlives a kernel, and so would what a Candidate keeps there. */
extern "C" __global__ void __launch_bounds__(1024) kg_check_scrub(kg_word32 words,
                                                                  kg_word32 pattern) {
    extern __shared__ kg_word32 all_shared[];
    volatile kg_word32 *to = all_shared;
    for (kg_word32 i = threadIdx.x; i < words; i += 1024)
        to[i] = pattern;
}

/* ---- how fast the device moves bytes ---- */

KG_KERNEL kg_check_read(const unsigned char *from, kg_word64 n, kg_word64 *sink) {
    kg_word64 k = thread_id(), step = thread_count(), whole = n / 16, sum = 0;
    for (; k + 3 * step < whole; k += 4 * step) {
        bytes16 v[4];
        for (int j = 0; j < 4; j++)
            v[j] = load16(from + 16 * (k + j * step));
        for (int j = 0; j < 4; j++)
            sum ^= v[j].lo + v[j].hi;
    }
    if (sum == 0x5eed5eed5eed5eedull) /* the loads are not for nothing */
        atomicAdd(sink, sum);
}

KG_KERNEL kg_check_copy(unsigned char *to, const unsigned char *from, kg_word64 n) {
    kg_word64 k = thread_id(), step = thread_count(), whole = n / 16;
    for (; k + 3 * step < whole; k += 4 * step) {
        bytes16 v[4];
        for (int j = 0; j < 4; j++)
            v[j] = load16(from + 16 * (k + j * step));
        for (int j = 0; j < 4; j++)
            store16(to + 16 * (k + j * step), v[j]);
    }
    for (; k < whole; k += step)
        store16(to + 16 * k, load16(from + 16 * k));
}
