/* Fork and join with as little between as a spin: the threads wait for the next loop with their
 * eyes open for a short while, as OpenMP's do, so that a loop in the worker costs what it costs in
 * the model's process, and sleep on a futex after that. Uses no heap after the start, and of system
 * calls only futex and sched_yield. */
#define _GNU_SOURCE
#include "worker/pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "worker/clean.h"
#include "worker/protocol.h"

enum {
    MAX_THREADS = 256,
    SPINS = 4000,          /* about 100 us of pauses */
    STACK_GUARD = 16 << 20 /* a frame larger than this would jump over it */
};

typedef struct pool_thread {
    kg_pool *pool;
    size_t index;
    pthread_t id;
    char *stack; /* begins with the guard */
    size_t stack_size;
} pool_thread;

struct kg_pool {
    size_t n;
    pool_thread threads[MAX_THREADS];
    void (*on_start)(void);
    /* What the leader was asked to do. */
    void (*lead)(kg_pool *p, void *ctx);
    void *lead_ctx;
    _Atomic uint32_t asked, answered;
    /* The loop that runs. */
    kg_pool_body body;
    void *ctx;
    int64_t range, chunk, nchunks;
    int split;
    uint64_t clean; /* not 0: no loop, each thread cleans itself, and this varies the pattern */
    _Atomic int64_t next;
    _Atomic uint32_t loop; /* goes up by one a loop */
    _Atomic uint32_t busy; /* helpers that have not finished it */
    _Atomic uint32_t asleep;
    _Atomic uint32_t started;
};

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void run_chunk(kg_pool *p, int64_t i) {
    int64_t begin = i * p->chunk;
    int64_t end = p->chunk < p->range - begin ? begin + p->chunk : p->range;
    p->body(begin, end, p->ctx);
}

static _Thread_local char *stack_low;

static void take_part(kg_pool *p) {
    if (p->clean) {
        kg_clean_thread(stack_low, p->clean);
        return;
    }
    for (int64_t i; (i = atomic_fetch_add(&p->next, 1)) < p->nchunks;)
        run_chunk(p, p->split == KG_SPLIT_SERVED ? i : p->nchunks - 1 - i);
}

/* KG_SPLIT_SERVED is what runtime/launch.c does: timings must be of the same chunks. */
static void cut(kg_pool *p, int64_t range, int64_t grain, int split) {
    int64_t n = (int64_t)p->n, parts = split == KG_SPLIT_SERVED ? 16 * n : 2 * n + 1;
    if (split == KG_SPLIT_SERVED && (n == 1 || range <= grain))
        parts = 1;
    p->chunk = range / parts + (range % parts != 0);
    if (p->chunk < grain && parts > 1)
        p->chunk = grain;
    p->nchunks = range / p->chunk + (range % p->chunk != 0);
}

static void all_take_part(kg_pool *p) {
    atomic_store(&p->busy, (uint32_t)(p->n - 1));
    atomic_fetch_add(&p->loop, 1);
    if (atomic_load(&p->asleep) > 0)
        futex_wake(&p->loop);
    take_part(p);
    for (int spins = 0; atomic_load(&p->busy) > 0; spins++) {
        relax();
        if (spins > SPINS)
            sched_yield();
    }
}

void kg_pool_for(kg_pool *p, int64_t range, int64_t grain, int split, kg_pool_body body,
                 void *ctx) {
    if (range <= 0)
        return;
    p->body = body;
    p->ctx = ctx;
    p->range = range;
    p->split = split;
    cut(p, range, grain < 1 ? 1 : grain, split);
    atomic_store(&p->next, 0);
    p->clean = 0;
    if (p->nchunks == 1 || p->n == 1)
        take_part(p);
    else
        all_take_part(p);
}

void kg_pool_clean(kg_pool *p, uint64_t pattern) {
    p->clean = pattern | 1;
    all_take_part(p);
}

static void help(pool_thread *t) {
    kg_pool *p = t->pool;
    uint32_t seen = 0;
    for (;;) {
        for (int spins = 0; spins < SPINS && atomic_load(&p->loop) == seen; spins++)
            relax();
        atomic_fetch_add(&p->asleep, 1);
        while (atomic_load(&p->loop) == seen)
            futex_wait(&p->loop, seen);
        atomic_fetch_sub(&p->asleep, 1);
        seen++;
        take_part(p);
        atomic_fetch_sub(&p->busy, 1);
    }
}

static void lead(kg_pool *p) {
    for (uint32_t done = 0;;) {
        while (atomic_load(&p->asked) == done)
            futex_wait(&p->asked, done);
        p->lead(p, p->lead_ctx);
        atomic_store(&p->answered, ++done);
        futex_wake(&p->answered);
    }
}

void kg_pool_lead(kg_pool *p, void (*fn)(kg_pool *pool, void *ctx), void *ctx) {
    p->lead = fn;
    p->lead_ctx = ctx;
    uint32_t ticket = atomic_fetch_add(&p->asked, 1) + 1, seen;
    futex_wake(&p->asked);
    while ((seen = atomic_load(&p->answered)) != ticket)
        futex_wait(&p->answered, seen);
}

static void *thread_main(void *arg) {
    pool_thread *t = arg;
    stack_low = t->stack + STACK_GUARD;
    if (t->pool->on_start)
        t->pool->on_start();
    atomic_fetch_add(&t->pool->started, 1);
    if (t->index == 0)
        lead(t->pool);
    else
        help(t);
    return NULL;
}

static bool pin(pthread_t id, size_t index, const cpu_set_t *allowed) {
    size_t count = (size_t)CPU_COUNT(allowed), want = count ? index % count : 0;
    for (size_t cpu = 0; count && cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, allowed) || want-- > 0)
            continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        return pthread_setaffinity_np(id, sizeof one, &one) == 0;
    }
    return false;
}

static int start_thread(kg_pool *p, size_t i, size_t stack, kg_error *err) {
    pool_thread *t = &p->threads[i];
    *t = (pool_thread){.pool = p, .index = i, .stack_size = stack};
    t->stack = mmap(NULL, STACK_GUARD + stack, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (t->stack == MAP_FAILED ||
        mprotect(t->stack + STACK_GUARD, stack, PROT_READ | PROT_WRITE) != 0)
        return kg_fail(err, KG_ENOMEM, "mmap of a stack: %s", strerror(errno));
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstack(&attr, t->stack + STACK_GUARD, stack);
    int rc = pthread_create(&t->id, &attr, thread_main, t);
    pthread_attr_destroy(&attr);
    return rc == 0 ? KG_OK : kg_fail(err, KG_EENV, "pthread_create: %s", strerror(rc));
}

int kg_pool_start(size_t threads, size_t stack, void (*on_start)(void), kg_pool **out,
                  size_t *pinned, kg_error *err) {
    if (threads < 1 || threads > MAX_THREADS)
        return kg_fail(err, KG_EINVAL, "a worker has 1 to %d threads, not %zu", MAX_THREADS,
                       threads);
    kg_pool *p = calloc(1, sizeof *p);
    if (!p)
        return kg_fail(err, KG_ENOMEM, "a pool of threads: out of memory");
    p->n = threads;
    p->on_start = on_start;
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    sched_getaffinity(0, sizeof allowed, &allowed);
    *pinned = 0;
    for (size_t i = 0; i < threads; i++) {
        int rc = start_thread(p, i, stack, err);
        if (rc != KG_OK)
            return rc; /* the worker ends; threads that run hold p */
        *pinned += pin(p->threads[i].id, i, &allowed);
    }
    while (atomic_load(&p->started) < threads)
        sched_yield();
    *out = p;
    return KG_OK;
}

size_t kg_pool_threads(const kg_pool *p) {
    return p->n;
}

bool kg_pool_guards(const kg_pool *p, uintptr_t address) {
    for (size_t i = 0; p && i < p->n; i++) {
        uintptr_t low = (uintptr_t)p->threads[i].stack;
        if (address >= low && address < low + STACK_GUARD)
            return true;
    }
    return false;
}
