/* Registers that the C ABI leaves to whoever wants them (vector, mask, MMX) keep their values
 * across calls, and so does the stack below the present frame: both are memory that no inspection
 * of an object finds. Resetting them is cheap, so it is done before every call, outside of the time
 * that is measured.
 *
 * The stack is written past the caches but for its top, so that a timed call finds in them what the
 * call before it left there. Refuses nothing; on other machines than x86-64 only the stack is
 * cleaned. */
#include "worker/clean.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

enum { OURS = 512, HOT = 4096 };

static uint64_t nan_of(uint64_t pattern) {
    return 0x7ff17f817f817f81u | (pattern & 0x000e007e007e007eu);
}

#if defined(__x86_64__)
/* x87, SSE, AVX, AVX-512 and tiles. Not: protection keys, which are the process's. */
enum { RESET = 0xe7 | 3 << 17, AREA = 16 << 10 };

/* What _xrstor64 takes, which is not the same to all compilers. */
#if defined(__clang__)
typedef unsigned long long mask;
#else
typedef long long mask;
#endif
static mask reset; /* the components that this machine has; 0: it has no xrstor */
/* All zero but for the control words: "as a new process has them". */
static _Alignas(64) unsigned char initial[AREA];

__attribute__((target("xsave"))) static uint64_t components(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 0;
    return (uint64_t)_xgetbv(0) & RESET;
}

void kg_clean_init(void) {
    const uint16_t x87 = 0x037f;
    const uint32_t mxcsr = 0x1f80;
    memcpy(initial, &x87, sizeof x87);
    memcpy(initial + 24, &mxcsr, sizeof mxcsr);
    reset = (mask)components();
}

__attribute__((target("xsave"))) static void clean_registers(void) {
    if (reset)
        _xrstor64(initial, reset);
}

__attribute__((no_sanitize("address"))) static void fill_cold(char *at, const char *end,
                                                              uint64_t value) {
    for (; at + 8 <= end; at += 8)
        _mm_stream_si64((long long *)(void *)at, (long long)value);
    _mm_sfence();
}
#else
void kg_clean_init(void) {}

static void clean_registers(void) {}

__attribute__((no_sanitize("address"))) static void fill_cold(char *at, const char *end,
                                                              uint64_t value) {
    for (; at + 8 <= end; at += 8)
        memcpy(at, &value, sizeof value);
}
#endif

__attribute__((no_sanitize("address"))) static void fill_hot(char *at, const char *end,
                                                             uint64_t value) {
    for (; at + 8 <= end; at += 8)
        *(volatile uint64_t *)(void *)at = value;
}

__attribute__((noinline, no_sanitize("address"))) void kg_clean_thread(char *low,
                                                                       uint64_t pattern) {
    char *end = (char *)((uintptr_t)__builtin_frame_address(0) & ~(uintptr_t)63) - OURS;
    char *hot = end - HOT;
    if (hot < low)
        return;
    fill_cold(low, hot, nan_of(pattern));
    fill_hot(hot, end, nan_of(pattern));
    clean_registers();
}

void kg_clean_bytes(void *at, size_t n, uint64_t pattern) {
    fill_hot(at, (char *)at + n, nan_of(pattern));
}
