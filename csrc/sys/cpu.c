/* What this CPU and its operating system can run, asked of the hardware: the compilers' own lists
 * of names differ. */
#include "sys/cc.h"

#include <stdbool.h>
#include <stdint.h>

#if defined(__x86_64__)

#include <cpuid.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t xcr0(void) {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return ((uint64_t)hi << 32) | lo;
}

static bool has(uint32_t word, uint32_t bits) {
    return (word & bits) == bits;
}

static int find_level(void) {
    /* The psABI's lists. Leaf 1 ecx; leaf 7 ebx; leaf 0x80000001 ecx. */
    const uint32_t v2_c = 1u << 0 | 1u << 9 | 1u << 13 | 1u << 19 | 1u << 20 | 1u << 23;
    const uint32_t v3_c = 1u << 12 | 1u << 22 | 1u << 27 | 1u << 28 | 1u << 29;
    const uint32_t v3_b = 1u << 3 | 1u << 5 | 1u << 8, v3_x = 1u << 5;
    const uint32_t v4_b = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
    uint32_t a, b, c, d, b7, c7, cx;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, v2_c))
        return 1;
    if (!has(c, v3_c) || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d) || !has(b7, v3_b) ||
        !__get_cpuid(0x80000001, &a, &b, &cx, &d) || !has(cx, v3_x) || (xcr0() & 6) != 6)
        return 2;
    return has(b7, v4_b) && (xcr0() & 0xe6) == 0xe6 ? 4 : 3;
}

/* A virtual machine's hypervisor answers each question, which takes as long as comparing a small
 * output. */
int kg_cpu_level(void) {
    static atomic_int level;
    int known = atomic_load_explicit(&level, memory_order_relaxed);
    if (known == 0)
        atomic_store_explicit(&level, known = find_level(), memory_order_relaxed);
    return known;
}

int kg_cpu_has_amx(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    uint32_t a, b, c, d;
    if (kg_cpu_level() < 4 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) ||
        !has(d, 1u << 22 | 1u << 24) || (xcr0() & (3u << 17)) != 3u << 17)
        return 0;
    /* Linux keeps the tiles from a process until it asks. */
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

#else

int kg_cpu_level(void) {
    return 0;
}

int kg_cpu_has_amx(void) {
    return 0;
}

#endif
