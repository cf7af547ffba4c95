/* The PTX instructions that kgen's CUDA templates use, one function each, named by the instruction
 * with `_` for `.` and `::`; operands in the order of the text, results by reference. emulator.py
 * turns asm statements into these calls: an instruction that is not here does not compile, and the
 * message names it. Semantics after the PTX ISA; matrix products are summed in double and rounded
 * once, which is at least as accurate as the hardware. */
#ifndef KGEN_TESTS_EMULATE_PTX_H
#define KGEN_TESTS_EMULATE_PTX_H

#include "emulate.h"

namespace ptx {

using u16 = unsigned short;
using u32 = unsigned;
using emu::same_bits;

/* ---- conversions ---- */

inline float from_bf16(u16 x) {
    return same_bits<float>(static_cast<u32>(x) << 16);
}
inline u16 to_bf16(float x) {
    const u32 u = same_bits<u32>(x);
    return x != x ? u16{0x7fff} : static_cast<u16>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline float from_f16(u16 x) {
    return static_cast<float>(same_bits<_Float16>(x));
}
inline u16 to_f16(float x) {
    return x != x ? u16{0x7fff} : same_bits<u16>(static_cast<_Float16>(x));
}
inline void cvt_f32_f16(float &d, u16 a) {
    d = from_f16(a);
}
inline void cvt_rn_f16_f32(u16 &d, float a) {
    d = to_f16(a);
}
inline void cvt_rn_bf16_f32(u16 &d, float a) {
    d = to_bf16(a);
}
inline void cvt_rn_f16x2_f32(u32 &d, float high, float low) {
    d = static_cast<u32>(to_f16(high)) << 16 | to_f16(low);
}
inline void cvt_rn_bf16x2_f32(u32 &d, float high, float low) {
    d = static_cast<u32>(to_bf16(high)) << 16 | to_bf16(low);
}
inline void ex2_approx_ftz_f32(float &d, float a) {
    d = exp2f(a);
    d = fabsf(d) < 0x1p-126f ? 0.0f : d;
}
inline void lg2_approx_ftz_f32(float &d, float a) {
    d = log2f(fabsf(a) < 0x1p-126f ? 0.0f : a);
}
inline void rcp_approx_ftz_f32(float &d, float a) {
    d = fabsf(a) < 0x1p-126f ? copysignf(INFINITY, a) : 1.0f / a;
    d = fabsf(d) < 0x1p-126f ? copysignf(0.0f, d) : d;
}
inline void sqrt_approx_f32(float &d, float a) {
    d = sqrtf(a);
}
/* 11 bits are right on the device; the others are cut off here. */
inline void tanh_approx_f32(float &d, float a) {
    d = same_bits<float>(same_bits<u32>(tanhf(a)) & ~0x1fffu);
}

/* To nearest, ties away from zero; 10 bits behind the point. */
inline void cvt_rna_tf32_f32(u32 &d, float a) {
    d = (same_bits<u32>(a) + 0x1000u) & ~0x1fffu;
}
inline float flushed(float a) {
    return fabsf(a) < 0x1p-126f ? copysignf(0.0f, a) : a;
}
inline void mul_ftz_f32(float &d, float a, float b) {
    d = flushed(flushed(a) * flushed(b));
}

/* ---- loads and stores with a hint ---- */

inline void ld_global_nc_v4_u32(u32 &a, u32 &b, u32 &c, u32 &d, const void *from) {
    const uint4 v = *static_cast<const uint4 *>(from);
    a = v.x, b = v.y, c = v.z, d = v.w;
}
inline void ld_global_nc_L1_no_allocate_v4_u32(u32 &a, u32 &b, u32 &c, u32 &d, const void *from) {
    ld_global_nc_v4_u32(a, b, c, d, from);
}
inline void ld_global_cs_v4_u32(u32 &a, u32 &b, u32 &c, u32 &d, const void *from) {
    ld_global_nc_v4_u32(a, b, c, d, from);
}
inline void st_global_cs_v4_u32(void *to, u32 a, u32 b, u32 c, u32 d) {
    *static_cast<uint4 *>(to) = uint4{a, b, c, d};
}

/* ---- clusters ---- */

inline u32 cluster_ctarank() {
    return emu::self->block->rank;
}
inline u32 cluster_nctarank() {
    return static_cast<u32>(emu::blocks.size());
}
inline void mov_u32(u32 &d, u32 a) {
    d = a;
}
template <class T> void mov_b32(T &d, u32 a) {
    d = static_cast<T>(a);
}
template <class T> void st_global_v4_b32(T *to, u32 a, u32 b, u32 c, u32 d) {
    const u32 all[4] = {a, b, c, d};
    if (reinterpret_cast<uintptr_t>(to) % sizeof all)
        emu::fail("st.global.v4.b32 at %p is not aligned", static_cast<const void *>(to));
    memcpy(to, all, sizeof all);
}
inline void barrier_cluster_arrive_release_aligned() {
    emu::self->cluster_seen = emu::cluster_barrier.generation;
    emu::barrier_arrive(&emu::cluster_barrier, static_cast<u32>(emu::fibers.size()));
}
inline void barrier_cluster_arrive_relaxed_aligned() {
    barrier_cluster_arrive_release_aligned();
}
inline void barrier_cluster_wait_acquire_aligned() {
    emu::wait(&emu::cluster_barrier.generation, emu::self->cluster_seen, "the cluster's barrier");
}
inline void mapa_shared_cluster_u32(u32 &d, u32 address, u32 rank) {
    if (rank >= emu::blocks.size())
        emu::fail("mapa to block %u of a cluster of %zu", rank, emu::blocks.size());
    d = (address & 0xffffff) | (rank + 1) << 24;
}
inline void ld_shared_cluster_f32(float &d, u32 address) {
    memcpy(&d, emu::shared_pointer(address, 4), 4);
}
inline void ld_shared_cluster_u32(u32 &d, u32 address) {
    memcpy(&d, emu::shared_pointer(address, 4), 4);
}
inline void red_relaxed_cluster_shared_cluster_add_u64(u32 address, unsigned long long v) {
    unsigned long long sum;
    void *at = emu::shared_pointer(address, 8);
    if (address % 8)
        emu::fail("red.add.u64 at %#x, which is no multiple of 8", address);
    memcpy(&sum, at, 8);
    sum += v;
    memcpy(at, &sum, 8);
}
/* Launches are made one after the other. */
inline void griddepcontrol_launch_dependents() {}
inline void griddepcontrol_wait() {}

/* ---- mbarriers ---- */

inline void mbarrier_init_shared_cta_b64(u32 address, u32 count) {
    emu::shared_pointer(address, 8);
    if (address % 8)
        emu::fail("an mbarrier at %#x, which is no multiple of 8", address);
    emu::self->block->mbarriers[address] = {count, count, 0, 0};
}
inline void fence_mbarrier_init_release_cluster() {}
inline void mbarrier_arrive_expect_tx_shared_cta_b64(u32 address, u32 bytes) {
    emu::Mbarrier *m = emu::mbarrier_at(address);
    m->bytes += bytes;
    m->pending--;
    m->check();
}
/* Does not come back before the phase of this parity is over, as a loop around it would. */
inline void mbarrier_try_wait_parity_shared_cta_b64(bool &over, u32 address, u32 parity) {
    const emu::Mbarrier *m = emu::mbarrier_at(address);
    while ((m->generation & 1) == parity)
        emu::wait(&m->generation, m->generation, "an mbarrier");
    over = true;
}
inline void selp_u32(u32 &d, u32 a, u32 b, bool p) {
    d = p ? a : b;
}
inline void st_async_shared_cluster_mbarrier_complete_tx_bytes_v2_f32(u32 address, float a, float b,
                                                                      u32 barrier) {
    const float both[2] = {a, b};
    if (address >> 24 != barrier >> 24)
        emu::fail("st.async to block %u with a barrier of block %u", (address >> 24) - 1,
                  (barrier >> 24) - 1);
    memcpy(emu::shared_pointer(address, 8), both, 8);
    emu::Mbarrier *m = emu::mbarrier_at(barrier);
    m->bytes -= 8;
    m->check();
}

/* ---- asynchronous copies ---- */

inline void cp_async_cg_shared_global(u32 to, const void *from, int bytes, int read) {
    void *at = emu::shared_pointer(to, static_cast<u32>(bytes));
    if (bytes != 16 || to % 16 || reinterpret_cast<uintptr_t>(from) % 16)
        emu::fail("cp.async.cg of %d bytes from %p to %#x is not aligned", bytes, from, to);
    emu::self->open.push_back({at, from, static_cast<u32>(bytes), static_cast<u32>(read)});
}
inline void cp_async_commit_group() {
    emu::self->groups.push_back(std::move(emu::self->open));
    emu::self->open.clear();
}
inline void cp_async_wait_group(int left) {
    while (emu::self->groups.size() > static_cast<size_t>(left)) {
        for (const emu::Fiber::Copy &c : emu::self->groups.front()) {
            memcpy(c.to, c.from, c.read);
            memset(static_cast<char *>(c.to) + c.read, 0, c.bytes - c.read);
        }
        emu::self->groups.pop_front();
    }
}

/* Says what will be read, which must be there. */
inline void cp_async_bulk_prefetch_L2_global(const void *from, u32 bytes) {
    if (bytes == 0 || bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16)
        emu::fail("cp.async.bulk.prefetch of %u bytes from %p is not aligned", bytes, from);
    if (__asan_region_is_poisoned(const_cast<void *>(from), bytes))
        emu::fail("cp.async.bulk.prefetch of %u bytes from %p leaves the tensor", bytes, from);
}
inline void prefetch_global_L2(const void *from) {
    cp_async_bulk_prefetch_L2_global(from, 16);
}

inline void cp_async_wait_all() {
    cp_async_commit_group();
    cp_async_wait_group(0);
}

/* ---- between the blocks of a cooperative grid ---- */

inline void red_release_gpu_global_add_u32(void *at, u32 v) {
    *static_cast<u32 *>(at) += v;
    emu::released++;
}
/* A word that says by itself that it is there: others see it at once. */
inline void st_relaxed_gpu_global_u64(void *to, unsigned long long v) {
    if (reinterpret_cast<uintptr_t>(to) % sizeof v)
        emu::fail("st.relaxed.u64 at %p is not aligned", to);
    memcpy(to, &v, sizeof v);
    emu::released++;
}
/* The same for each address: a thread that looks again waits for somebody's store. */
inline void ld_relaxed_gpu_global_u64(unsigned long long &d, const void *at) {
    const auto seen = emu::self->looked.find(at);
    if (seen != emu::self->looked.end() && seen->second == emu::released)
        emu::wait(&emu::released, emu::released, "another block's store");
    emu::self->looked[at] = emu::released;
    memcpy(&d, at, sizeof d);
}
/* A loop around it waits for others: it looks again when somebody released something. */
inline void ld_acquire_gpu_global_u32(u32 &d, const void *at) {
    if (emu::self->released_seen == emu::released)
        emu::wait(&emu::released, emu::released, "another block's release");
    emu::self->released_seen = emu::released;
    d = *static_cast<const u32 *>(at);
}

/* ---- matrices ---- */

struct Loaded {
    u32 address, r[4];
};

/* `count` matrices of 8 x 8: rows of 16 bytes at the addresses of lanes 8i to 8i + 7. */
inline void ldmatrix(Loaded &mine, int count, bool trans) {
    emu::together(trans ? "ldmatrix.trans" : "ldmatrix", 0xffffffffu, mine, [=](Loaded **lane) {
        for (int m = 0; m < count; m++) {
            u16 value[8][8];
            for (int row = 0; row < 8; row++) {
                const u32 address = lane[8 * m + row]->address;
                if (address % 16)
                    emu::fail("ldmatrix at %#x, which is no multiple of 16", address);
                memcpy(value[row], emu::shared_pointer(address, 16), 16);
            }
            for (int i = 0; i < 32; i++) {
                const int a = i / 4, b = i % 4 * 2;
                const u32 low = trans ? value[b][a] : value[a][b];
                const u32 high = trans ? value[b + 1][a] : value[a][b + 1];
                lane[i]->r[m] = low | high << 16;
            }
        }
    });
}
inline void ldmatrix_sync_aligned_m8n8_x4_shared_b16(u32 &a, u32 &b, u32 &c, u32 &d, u32 address) {
    Loaded mine{address, {}};
    ldmatrix(mine, 4, false);
    a = mine.r[0], b = mine.r[1], c = mine.r[2], d = mine.r[3];
}
inline void ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(u32 &a, u32 &b, u32 &c, u32 &d,
                                                           u32 address) {
    Loaded mine{address, {}};
    ldmatrix(mine, 4, true);
    a = mine.r[0], b = mine.r[1], c = mine.r[2], d = mine.r[3];
}

struct Product {
    u32 a[4], b[2];
    float c[4], d[4];
};

/* d = a b + c of 16 x 8 x 16, a and b of 16-bit floats. */
template <float (*widen)(u16)> void mma_16816(const char *name, Product &mine) {
    emu::together(name, 0xffffffffu, mine, [](Product **lane) {
        float a[16][16], b[16][8];
        for (int i = 0; i < 32; i++)
            for (int r = 0; r < 4; r++)
                for (int e = 0; e < 2; e++) {
                    const int row = i / 4 + r % 2 * 8, k = i % 4 * 2 + r / 2 * 8 + e;
                    a[row][k] = widen(static_cast<u16>(lane[i]->a[r] >> 16 * e));
                    if (r < 2)
                        b[i % 4 * 2 + r * 8 + e][i / 4] =
                            widen(static_cast<u16>(lane[i]->b[r] >> 16 * e));
                }
        for (int i = 0; i < 32; i++)
            for (int r = 0; r < 4; r++) {
                double sum = static_cast<double>(lane[i]->c[r]);
                for (int k = 0; k < 16; k++)
                    sum += static_cast<double>(a[i / 4 + r / 2 * 8][k]) *
                           static_cast<double>(b[k][i % 4 * 2 + r % 2]);
                lane[i]->d[r] = static_cast<float>(sum);
            }
    });
}
#define EMULATE_MMA(type, widen)                                                                   \
    inline void mma_sync_aligned_m16n8k16_row_col_f32_##type##_##type##_f32(                       \
        float &d0, float &d1, float &d2, float &d3, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0,        \
        u32 b1, float c0, float c1, float c2, float c3) {                                          \
        Product p{{a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}, {}};                               \
        mma_16816<widen>("mma.m16n8k16." #type, p);                                                \
        d0 = p.d[0], d1 = p.d[1], d2 = p.d[2], d3 = p.d[3];                                        \
    }
EMULATE_MMA(bf16, from_bf16)
EMULATE_MMA(f16, from_f16)
#undef EMULATE_MMA

/* The same of 16 x 8 x 8, a and b of TF32, whose low bits the hardware does not look at. */
inline void mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32(float &d0, float &d1, float &d2,
                                                               float &d3, u32 a0, u32 a1, u32 a2,
                                                               u32 a3, u32 b0, u32 b1, float c0,
                                                               float c1, float c2, float c3) {
    Product mine{{a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}, {}};
    emu::together("mma.m16n8k8.tf32", 0xffffffffu, mine, [](Product **lane) {
        const auto widen = [](u32 x) {
            return static_cast<double>(same_bits<float>(x & ~0x1fffu));
        };
        double a[16][8], b[8][8];
        for (int i = 0; i < 32; i++)
            for (int r = 0; r < 4; r++) {
                a[i / 4 + r % 2 * 8][i % 4 + r / 2 * 4] = widen(lane[i]->a[r]);
                if (r < 2)
                    b[i % 4 + r * 4][i / 4] = widen(lane[i]->b[r]);
            }
        for (int i = 0; i < 32; i++)
            for (int r = 0; r < 4; r++) {
                double sum = static_cast<double>(lane[i]->c[r]);
                for (int k = 0; k < 8; k++)
                    sum += a[i / 4 + r / 2 * 8][k] * b[k][i % 4 * 2 + r % 2];
                lane[i]->d[r] = static_cast<float>(sum);
            }
    });
    d0 = mine.d[0], d1 = mine.d[1], d2 = mine.d[2], d3 = mine.d[3];
}

} // namespace ptx

#endif
