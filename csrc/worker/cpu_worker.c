/* Serves requests: buffers are mapped with guards around them, the image is loaded, and from then
 * on only numbers come in: which entry, which range, which buffers. Everything a run needs is here
 * before the last lock, for after it the kernel gives no more memory. Refuses requests out of
 * order, indices out of range and lengths that do not fit. */
#define _GNU_SOURCE
#include "worker/cpu_worker.h"

#include <alloca.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/image.h"
#include "sys/cc.h"
#include "sys/proc.h"
#include "worker/clean.h"
#include "worker/faults.h"
#include "worker/pool.h"
#include "worker/protocol.h"
#include "worker/rates.h"
#include "sys/sandbox.h"
#include "worker/serve.h"
#include "worker/wire.h"

typedef struct mapped {
    char *data;
    size_t bytes;
    bool writable;
} mapped;

typedef struct launch {
    kg_entry entry;
    int64_t range, grain;
    void *args[KG_MAX_LAUNCH_ARGS];
} launch;

typedef struct run {
    kg_wire_run wire;
    launch launches[KG_MAX_LAUNCHES];
    uint64_t ns[KG_W_MAX_TIMED];
    const mapped *buffers;
    size_t nbuffers;
    uint64_t held[KG_W_MAX_BUFFERS]; /* the first 8 bytes of each that can be written: its poison */
} run;

enum { DEEPER = 256 };

enum stage { FRESH, OPENED, MAPPED, LOADED };

typedef struct worker {
    kg_talk talk;
    enum stage stage;
    kg_pool *pool;
    mapped buffers[KG_W_MAX_BUFFERS];
    kg_wire_limits limits;
    kg_entry entries[KG_MAX_LAUNCHES];
    run run;
} worker;

static int expect(const worker *w, enum stage stage, const char *what, kg_error *err) {
    if (w->stage == stage)
        return KG_OK;
    return kg_fail(err, KG_EINVAL, "%s comes out of order", what);
}

/* What images name as needed is here before the files are locked away. */
static void preload(void) {
    static const char *const names[] = {"libm.so.6", "libmvec.so.1"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        dlopen(names[i], RTLD_NOW | RTLD_GLOBAL);
}

/* A call's begin is nowhere in the process as it is: a Candidate could look for a recent time among
 * its caller's variables and move it. */
static volatile uint64_t started;
static uint64_t disguise;

static void choose_disguise(void) {
    const void *random = (const void *)(uintptr_t)getauxval(AT_RANDOM);
    if (random)
        memcpy(&disguise, random, sizeof disguise);
}

static int do_open(worker *w, kg_reader *in, kg_error *err) {
    uint32_t format = kg_get_u32(in), device = kg_get_u32(in);
    kg_get_u32(in);
    uint32_t threads = kg_get_u32(in);
    uint64_t stack = kg_get_u64(in);
    size_t pinned = 0;
    int abi = 0, rc = expect(w, FRESH, "OPEN", err);
    if (rc == KG_OK)
        rc = kg_talk_finish(&w->talk, "OPEN", err);
    if (rc == KG_OK && format != KG_W_FORMAT)
        rc = kg_fail(err, KG_EVERSION,
                     "kgen speaks worker protocol %u, this kgen-worker %d; both "
                     "come from one installation",
                     format, KG_W_FORMAT);
    if (rc == KG_OK && device != KG_CPU)
        rc = kg_fail(err, KG_EINVAL, "this worker was started for a CPU");
    if (rc == KG_OK && (stack < 64 << 10 || stack > 1 << 30))
        rc = kg_fail(err, KG_EINVAL, "a stack of %llu bytes", (unsigned long long)stack);
    if (rc != KG_OK)
        return rc;
    preload();
    kg_clean_init();
    choose_disguise();
    kg_cpu_has_amx();
    if ((rc = kg_faults_install(w->talk.socket, err)) != KG_OK ||
        (rc = kg_sandbox_files(&abi, err)) != KG_OK ||
        (rc = kg_pool_start(threads, stack, kg_faults_thread, &w->pool, &pinned, err)) != KG_OK ||
        (rc = kg_sandbox_system(err)) != KG_OK)
        return rc;
    kg_faults_pool(w->pool);
    w->stage = OPENED;
    kg_put_u32(&w->talk.reply, (uint32_t)abi);
    kg_put_u32(&w->talk.reply, threads);
    kg_put_u32(&w->talk.reply, (uint32_t)pinned);
    return KG_OK;
}

static int map_one(mapped *m, kg_reader *in, int fd, kg_error *err) {
    uint64_t bytes = kg_get_u64(in), offset = kg_get_u64(in), data = kg_get_u64(in);
    bool writable = kg_get_u8(in) != 0;
    if (in->status != KG_OK || bytes == 0 || bytes % 4096 != 0 || bytes > (uint64_t)1 << 46 ||
        offset > bytes || data > bytes - offset)
        return kg_fail(err, KG_EFORMAT, "MAP is malformed");
    char *room = mmap(NULL, bytes + 2 * (size_t)KG_W_GUARD, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return kg_fail(err, KG_ENOMEM, "mmap of %llu bytes: %s", (unsigned long long)bytes,
                       strerror(errno));
    char *at = mmap(room + KG_W_GUARD, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ,
                    MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0);
    if (at == MAP_FAILED)
        return kg_fail(err, KG_EIO, "mmap of a buffer: %s", strerror(errno));
    *m = (mapped){.data = at + offset, .bytes = data, .writable = writable};
    return KG_OK;
}

static int do_map(worker *w, kg_reader *in, kg_error *err) {
    uint32_t n = kg_get_u32(in);
    int rc = expect(w, OPENED, "MAP", err);
    if (rc == KG_OK && (n > KG_W_MAX_BUFFERS || n != w->talk.nfds))
        rc = kg_fail(err, KG_EFORMAT, "MAP has %u buffers and %zu descriptors", n, w->talk.nfds);
    kg_put_u32(&w->talk.reply, n);
    for (uint32_t i = 0; rc == KG_OK && i < n; i++) {
        rc = map_one(&w->buffers[i], in, w->talk.fds[i], err);
        w->limits.writable[i] = w->buffers[i].writable;
        kg_put_u64(&w->talk.reply, (uint64_t)(uintptr_t)w->buffers[i].data);
    }
    if (rc == KG_OK)
        rc = kg_talk_finish(&w->talk, "MAP", err);
    if (rc == KG_OK) {
        w->limits.nbuffers = n;
        w->stage = MAPPED;
    }
    return rc;
}

static int do_load(worker *w, kg_reader *in, kg_error *err) {
    uint32_t n = kg_get_u32(in);
    int rc = expect(w, MAPPED, "LOAD", err);
    if (rc == KG_OK)
        rc = kg_talk_finish(&w->talk, "LOAD", err);
    if (rc == KG_OK && (n < 1 || n > KG_MAX_LAUNCHES || w->talk.nfds != 1))
        rc = kg_fail(err, KG_EFORMAT, "LOAD has %u entries and %zu descriptors", n, w->talk.nfds);
    if (rc != KG_OK)
        return rc;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", w->talk.fds[0]);
    if ((rc = kg_image_load(path, NULL, 0, n, w->entries, err)) != KG_OK)
        return rc;
    close(w->talk.fds[0]);
    w->talk.nfds = 0;
    w->limits.nentries = n;
    if ((rc = kg_sandbox_last(w->talk.socket, err)) != KG_OK)
        return rc;
    w->talk.sealed = true;
    w->stage = LOADED;
    return KG_OK;
}

static void *address_of(worker *w, kg_wire_arg *a) {
    switch (a->kind) {
    case KG_WA_NULL:
        return NULL;
    case KG_WA_BUFFER:
        return w->buffers[a->u.index].data;
    case KG_WA_PROGRAMS:
        return w->run.wire.programs;
    default:
        return &a->u;
    }
}

static int read_run(worker *w, kg_error *err) {
    kg_wire_run *wire = &w->run.wire;
    int rc = kg_wire_read_run(&w->talk.in, &w->limits, wire, err);
    if (rc == KG_OK)
        rc = kg_talk_finish(&w->talk, "RUN", err);
    for (size_t i = 0; rc == KG_OK && i < wire->nlaunches; i++) {
        kg_wire_launch *from = &wire->launches[i];
        launch *l = &w->run.launches[i];
        l->entry = w->entries[from->entry];
        l->range = from->range;
        l->grain = from->grain;
        for (size_t k = 0; k < from->nargs; k++)
            l->args[k] = address_of(w, &from->args[k]);
    }
    return rc;
}

/* The pad puts the Candidate's frames below all that kg_clean_thread leaves out. */
static void run_part(int64_t begin, int64_t end, void *ctx) {
    const launch *l = ctx;
    char pad[KG_CLEAN_DEPTH];
    kg_clean_bytes(pad, sizeof pad, (uint64_t)begin);
    l->entry(begin, end, l->args);
    __asm__ volatile("" : : "r"(pad) : "memory");
}

static void remember_poison(run *r) {
    for (size_t i = 0; i < r->nbuffers; i++) {
        const mapped *m = &r->buffers[i];
        r->held[i] = 0;
        if (m->writable)
            memcpy(&r->held[i], m->data, m->bytes < 8 ? m->bytes : 8);
    }
}

/* What one call left, and where the next one is to write: poison again, or (stale) its results in
 * other places, which look right and are not. */
static void spoil(const mapped *m, uint64_t poison, bool stale) {
    size_t half = m->bytes / 16 * 8;
    for (size_t at = 0; stale && at < half; at += 8) {
        char keep[8];
        memcpy(keep, m->data + at, 8);
        memcpy(m->data + at, m->data + half + at, 8);
        memcpy(m->data + half + at, keep, 8);
    }
    for (size_t at = 0; !stale && at < m->bytes; at += 8)
        memcpy(m->data + at, &poison, m->bytes - at < 8 ? m->bytes - at : 8);
}

static void spoil_all(run *r) {
    for (size_t i = 0; i < r->nbuffers; i++)
        if (r->buffers[i].writable)
            spoil(&r->buffers[i], r->held[i], r->wire.flags & KG_RUN_STALE);
}

static void one_call(kg_pool *pool, run *r) {
    for (size_t i = 0; i < r->wire.nclear; i++) {
        const mapped *m = &r->buffers[r->wire.clear[i]];
        memset(m->data, 0, m->bytes);
    }
    for (size_t i = 0; i < r->wire.nlaunches; i++)
        kg_pool_for(pool, r->launches[i].range, r->launches[i].grain, (int)r->wire.split, run_part,
                    &r->launches[i]);
}

/* A call whose frames lie `deeper` bytes below where they usually are, so that what a Candidate
 * left on the stack meets other parts of its next frames. */
__attribute__((noinline)) static void one_call_at(kg_pool *pool, run *r, size_t deeper) {
    volatile char *room = alloca(deeper + 1);
    room[0] = 0;
    one_call(pool, r);
    room[deeper] = 0;
}

/* A call finds nothing of the one before it, but what that left in the caches. */
static void prepare_call(kg_pool *pool, run *r, uint32_t calls) {
    if (r->wire.flags & KG_RUN_KEEP)
        return;
    if (calls > 0)
        spoil_all(r);
    kg_pool_clean(pool, (uint64_t)kg_now_ns());
}

static void lead_run(kg_pool *pool, void *ctx) {
    run *r = ctx;
    uint32_t calls = 0;
    remember_poison(r);
    for (uint32_t i = 0; i < r->wire.warm; i++) {
        prepare_call(pool, r, calls++);
        one_call_at(pool, r, r->wire.flags & KG_RUN_KEEP ? DEEPER * (size_t)(i % 3 + 1) : 0);
    }
    for (uint32_t i = 0; i < r->wire.timed; i++) {
        prepare_call(pool, r, calls++);
        started = (uint64_t)kg_now_ns() ^ disguise;
        one_call_at(pool, r, 0);
        r->ns[i] = (uint64_t)kg_now_ns() - (started ^ disguise);
    }
}

static int do_run(worker *w, kg_error *err) {
    int rc = expect(w, LOADED, "RUN", err);
    if (rc == KG_OK)
        rc = read_run(w, err);
    if (rc != KG_OK)
        return rc;
    w->run.buffers = w->buffers;
    w->run.nbuffers = w->limits.nbuffers;
    kg_pool_lead(w->pool, lead_run, &w->run);
    kg_put_u32(&w->talk.reply, w->run.wire.timed);
    for (uint32_t i = 0; i < w->run.wire.timed; i++)
        kg_put_u64(&w->talk.reply, w->run.ns[i]);
    return KG_OK;
}

static int do_rates(worker *w, kg_reader *in, kg_error *err) {
    uint32_t n = kg_get_u32(in);
    int rc = expect(w, OPENED, "RATES", err);
    if (rc == KG_OK && n > 64)
        rc = kg_fail(err, KG_EFORMAT, "RATES asks for %u sizes", n);
    kg_put_u32(&w->talk.reply, n);
    for (uint32_t i = 0; rc == KG_OK && i < n; i++) {
        kg_rate rate = {0};
        uint64_t bytes = kg_get_u64(in);
        rc = in->status == KG_OK ? kg_rate_measure(w->pool, bytes, &rate, err) : in->status;
        kg_put_f64(&w->talk.reply, rate.read);
        kg_put_f64(&w->talk.reply, rate.write);
        kg_put_f64(&w->talk.reply, rate.copy);
    }
    return rc == KG_OK ? kg_talk_finish(&w->talk, "RATES", err) : rc;
}

static int answer(void *worker_, kg_talk *t, uint32_t kind, kg_error *err) {
    worker *w = worker_;
    switch (kind) {
    case KG_W_OPEN:
        return do_open(w, &t->in, err);
    case KG_W_MAP:
        return do_map(w, &t->in, err);
    case KG_W_LOAD:
        return do_load(w, &t->in, err);
    case KG_W_RUN:
        return do_run(w, err);
    case KG_W_RATES:
        return do_rates(w, &t->in, err);
    case KG_W_PING:
        return kg_talk_finish(t, "PING", err);
    default:
        return kg_fail(err, KG_EFORMAT, "request %u is not known", kind);
    }
}

int kg_cpu_worker(int socket) {
    static worker w;
    w.limits.device = KG_CPU;
    kg_talk_init(&w.talk, socket);
    kg_talk_serve(&w.talk, answer, &w);
    return 0;
}
