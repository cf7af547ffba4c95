/* Runs a CUDA kernel's source on the CPU, so that its results can be checked where there is no GPU.
 *
 * Each CUDA thread is a fiber; the fibers of a cluster (of the whole grid of a cooperative launch)
 * take turns, each until it waits for others (barrier, shuffle, warp instruction). Blocks have
 * their shared memory on the heap and tensors their exact size, so that AddressSanitizer sees an
 * access outside. A copy by cp.async happens only when it is waited for, so that a missing wait
 * shows; turns go forwards or backwards (EMULATE_BACKWARDS=1), so that a missing barrier does. What
 * it cannot show: speed, races between instructions, the rounding inside a tensor core, tensor maps
 * and wgmma.
 *
 * A wait that nobody can end, a warp whose lanes differ in what they do and a shared address
 * outside of everything are errors: one line on stderr, exit code 3. Included before a translation
 * unit that emulator.py rewrote; x86-64 switches stacks by itself, others through ucontext. */
#ifndef KGEN_TESTS_EMULATE_H
#define KGEN_TESTS_EMULATE_H

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __constant__
#define __CUDA_ARCH__ 900

typedef unsigned short ushort;
struct uint3 {
    unsigned x, y, z;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) ulonglong2 {
    unsigned long long x, y;
};
inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) {
    return {x, y};
}
inline int2 make_int2(int x, int y) {
    return {x, y};
}
inline uint2 make_uint2(unsigned x, unsigned y) {
    return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}
inline float2 make_float2(float x, float y) {
    return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

namespace emu {

struct Block;

/* What a thread asked for and has not waited for, in groups. */
struct Later {
    std::vector<std::function<void()>> open;
    std::deque<std::vector<std::function<void()>>> groups;
};

/* One CUDA thread. It may run when `event` is NULL or has another value than `seen`. */
struct Fiber {
    void *stack_pointer = nullptr;
    ucontext_t context;
    unsigned char *stack = nullptr;
    Block *block = nullptr;
    uint3 thread{};
    unsigned lane = 0, warp = 0;
    bool done = false;
    const unsigned *event = nullptr;
    unsigned seen = 0;
    const char *waits_for = "";
    unsigned cluster_seen = 0;
    unsigned released_seen = ~0u;
    std::map<const void *, unsigned> looked; /* addresses, and `released` when they were read */
    struct Copy {
        void *to;
        const void *from;
        unsigned bytes, read;
    };
    std::vector<Copy> open;               /* cp.async since the last commit */
    std::deque<std::vector<Copy>> groups; /* committed, not waited for */
    Later later[2];                       /* bulk stores; wgmma */
    unsigned products = 0;                /* groups of wgmma committed */
};

struct Barrier {
    unsigned arrived = 0, generation = 0;
};

/* An mbarrier; its phase ends when nothing is pending, neither arrivals nor bytes. */
struct Mbarrier {
    unsigned count, pending;
    long bytes;
    unsigned generation;
    void check() {
        if (pending == 0 && bytes == 0)
            pending = count, generation++;
    }
};

struct Warp {
    unsigned arrived = 0, generation = 0;
    const char *name = nullptr;
    void *slot[32] = {};
};

/* Groups of wgmma of a warpgroup: how many threads committed the n-th, how many all have. */
struct Products {
    std::vector<unsigned> arrived;
    unsigned complete = 0;
    Barrier done;
};

/* Shared memory of a block: pieces at addresses of their own in a 24-bit window. */
struct Piece {
    unsigned char *data;
    unsigned base, bytes;
};

struct Block {
    uint3 index{};
    unsigned rank = 0;
    std::vector<Warp> warps;
    Barrier barriers[16];
    Products products[8];
    std::map<int, unsigned> statics;        /* site: piece */
    std::map<unsigned, Mbarrier> mbarriers; /* by shared address */
    std::vector<Piece> pieces;
    unsigned next_base = 1024, dynamic = 0;
};

struct Launch {
    uint3 grid, block, cluster;
    unsigned shared;
    std::function<void()> kernel;
};

inline Launch launch;
inline std::vector<Block> blocks; /* of the cluster at work */
inline std::vector<Fiber> fibers;
inline Fiber *self = nullptr;
inline Barrier cluster_barrier;
inline unsigned released; /* releases so far, of all blocks */
inline Fiber home;
inline const char *call_name = "";

template <class... A> [[noreturn]] void fail(const char *format, A... a) {
    fprintf(stderr, "emulate: %s: ", call_name);
    fprintf(stderr, format, a...);
    if (self)
        fprintf(stderr, " (block %u, thread %u)", self->block->index.x, self->thread.x);
    fprintf(stderr, "\n");
    fflush(stderr);
    _exit(3);
}

/* ---- fibers ---- */

#if defined(__x86_64__)
extern "C" void emulate_switch(void **from, void *to);
asm(R"(
.text
.type emulate_switch, @function
emulate_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size emulate_switch, .-emulate_switch
)");
#endif

constexpr size_t STACK = 256 << 10;

inline void switch_to(Fiber *to) {
    Fiber *from = self ? self : &home;
    self = to == &home ? nullptr : to;
#if defined(__x86_64__)
    emulate_switch(&from->stack_pointer, to->stack_pointer);
#else
    swapcontext(&from->context, &to->context);
#endif
}

inline void fiber_main() {
    launch.kernel();
    if (!self->open.empty() || !self->groups.empty())
        fail("a thread ends while its cp.async copies are in flight");
    for (const Later &l : self->later)
        if (!l.open.empty() || !l.groups.empty())
            fail("a thread ends while its bulk stores or products are in flight");
    self->done = true;
    switch_to(&home);
    abort();
}

inline void fiber_start(Fiber *f) {
    if (!f->stack) {
        void *p = mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            fail("no memory for the stacks of %zu threads", fibers.size());
        f->stack = static_cast<unsigned char *>(p);
    }
    /* The frame of fiber_main, which a fiber never leaves. */
    __asan_unpoison_memory_region(f->stack + STACK - 4096, 4096);
#if defined(__x86_64__)
    /* As emulate_switch leaves a stack: six registers, then where to go on; misaligned by 8 there,
     * as after a call. */
    void **top = reinterpret_cast<void **>(f->stack + STACK) - 1;
    top[-1] = reinterpret_cast<void *>(&fiber_main);
    top[0] = nullptr;
    for (int i = 2; i <= 7; i++)
        top[-i] = nullptr;
    f->stack_pointer = top - 7;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK;
    f->context.uc_link = nullptr;
    makecontext(&f->context, fiber_main, 0);
#endif
}

inline void wait(const unsigned *event, unsigned seen, const char *what) {
    self->event = event, self->seen = seen, self->waits_for = what;
    while (*event == seen)
        switch_to(&home);
    self->event = nullptr;
}

/* Runs the fibers of one cluster to their end. */
inline void run_cluster() {
    static const bool backwards = getenv("EMULATE_BACKWARDS") != nullptr;
    const size_t n = fibers.size();
    for (size_t left = n; left > 0;) {
        bool moved = false;
        for (size_t k = 0; k < n; k++) {
            Fiber *f = &fibers[backwards ? n - 1 - k : k];
            if (f->done || (f->event && *f->event == f->seen))
                continue;
            moved = true;
            switch_to(f);
            left -= f->done;
        }
        if (moved)
            continue;
        for (Fiber &f : fibers)
            if (!f.done)
                fail("%zu threads wait for ever; thread %u of block %u in %s", left, f.thread.x,
                     f.block->index.x, f.waits_for);
    }
}

inline void barrier_arrive(Barrier *b, unsigned count) {
    if (++b->arrived == count) {
        b->arrived = 0;
        b->generation++;
    }
}

inline void barrier(unsigned id, unsigned count) {
    Barrier *b = &self->block->barriers[id];
    const unsigned seen = b->generation;
    barrier_arrive(b, count);
    wait(&b->generation, seen, id ? "a named barrier" : "__syncthreads");
}

inline unsigned block_threads() {
    return launch.block.x * launch.block.y * launch.block.z;
}

/* Every lane of the warp brings a T; when all are there, `all` works on the 32 of them in place. */
template <class T, class F> void together(const char *name, unsigned mask, T &mine, F all) {
    Warp *w = &self->block->warps[self->warp];
    if (mask != 0xffffffffu)
        fail("%s with the mask %#x; only whole warps are emulated", name, mask);
    if ((self->warp + 1) * 32 > block_threads())
        fail("%s in a warp of fewer than 32 threads", name);
    if (w->arrived && w->name != name && strcmp(w->name, name) != 0)
        fail("lanes of one warp are at %s and at %s", w->name, name);
    const unsigned seen = w->generation;
    w->name = name;
    w->slot[self->lane] = &mine;
    if (++w->arrived < 32) {
        wait(&w->generation, seen, name);
        return;
    }
    T *lane[32];
    for (int i = 0; i < 32; i++)
        lane[i] = static_cast<T *>(w->slot[i]);
    all(lane);
    w->arrived = 0;
    w->generation++;
}

/* ---- shared memory ---- */

/* What nobody wrote reads as NaN in every float type. */
inline unsigned new_piece(Block *b, unsigned bytes) {
    void *p = nullptr;
    if (posix_memalign(&p, 16, bytes ? bytes : 1) != 0)
        fail("no memory for shared memory");
    memset(p, 0xff, bytes);
    b->pieces.push_back({static_cast<unsigned char *>(p), b->next_base, bytes});
    b->next_base += (bytes + 4096) / 1024 * 1024;
    return static_cast<unsigned>(b->pieces.size() - 1);
}

inline void *static_shared(int site, unsigned bytes) {
    Block *b = self->block;
    auto found = b->statics.find(site);
    if (found == b->statics.end())
        found = b->statics.emplace(site, new_piece(b, bytes)).first;
    return b->pieces[found->second].data;
}

inline void *dynamic_shared() {
    return self->block->pieces[self->block->dynamic].data;
}

/* The pointer behind a shared address; the top byte is the block's rank and 1, or 0 for one's own.
 */
inline void *shared_pointer(unsigned address, unsigned bytes) {
    const unsigned rank = address >> 24, at = address & 0xffffff;
    if (rank > blocks.size())
        fail("shared address %#x is of block %u of a cluster of %zu", address, rank - 1,
             blocks.size());
    Block *b = rank ? &blocks[rank - 1] : self->block;
    for (const Piece &p : b->pieces)
        if (at >= p.base && at + bytes <= p.base + p.bytes)
            return p.data + (at - p.base);
    fail("shared address %#x, %u bytes, is in no shared memory", at, bytes);
}

/* The mbarrier at a shared address, as shared_pointer reads it. */
inline Mbarrier *mbarrier_at(unsigned address) {
    const unsigned rank = address >> 24;
    shared_pointer(address, 8);
    Block *b = rank ? &blocks[rank - 1] : self->block;
    auto found = b->mbarriers.find(address & 0xffffff);
    if (found == b->mbarriers.end())
        fail("there is no mbarrier at %#x; was it initialised?", address);
    return &found->second;
}

inline void start_block(Block *b, unsigned rank, uint3 index) {
    for (const Piece &p : b->pieces)
        free(p.data);
    *b = Block{};
    b->rank = rank, b->index = index;
    b->warps.resize((block_threads() + 31) / 32);
    b->dynamic = new_piece(b, launch.shared);
}

inline void start_threads(Block *b, Fiber *first) {
    unsigned at = 0;
    for (unsigned z = 0; z < launch.block.z; z++)
        for (unsigned y = 0; y < launch.block.y; y++)
            for (unsigned x = 0; x < launch.block.x; x++, at++) {
                Fiber *f = first + at;
                unsigned char *stack = f->stack;
                *f = Fiber{};
                f->stack = stack, f->block = b, f->thread = {x, y, z};
                f->lane = at % 32, f->warp = at / 32;
                fiber_start(f);
            }
}

inline void run_launch() {
    const uint3 g = launch.grid, c = launch.cluster;
    const unsigned size = c.x * c.y * c.z;
    blocks.resize(size);
    if (fibers.size() < size * block_threads())
        fibers.resize(size * block_threads());
    std::vector<Fiber> spare(std::make_move_iterator(fibers.begin() + size * block_threads()),
                             std::make_move_iterator(fibers.end()));
    fibers.resize(size * block_threads());
    for (unsigned z = 0; z < g.z; z += c.z)
        for (unsigned y = 0; y < g.y; y += c.y)
            for (unsigned x = 0; x < g.x; x += c.x) {
                unsigned rank = 0;
                for (unsigned k = 0; k < c.z; k++)
                    for (unsigned j = 0; j < c.y; j++)
                        for (unsigned i = 0; i < c.x; i++, rank++) {
                            start_block(&blocks[rank], rank, {x + i, y + j, z + k});
                            start_threads(&blocks[rank], &fibers[rank * block_threads()]);
                        }
                cluster_barrier = Barrier{};
                run_cluster();
            }
    fibers.insert(fibers.end(), std::make_move_iterator(spare.begin()),
                  std::make_move_iterator(spare.end()));
}

} // namespace emu

#define threadIdx (emu::self->thread)
#define blockIdx (emu::self->block->index)
#define blockDim (emu::launch.block)
#define gridDim (emu::launch.grid)

/* ---- what device code has without a header ---- */

inline void __syncthreads() {
    emu::barrier(0, emu::block_threads());
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    int none = 0;
    emu::together("__syncwarp", mask, none, [](int **) {});
}

namespace emu {
template <class T> struct Shuffle {
    T value, result;
    int source;
};
template <class T> T shuffle(const char *name, unsigned mask, T value, int source) {
    Shuffle<T> mine{value, value, source};
    together(name, mask, mine, [](Shuffle<T> **lane) {
        for (int i = 0; i < 32; i++)
            lane[i]->result = lane[lane[i]->source]->value;
    });
    return mine.result;
}
struct Vote {
    bool value;
    unsigned result;
};
inline unsigned vote(const char *name, unsigned mask, bool value) {
    Vote mine{value, 0};
    together(name, mask, mine, [](Vote **lane) {
        unsigned all = 0;
        for (int i = 0; i < 32; i++)
            all |= static_cast<unsigned>(lane[i]->value) << i;
        for (int i = 0; i < 32; i++)
            lane[i]->result = all;
    });
    return mine.result;
}
} // namespace emu

template <class T> T __shfl_sync(unsigned mask, T v, int source) {
    return emu::shuffle("__shfl_sync", mask, v, source & 31);
}
template <class T> T __shfl_sync(unsigned mask, T v, int source, int width) {
    return emu::shuffle("__shfl_sync", mask, v,
                        (static_cast<int>(threadIdx.x) & 31 & ~(width - 1)) | (source & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int with) {
    return emu::shuffle("__shfl_xor_sync", mask, v, static_cast<int>(emu::self->lane) ^ with);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, int by) {
    const int lane = static_cast<int>(emu::self->lane);
    return emu::shuffle("__shfl_down_sync", mask, v, lane + by < 32 ? lane + by : lane);
}
inline unsigned __ballot_sync(unsigned mask, int v) {
    return emu::vote("__ballot_sync", mask, v != 0);
}
inline int __any_sync(unsigned mask, int v) {
    return emu::vote("__any_sync", mask, v != 0) != 0;
}
inline int __all_sync(unsigned mask, int v) {
    return emu::vote("__all_sync", mask, v != 0) == 0xffffffffu;
}

/* The 32-bit shared address of a generic pointer. */
inline size_t __cvta_generic_to_shared(const void *pointer) {
    const unsigned char *p = static_cast<const unsigned char *>(pointer);
    for (const emu::Piece &piece : emu::self->block->pieces)
        if (p >= piece.data && p <= piece.data + piece.bytes)
            return piece.base + static_cast<size_t>(p - piece.data);
    emu::fail("a pointer outside of shared memory is taken for a shared address");
}

namespace emu {
template <class To, class From> To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
} // namespace emu
inline float __int_as_float(int x) {
    return emu::same_bits<float>(x);
}
inline int __float_as_int(float x) {
    return emu::same_bits<int>(x);
}
inline float __uint_as_float(unsigned x) {
    return emu::same_bits<float>(x);
}
inline unsigned __float_as_uint(float x) {
    return emu::same_bits<unsigned>(x);
}
inline double __longlong_as_double(long long x) {
    return emu::same_bits<double>(x);
}
/* One thread runs at a time. */
template <class T> T atomicAdd(T *at, T v) {
    const T old = *at;
    *at = old + v;
    return old;
}
template <class T> T atomicMin(T *at, T v) {
    const T old = *at;
    *at = v < old ? v : old;
    return old;
}
template <class T> T atomicMax(T *at, T v) {
    const T old = *at;
    *at = old < v ? v : old;
    return old;
}
template <class T> T atomicOr(T *at, T v) {
    const T old = *at;
    *at = old | v;
    return old;
}
inline void __threadfence() {}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline int __clz(int x) {
    return x ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
template <class T> T min(T a, T b) {
    return b < a ? b : a;
}
template <class T> T max(T a, T b) {
    return a < b ? b : a;
}
template <class T> T __ldg(const T *p) {
    return *p;
}
inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}

/* ---- the program around a unit ---- */

namespace emu {

/* What the driver wrote: numbers and bytes in order. */
struct Reader {
    const unsigned char *at, *end;
    void bytes(void *to, size_t n) {
        if (static_cast<size_t>(end - at) < n)
            fail("the job's file is too short");
        memcpy(to, at, n);
        at += n;
    }
    uint64_t number() {
        uint64_t v;
        bytes(&v, sizeof v);
        return v;
    }
};

struct Tensor {
    unsigned char *block, *data; /* data: as far from a multiple of 256 as the call says */
    size_t bytes;
    bool output;
};
inline std::vector<Tensor> tensors;

/* A kernel's argument as its own type wants it. */
template <class T> T argument(Reader *in) {
    using Plain = std::remove_const_t<T>;
    const uint64_t kind = in->number(), n = in->number();
    if constexpr (std::is_pointer_v<Plain>) {
        if (kind != 0)
            fail("an argument is a pointer in the kernel and none in the plan");
        return n == ~uint64_t{0} ? nullptr : reinterpret_cast<Plain>(tensors.at(n).data);
    } else {
        std::vector<unsigned char> raw(n);
        if (kind == 0 || n != sizeof(Plain))
            fail("an argument has %zu bytes in the kernel, %zu in the plan", sizeof(Plain),
                 static_cast<size_t>(n));
        in->bytes(raw.data(), n);
        for (uint64_t left = in->number(); left > 0; left--) {
            const uint64_t offset = in->number(), tensor = in->number();
            memcpy(raw.data() + offset, &tensors.at(tensor).data, 8);
        }
        Plain value;
        memcpy(static_cast<void *>(&value), raw.data(), n);
        return value;
    }
}

using Binder = std::function<void()> (*)(Reader *);
template <class... A> std::function<void()> bind_arguments(void (*kernel)(A...), Reader *in) {
    std::tuple<std::remove_const_t<A>...> values{argument<A>(in)...};
    return [kernel, values] { std::apply(kernel, values); };
}
struct Entry {
    const char *name;
    Binder bind;
};

inline void read_tensors(Reader *in) {
    for (Tensor &t : tensors)
        free(t.block);
    tensors.assign(in->number(), Tensor{});
    for (Tensor &t : tensors) {
        void *p = nullptr;
        t.bytes = in->number();
        const size_t offset = in->number();
        t.output = in->number() != 0;
        if (posix_memalign(&p, 256, offset + t.bytes ? offset + t.bytes : 1) != 0)
            fail("no memory for a tensor of %zu bytes", t.bytes);
        t.block = static_cast<unsigned char *>(p);
        t.data = t.block + offset;
        in->bytes(t.data, t.bytes);
        __asan_poison_memory_region(t.block, offset);
    }
}

inline uint3 read_three(Reader *in) {
    uint3 v;
    v.x = static_cast<unsigned>(in->number());
    v.y = static_cast<unsigned>(in->number());
    v.z = static_cast<unsigned>(in->number());
    return v;
}

inline void read_launch(Reader *in, const Entry *entries, size_t n) {
    std::string name(in->number(), ' ');
    in->bytes(&name[0], name.size());
    launch.grid = read_three(in);
    launch.block = read_three(in);
    launch.cluster = read_three(in);
    launch.shared = static_cast<unsigned>(in->number());
    for (size_t i = 0; i < n; i++)
        if (name == entries[i].name) {
            launch.kernel = entries[i].bind(in);
            return;
        }
    fail("no kernel %s", name.c_str());
}

/* program JOB RESULTS: the calls of JOB in order; after each, its outputs go to RESULTS. */
inline int run(int argc, char **argv, const Entry *entries, size_t n) {
    FILE *f = argc == 3 ? fopen(argv[1], "rb") : nullptr, *out = nullptr;
    std::vector<unsigned char> job;
    unsigned char chunk[65536];
    for (size_t got; f && (got = fread(chunk, 1, sizeof chunk, f)) > 0;)
        job.insert(job.end(), chunk, chunk + got);
    if (f)
        fclose(f), out = fopen(argv[2], "wb");
    if (!out)
        fail("usage: program JOB RESULTS");
    Reader in{job.data(), job.data() + job.size()};
    for (uint64_t calls = in.number(), call = 0; call < calls; call++) {
        std::string name(in.number(), ' ');
        in.bytes(&name[0], name.size());
        call_name = name.c_str();
        read_tensors(&in);
        for (uint64_t launches = in.number(); launches > 0; launches--) {
            read_launch(&in, entries, n);
            run_launch();
        }
        for (const Tensor &t : tensors)
            if (t.output && fwrite(t.data, 1, t.bytes, out) != t.bytes)
                fail("cannot write the results");
        call_name = "";
    }
    return fclose(out);
}

} // namespace emu

#endif
