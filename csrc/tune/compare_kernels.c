/* One text, compiled for three instruction sets and chosen by the CPU: the library itself is built
 * for any x86-64. */
#include "tune/compare_kernels.h"

#include <stdint.h>
#include <string.h>

#include "sys/cc.h"

/* Vectors are local to each loop; none is passed to a function, so no ABI depends on them. */
typedef double kg_v8d __attribute__((vector_size(64)));
typedef long long kg_v8l __attribute__((vector_size(64)));
typedef float kg_v8f __attribute__((vector_size(32)));
typedef uint32_t kg_v8u __attribute__((vector_size(32)));
typedef uint16_t kg_v8h __attribute__((vector_size(16)));

#define ABS_MASK 0x7fffffffffffffffLL

#define KG_NAME(x) x##_plain
#define KG_TARGET
#include "tune/compare_loops.h"
#undef KG_NAME
#undef KG_TARGET

#if defined(__x86_64__)
#define KG_NAME(x) x##_v3
#define KG_TARGET __attribute__((target("avx2,fma")))
#include "tune/compare_loops.h"
#undef KG_NAME
#undef KG_TARGET

#define KG_NAME(x) x##_v4
#define KG_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#include "tune/compare_loops.h"
#undef KG_NAME
#undef KG_TARGET
#endif

const kg_loops *kg_compare_loops(void) {
#if defined(__x86_64__)
    int level = kg_cpu_level();
    if (level >= 4)
        return &loops_v4;
    if (level == 3)
        return &loops_v3;
#endif
    return &loops_plain;
}
