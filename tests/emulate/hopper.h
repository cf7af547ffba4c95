/* What Hopper adds, for the emulator: tensor maps and bulk copies, wgmma, stmatrix, setmaxnreg.
 * After the PTX ISA and what was measured of swizzles and descriptors.
 *
 * Whatever is asynchronous happens at the worst time that is allowed: a load is in shared memory as
 * soon as it is asked for, so that a stage that is still read shows; products happen when they are
 * waited for, and a store reads shared memory when it is waited for, so that a buffer that is
 * refilled too early shows. A thread that ends with any of them open is an error, and so are boxes
 * that are not aligned to their swizzle. What is not shown: a missing fence, an accumulator that is
 * read while it is written. */
#ifndef KGEN_TESTS_EMULATE_HOPPER_H
#define KGEN_TESTS_EMULATE_HOPPER_H

#include "ptx.h"

#include <array>

namespace ptx {

using u64 = unsigned long long;

/* As emulator.py fills in the 128 bytes of a tensor map. */
struct TensorMap {
    unsigned char *data;
    u64 dims[5], strides[4]; /* innermost first; bytes, of dims 1 on */
    u32 box[5];
    u16 rank, swizzle; /* swizzle: bytes */
    u32 bytes;         /* of an element */
};
static_assert(sizeof(TensorMap) <= 128, "a tensor map has 128 bytes");

inline u32 swizzled(u32 address, u32 swizzle) {
    return address ^ (address >> 7 & (swizzle / 16 - (swizzle ? 1 : 0))) << 4;
}

/* Visits the elements of the box at `at`: f(shared address, global pointer or NULL outside). */
template <class F> void each_element(const TensorMap *m, u32 shared, const int (&at)[5], F f) {
    if (shared % (m->swizzle ? m->swizzle * 8u : 128u))
        emu::fail("a box at %#x is not aligned to its swizzle of %u bytes", shared, m->swizzle);
    u32 count = 1, index[5] = {};
    for (u32 d = 0; d < m->rank; d++)
        count *= m->box[d];
    for (u32 e = 0; e < count; e++) {
        u64 offset = 0;
        bool inside = true;
        for (u32 d = 0; d < m->rank; d++) {
            const long long where = static_cast<long long>(at[d]) + index[d];
            inside = inside && where >= 0 && where < static_cast<long long>(m->dims[d]);
            offset += static_cast<u64>(where) * (d ? m->strides[d - 1] : m->bytes);
        }
        f(swizzled(shared + e * m->bytes, m->swizzle), inside ? m->data + offset : nullptr);
        for (u32 d = 0; d < m->rank && ++index[d] == m->box[d]; d++)
            index[d] = 0;
    }
}

inline u32 of_block(u32 address, u32 rank) {
    return (address & 0xffffff) | (rank + 1) << 24;
}
inline void complete(u32 barrier, u32 bytes) {
    emu::Mbarrier *b = emu::mbarrier_at(barrier);
    b->bytes -= bytes;
    b->check();
}

inline void load_tile(u32 to, const TensorMap *m, const int (&at)[5], u32 barrier, u32 mask) {
    u32 bytes = m->bytes;
    for (u32 d = 0; d < m->rank; d++)
        bytes *= m->box[d];
    for (u32 rank = 0; rank < emu::blocks.size(); rank++) {
        if ((mask >> rank & 1) == 0)
            continue;
        each_element(m, to & 0xffffff, at, [&](u32 address, const unsigned char *from) {
            void *there = emu::shared_pointer(of_block(address, rank), m->bytes);
            from ? memcpy(there, from, m->bytes) : memset(there, 0, m->bytes);
        });
        complete(of_block(barrier, rank), bytes);
    }
}
inline u32 own_mask() {
    return 1u << emu::self->block->rank;
}
template <class M>
void cp_async_bulk_tensor_3d_shared_cluster_global_tile_mbarrier_complete_tx_bytes(
    u32 to, const M *m, int x, int y, int z, u32 barrier) {
    load_tile(to, reinterpret_cast<const TensorMap *>(m), {x, y, z, 0, 0}, barrier, own_mask());
}
template <class M>
void cp_async_bulk_tensor_3d_shared_cluster_global_tile_mbarrier_complete_tx_bytes_multicast_cluster(
    u32 to, const M *m, int x, int y, int z, u32 barrier, u16 mask) {
    load_tile(to, reinterpret_cast<const TensorMap *>(m), {x, y, z, 0, 0}, barrier, mask);
}

template <class M>
void cp_async_bulk_tensor_4d_shared_cluster_global_tile_mbarrier_complete_tx_bytes(
    u32 to, const M *m, int x, int y, int z, int v, u32 barrier) {
    load_tile(to, reinterpret_cast<const TensorMap *>(m), {x, y, z, v, 0}, barrier, own_mask());
}
template <class M>
void cp_async_bulk_tensor_5d_shared_cluster_global_tile_mbarrier_complete_tx_bytes(
    u32 to, const M *m, int x, int y, int z, int v, int w, u32 barrier) {
    load_tile(to, reinterpret_cast<const TensorMap *>(m), {x, y, z, v, w}, barrier, own_mask());
}

template <class M> void prefetch_tensormap(const M *) {}

/* Plain bulk copies; sizes and addresses are multiples of 16. */
inline void load_bytes(u32 to, const void *from, u32 bytes, u32 barrier, u32 mask) {
    if (to % 16 || bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16)
        emu::fail("cp.async.bulk of %u bytes from %p to %#x is not aligned", bytes, from, to);
    for (u32 rank = 0; rank < emu::blocks.size(); rank++)
        if (mask >> rank & 1) {
            memcpy(emu::shared_pointer(of_block(to, rank), bytes), from, bytes);
            complete(of_block(barrier, rank), bytes);
        }
}
inline void cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(u32 to, const void *from,
                                                                           u32 bytes, u32 barrier) {
    load_bytes(to, from, bytes, barrier, own_mask());
}
inline void cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes_multicast_cluster(
    u32 to, const void *from, u32 bytes, u32 barrier, u16 mask) {
    load_bytes(to, from, bytes, barrier, mask);
}

/* ---- stores and products, later ---- */

inline void put_off(std::function<void()> what) {
    emu::self->later[0].open.push_back(std::move(what));
}
template <class M>
void cp_async_bulk_tensor_3d_global_shared_cta_tile_bulk_group(const M *m, int x, int y, int z,
                                                               u32 from) {
    const TensorMap map = *reinterpret_cast<const TensorMap *>(m);
    put_off([=] {
        each_element(&map, from, {x, y, z, 0, 0}, [&](u32 address, unsigned char *to) {
            if (to)
                memcpy(to, emu::shared_pointer(address, map.bytes), map.bytes);
        });
    });
}
inline void close_group(int queue) {
    emu::Later &l = emu::self->later[queue];
    l.groups.push_back(std::move(l.open));
    l.open.clear();
}
inline void finish_groups(int queue, int left) {
    emu::Later &l = emu::self->later[queue];
    for (; l.groups.size() > static_cast<size_t>(left); l.groups.pop_front())
        for (const std::function<void()> &what : l.groups.front())
            what();
}
inline void cp_async_bulk_commit_group() {
    close_group(0);
}
inline void cp_async_bulk_wait_group_read(int left) {
    finish_groups(0, left);
}
inline void cp_async_bulk_wait_group(int left) {
    finish_groups(0, left);
}
inline void wgmma_fence_sync_aligned() {}
/* A product is one of a whole warpgroup: it is not done before all its threads asked for it, and
 * then for all of them. */
inline void wgmma_commit_group_sync_aligned() {
    emu::Products &p = emu::self->block->products[emu::self->warp / 4];
    close_group(1);
    const size_t n = emu::self->products++;
    if (p.arrived.size() <= n)
        p.arrived.resize(n + 1);
    if (++p.arrived[n] == 128)
        p.complete++;
}
inline void wgmma_wait_group_sync_aligned(int left) {
    emu::Products &p = emu::self->block->products[emu::self->warp / 4];
    while (p.complete + static_cast<unsigned>(left) < emu::self->products)
        emu::wait(&p.complete, p.complete, "wgmma of all threads of its warpgroup");
    finish_groups(1, left);
    const unsigned seen = p.done.generation;
    emu::barrier_arrive(&p.done, 128);
    emu::wait(&p.done.generation, seen, "wgmma of all threads of its warpgroup");
}

/* An operand in shared memory with a swizzle of 128 bytes. Row r and k of 16: K-major, rows of 128
 * bytes in groups of 8; or MN-major, 64 rows side by side, one line of 128 bytes for each k. Or K-major
 * without one: rows of 16 bytes in groups of 8, and `leading` to the other eight k. */
struct Operand {
    const unsigned char *base; /* of shared address 0 */
    u32 start, leading, stride;
    bool turned, plain;
    u32 at(u32 r, u32 k) const {
        if (plain)
            return start + r / 8 * stride + k / 8 * leading + r % 8 * 16 + k % 8 * 2;
        return turned ? start + r / 64 * leading + k / 8 * stride + k % 8 * 128 + r % 64 * 2
                      : start + r / 8 * stride + r % 8 * 128 + k * 2;
    }
};
inline Operand operand(u64 descriptor, bool turned, u32 rows) {
    Operand o{nullptr, static_cast<u32>(descriptor & 0x3fff) << 4,
              static_cast<u32>(descriptor >> 16 & 0x3fff) << 4,
              static_cast<u32>(descriptor >> 32 & 0x3fff) << 4, turned, descriptor >> 62 == 0};
    if (descriptor >> 62 > 1 || (o.plain && turned) || (descriptor >> 49 & 7) != 0)
        emu::fail("wgmma with a swizzle of 64 or 32 bytes, MN-major without one, or a base offset, is not emulated");
    /* The swizzle stays within 1024 bytes. */
    const u32 within = o.plain ? 0 : 1023, first = o.at(0, 0) & ~within, last = o.at(rows - 1, 15) | (within | 1);
    o.base =
        static_cast<const unsigned char *>(emu::shared_pointer(first, last + 1 - first)) - first;
    return o;
}

/* What each of the 65536 halves is. */
template <float (*widen)(u16)> const float *widened() {
    static const std::vector<float> all = [] {
        std::vector<float> v(65536);
        for (u32 i = 0; i < 65536; i++)
            v[i] = widen(static_cast<u16>(i));
        return v;
    }();
    return all.data();
}

#define EMULATE_FAST __attribute__((optimize("O2"), no_sanitize("address", "undefined")))
EMULATE_FAST inline void read_row(const Operand &o, const float *value, u32 r, double (&to)[16]) {
    for (u32 k = 0; k < 16; k++) {
        const u32 at = o.at(r, k), where = o.plain ? at : at ^ (at >> 7 & 7) << 4;
        to[k] = static_cast<double>(value[o.base[where] | o.base[where + 1] << 8]);
    }
}

/* A thread's two rows of the left factor. */
using Rows = std::array<std::array<double, 16>, 2>;

/* d (+)= a b for one thread's elements of 64 x N x 16. */
template <u32 N>
EMULATE_FAST void multiply(float *const *d, const float *value, const Rows &left, const Operand &b,
                           bool more, u32 lane) {
    double right[16];
    for (u32 j = 0; j < N / 8; j++)
        for (u32 e = 0; e < 2; e++) {
            read_row(b, value, j * 8 + lane % 4 * 2 + e, right);
            for (u32 h = 0; h < 2; h++) {
                float &to = *d[4 * j + 2 * h + e];
                double sum = more ? static_cast<double>(to) : 0.0;
                for (u32 k = 0; k < 16; k++)
                    sum += left[h][k] * right[k];
                to = static_cast<float>(sum);
            }
        }
}
#undef EMULATE_FAST
/* Where a left factor in shared memory and one in registers differ: the latter is 4 words in each
 * thread of a quad, and is taken when the product is asked for. */
inline Rows rows_of(const Operand &a, const float *value) {
    double row[16];
    Rows left;
    for (u32 h = 0; h < 2; h++) {
        read_row(a, value, emu::self->warp % 4 * 16 + emu::self->lane / 4 + h * 8, row);
        std::copy(row, row + 16, left[h].begin());
    }
    return left;
}
inline Rows rows_of(const std::array<u32, 4> &a, const float *value) {
    Rows left;
    for (u32 h = 0; h < 2; h++)
        for (u32 k = 0; k < 16; k++) {
            const int from = static_cast<int>(emu::self->lane / 4 * 4 + k % 8 / 2);
            const u32 pair = emu::shuffle("wgmma", 0xffffffff, a[h + k / 8 * 2], from);
            left[h][k] = static_cast<double>(value[pair >> k % 2 * 16 & 0xffff]);
        }
    return left;
}

/* operands: accumulators, a descriptor or 4 words, a descriptor, whether the accumulators count,
 * the signs of the factors, and their orders: of both, or of the right one beside words. */
template <u32 N, bool WORDS>
void product_of(const void *const *operands, const size_t *bytes, const float *value) {
    std::array<float *, N / 2> d;
    const u32 begin = N / 2, after = begin + (WORDS ? 4 : 1);
    u64 descriptor[2] = {};
    std::array<u32, 4> words = {};
    int flag[5] = {};
    if ((emu::self->warp / 4 + 1) * 128 > emu::block_threads())
        emu::fail("wgmma in a warpgroup of fewer than 128 threads");
    for (u32 i = 0; i < N / 2; i++)
        d[i] = static_cast<float *>(const_cast<void *>(operands[i]));
    for (u32 i = 0; WORDS && i < 4; i++)
        memcpy(&words[i], operands[begin + i], 4);
    if (!WORDS)
        memcpy(&descriptor[0], operands[begin], 8);
    memcpy(&descriptor[1], operands[after], 8);
    for (u32 i = 0; i < (WORDS ? 4u : 5u); i++)
        memcpy(&flag[i], operands[after + 1 + i], bytes[after + 1 + i]);
    if (flag[1] != 1 || flag[2] != 1)
        emu::fail("wgmma that negates an operand is not emulated");
    const bool more = flag[0] != 0, left_turned = flag[3] != 0, turned = flag[WORDS ? 3 : 4] != 0;
    Rows taken = {};
    if (WORDS)
        taken = rows_of(words, value);
    emu::self->later[1].open.push_back([=] {
        const Rows left = WORDS ? taken : rows_of(operand(descriptor[0], left_turned, 64), value);
        multiply<N>(d.data(), value, left, operand(descriptor[1], turned, N), more,
                    emu::self->lane);
    });
}
template <float (*widen)(u16), u32 N, class... A> void product(A &&...operands) {
    constexpr bool WORDS = sizeof...(A) == N / 2 + 9;
    static_assert(WORDS || sizeof...(A) == N / 2 + 7);
    const void *const all[] = {&operands...};
    const size_t bytes[] = {sizeof(operands)...};
    product_of<N, WORDS>(all, bytes, widened<widen>());
}
#define EMULATE_WGMMA(N)                                                                           \
    template <class... A>                                                                          \
    void wgmma_mma_async_sync_aligned_m64n##N##k16_f32_bf16_bf16(A &&...operands) {                \
        product<from_bf16, N>(operands...);                                                        \
    }                                                                                              \
    template <class... A>                                                                          \
    void wgmma_mma_async_sync_aligned_m64n##N##k16_f32_f16_f16(A &&...operands) {                  \
        product<from_f16, N>(operands...);                                                         \
    }
EMULATE_WGMMA(64)
EMULATE_WGMMA(96)
EMULATE_WGMMA(112)
EMULATE_WGMMA(128)
EMULATE_WGMMA(192)
EMULATE_WGMMA(256)
#undef EMULATE_WGMMA

/* ---- the rest ---- */

struct Stored {
    u32 address, r[4];
};
inline void stmatrix_sync_aligned_m8n8_x4_shared_b16(u32 address, u32 a, u32 b, u32 c, u32 d) {
    Stored mine{address, {a, b, c, d}};
    emu::together("stmatrix", 0xffffffffu, mine, [](Stored **lane) {
        for (int m = 0; m < 4; m++)
            for (int row = 0; row < 8; row++) {
                const u32 at = lane[8 * m + row]->address;
                if (at % 16)
                    emu::fail("stmatrix at %#x, which is no multiple of 16", at);
                for (int pair = 0; pair < 4; pair++)
                    memcpy(static_cast<char *>(emu::shared_pointer(at, 16)) + 4 * pair,
                           &lane[4 * row + pair]->r[m], 4);
            }
    });
}
inline void mbarrier_arrive_shared_cta_b64(u32 address) {
    emu::Mbarrier *m = emu::mbarrier_at(address);
    m->pending--;
    m->check();
}
inline void mbarrier_arrive_shared_cluster_b64(u32 address) {
    mbarrier_arrive_shared_cta_b64(address);
}
inline void setp_ne_b32(bool &p, int a, int b) {
    p = a != b;
}
inline void ld_shared_u32(u32 &d, u32 address) {
    memcpy(&d, emu::shared_pointer(address, 4), 4);
}
inline void ld_shared_v4_f32(float &a, float &b, float &c, float &d, u32 address) {
    float v[4];
    memcpy(v, emu::shared_pointer(address, 16), 16);
    a = v[0], b = v[1], c = v[2], d = v[3];
}
inline void st_shared_u16(u32 address, u16 x) {
    memcpy(emu::shared_pointer(address, 2), &x, 2);
}
inline void st_shared_f32(u32 address, float x) {
    memcpy(emu::shared_pointer(address, 4), &x, 4);
}
inline void ld_shared_v2_f32(float &a, float &b, u32 address) {
    float v[2];
    memcpy(v, emu::shared_pointer(address, 8), 8);
    a = v[0], b = v[1];
}
inline void st_shared_v2_f32(u32 address, float a, float b) {
    const float v[2] = {a, b};
    memcpy(emu::shared_pointer(address, 8), v, 8);
}
inline void bar_sync(int id, int threads) {
    emu::barrier(static_cast<unsigned>(id), static_cast<unsigned>(threads));
}
inline void bar_arrive(int id, int threads) {
    emu::barrier_arrive(&emu::self->block->barriers[id], static_cast<unsigned>(threads));
}
inline void setmaxnreg_dec_sync_aligned_u32(int) {}
inline void setmaxnreg_inc_sync_aligned_u32(int) {}
inline void fence_proxy_async_shared_cta() {}
inline void fence_proxy_async() {}

} // namespace ptx

#endif
