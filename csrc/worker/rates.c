/* Measures with the widest loads and stores that the CPU has: a rate that is too low would call an
 * honest Kernel implausible. Each thread works on a part of its own, which it has touched before.
 */
#include "worker/rates.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "sys/cc.h"
#include "sys/proc.h"

enum {
    PASSES = 9,
    MIN_PASS_BYTES = 8 << 20 /* a pass of small sets is repeated to be seen by the clock */
};

typedef unsigned long long words __attribute__((vector_size(64), aligned(1)));

/* Two accumulators hide the adds behind the loads. */
#define READ_LOOP                                                                                  \
    words a = {0}, b = {0};                                                                        \
    for (size_t i = 0; i + 128 <= n; i += 128) {                                                   \
        a += *(const words *)(p + i);                                                              \
        b += *(const words *)(p + i + 64);                                                         \
    }                                                                                              \
    a += b;                                                                                        \
    unsigned long long sum = 0;                                                                    \
    for (int k = 0; k < 8; k++)                                                                    \
        sum += a[k];                                                                               \
    return sum;

static unsigned long long read_plain(const char *p, size_t n) {
    READ_LOOP
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static unsigned long long read_v3(const char *p, size_t n) {
    READ_LOOP
}
__attribute__((target("avx512f"))) static unsigned long long read_v4(const char *p, size_t n) {
    READ_LOOP
}
#endif

typedef unsigned long long (*reader)(const char *p, size_t n);

static reader pick_reader(void) {
#if defined(__x86_64__)
    int level = kg_cpu_level();
    if (level >= 4)
        return read_v4;
    if (level == 3)
        return read_v3;
#endif
    return read_plain;
}

typedef enum move { READ, WRITE, COPY } move;

typedef struct job {
    char *bytes;
    size_t part; /* bytes a thread, a multiple of 128 */
    move what;
    size_t times;
    reader read;
    volatile unsigned long long sink;
} job;

static void one_part(int64_t begin, int64_t end, void *ctx) {
    job *j = ctx;
    for (int64_t i = begin; i < end; i++) {
        char *p = j->bytes + (size_t)i * j->part;
        for (size_t t = 0; t < j->times; t++) {
            if (j->what == READ)
                j->sink = j->read(p, j->part);
            else if (j->what == WRITE)
                memset(p, (int)t, j->part);
            else
                memcpy(p, p + j->part / 2, j->part / 2);
            __asm__ volatile("" ::: "memory");
        }
    }
}

typedef struct measure {
    job job;
    double best;
} measure;

static void lead(kg_pool *pool, void *ctx) {
    measure *m = ctx;
    int64_t threads = (int64_t)kg_pool_threads(pool);
    double bytes = (double)m->job.part * (double)threads * (double)m->job.times;
    for (int pass = 0; pass < PASSES; pass++) {
        int64_t start = kg_now_ns();
        kg_pool_for(pool, threads, 1, 0, one_part, &m->job);
        int64_t took = kg_now_ns() - start;
        double rate = bytes / ((double)(took > 0 ? took : 1) * 1e-9);
        m->best = pass > 0 && rate > m->best ? rate : m->best; /* the first one touches */
    }
}

static double best_of(kg_pool *pool, const job *j, move what) {
    measure m = {.job = *j};
    m.job.what = what;
    kg_pool_lead(pool, lead, &m);
    return m.best;
}

int kg_rate_measure(kg_pool *pool, size_t bytes, kg_rate *out, kg_error *err) {
    size_t threads = kg_pool_threads(pool), part = bytes / threads / 256 * 256;
    if (part == 0)
        return kg_fail(err, KG_EINVAL, "a working set of %zu bytes is too small for %zu threads",
                       bytes, threads);
    char *memory =
        mmap(NULL, part * threads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return kg_fail(err, KG_ENOMEM, "a working set of %zu bytes: out of memory", bytes);
    memset(memory, 1, part * threads);
    job j = {.bytes = memory,
             .part = part,
             .times = part * threads < MIN_PASS_BYTES ? MIN_PASS_BYTES / (part * threads) : 1,
             .read = pick_reader()};
    *out = (kg_rate){.read = best_of(pool, &j, READ),
                     .write = best_of(pool, &j, WRITE),
                     .copy = best_of(pool, &j, COPY)};
    munmap(memory, part * threads);
    return KG_OK;
}
