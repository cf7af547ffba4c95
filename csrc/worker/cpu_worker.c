/* Serves requests: buffers are mapped with guards around them, the image is loaded, and from then
 * on only numbers come in: which entry, which range, which buffers. Everything a run needs is here
 * before the last lock, for after it the kernel gives no more memory. Refuses requests out of
 * order, indices out of range and lengths that do not fit. */
#define _GNU_SOURCE
#include "worker/cpu_worker.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/buf.h"
#include "runtime/image.h"
#include "sys/cc.h"
#include "sys/frames.h"
#include "sys/proc.h"
#include "worker/faults.h"
#include "worker/pool.h"
#include "worker/protocol.h"
#include "worker/rates.h"
#include "worker/sandbox.h"

typedef struct mapped {
    char *data;
    size_t bytes;
    bool writable;
} mapped;

typedef struct launch {
    kg_entry entry;
    int64_t range, grain;
    size_t nargs;
    union {
        void *p;
        int32_t i32;
        int64_t i64;
        float f32;
        double f64;
    } values[KG_MAX_LAUNCH_ARGS];
    void *args[KG_MAX_LAUNCH_ARGS];
} launch;

typedef struct run {
    uint32_t split, warm, timed;
    uint32_t nclear, clear[KG_W_MAX_BUFFERS];
    size_t nlaunches;
    launch launches[KG_MAX_LAUNCHES];
    _Alignas(64) char programs[KG_W_MAX_PROGRAMS];
    uint64_t ns[KG_W_MAX_TIMED];
    const mapped *buffers;
} run;

enum stage { FRESH, OPENED, MAPPED, LOADED };

typedef struct worker {
    int socket;
    enum stage stage;
    kg_pool *pool;
    mapped buffers[KG_W_MAX_BUFFERS];
    size_t nbuffers;
    kg_entry entries[KG_MAX_LAUNCHES];
    size_t nentries;
    run run;
    char request[KG_FRAME_MAX];
    int fds[KG_FRAME_FDS];
    size_t nfds;
    kg_buf reply;
} worker;

static int expect(const worker *w, enum stage stage, const char *what, kg_error *err) {
    if (w->stage == stage)
        return KG_OK;
    return kg_fail(err, KG_EINVAL, "%s comes out of order", what);
}

static int finish(const kg_reader *in, const char *what, kg_error *err) {
    if (in->status == KG_OK && in->pos == in->len)
        return KG_OK;
    return kg_fail(err, KG_EFORMAT, "%s is malformed", what);
}

/* What images name as needed is here before the files are locked away. */
static void preload(void) {
    static const char *const names[] = {"libm.so.6", "libmvec.so.1"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        dlopen(names[i], RTLD_NOW | RTLD_GLOBAL);
}

static int do_open(worker *w, kg_reader *in, kg_error *err) {
    uint32_t format = kg_get_u32(in), threads = kg_get_u32(in);
    uint64_t stack = kg_get_u64(in);
    size_t pinned = 0;
    int abi = 0, rc = expect(w, FRESH, "OPEN", err);
    if (rc == KG_OK)
        rc = finish(in, "OPEN", err);
    if (rc == KG_OK && format != KG_W_FORMAT)
        rc = kg_fail(err, KG_EVERSION,
                     "kgen speaks worker protocol %u, this kgen-worker %d; both "
                     "come from one installation",
                     format, KG_W_FORMAT);
    if (rc == KG_OK && (stack < 64 << 10 || stack > 1 << 30))
        rc = kg_fail(err, KG_EINVAL, "a stack of %llu bytes", (unsigned long long)stack);
    if (rc != KG_OK)
        return rc;
    preload();
    kg_cpu_has_amx();
    if ((rc = kg_faults_install(w->socket, err)) != KG_OK ||
        (rc = kg_sandbox_files(&abi, err)) != KG_OK ||
        (rc = kg_pool_start(threads, stack, kg_faults_thread, &w->pool, &pinned, err)) != KG_OK ||
        (rc = kg_sandbox_system(err)) != KG_OK)
        return rc;
    kg_faults_pool(w->pool);
    w->stage = OPENED;
    kg_put_u32(&w->reply, (uint32_t)abi);
    kg_put_u32(&w->reply, threads);
    kg_put_u32(&w->reply, (uint32_t)pinned);
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
    if (rc == KG_OK && (n > KG_W_MAX_BUFFERS || n != w->nfds))
        rc = kg_fail(err, KG_EFORMAT, "MAP has %u buffers and %zu descriptors", n, w->nfds);
    kg_put_u32(&w->reply, n);
    for (uint32_t i = 0; rc == KG_OK && i < n; i++) {
        rc = map_one(&w->buffers[i], in, w->fds[i], err);
        kg_put_u64(&w->reply, (uint64_t)(uintptr_t)w->buffers[i].data);
    }
    if (rc == KG_OK)
        rc = finish(in, "MAP", err);
    if (rc == KG_OK) {
        w->nbuffers = n;
        w->stage = MAPPED;
    }
    return rc;
}

static int do_load(worker *w, kg_reader *in, kg_error *err) {
    uint32_t n = kg_get_u32(in);
    int rc = expect(w, MAPPED, "LOAD", err);
    if (rc == KG_OK)
        rc = finish(in, "LOAD", err);
    if (rc == KG_OK && (n < 1 || n > KG_MAX_LAUNCHES || w->nfds != 1))
        rc = kg_fail(err, KG_EFORMAT, "LOAD has %u entries and %zu descriptors", n, w->nfds);
    if (rc != KG_OK)
        return rc;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", w->fds[0]);
    if ((rc = kg_image_load(path, NULL, 0, n, w->entries, err)) != KG_OK)
        return rc;
    close(w->fds[0]);
    w->nfds = 0;
    w->nentries = n;
    if ((rc = kg_sandbox_last(w->socket, err)) != KG_OK)
        return rc;
    w->stage = LOADED;
    return KG_OK;
}

static int read_arg(worker *w, launch *l, size_t i, kg_reader *in, kg_error *err) {
    uint8_t kind = kg_get_u8(in);
    l->args[i] = &l->values[i];
    switch (kind) {
    case KG_WA_NULL:
        l->args[i] = NULL;
        return KG_OK;
    case KG_WA_BUFFER: {
        uint32_t b = kg_get_u32(in);
        if (b >= w->nbuffers)
            return kg_fail(err, KG_EFORMAT, "RUN names buffer %u of %zu", b, w->nbuffers);
        l->args[i] = w->buffers[b].data;
        return KG_OK;
    }
    case KG_WA_I32:
        l->values[i].i32 = (int32_t)kg_get_i64(in);
        return KG_OK;
    case KG_WA_I64:
        l->values[i].i64 = kg_get_i64(in);
        return KG_OK;
    case KG_WA_F32:
        l->values[i].f32 = (float)kg_get_f64(in);
        return KG_OK;
    case KG_WA_F64:
        l->values[i].f64 = kg_get_f64(in);
        return KG_OK;
    case KG_WA_PROGRAMS:
        l->args[i] = w->run.programs;
        return KG_OK;
    default:
        return kg_fail(err, KG_EFORMAT, "RUN has an argument of kind %u", kind);
    }
}

static int read_launch(worker *w, launch *l, kg_reader *in, kg_error *err) {
    uint32_t entry = kg_get_u32(in);
    l->range = kg_get_i64(in);
    l->grain = kg_get_i64(in);
    uint32_t nargs = kg_get_u32(in);
    if (in->status != KG_OK || entry >= w->nentries || nargs > KG_MAX_LAUNCH_ARGS || l->range < 0 ||
        l->grain < 1)
        return kg_fail(err, KG_EFORMAT, "RUN is malformed");
    l->entry = w->entries[entry];
    l->nargs = nargs;
    for (uint32_t i = 0; i < nargs; i++) {
        int rc = read_arg(w, l, i, in, err);
        if (rc != KG_OK)
            return rc;
    }
    return KG_OK;
}

static int read_clears(worker *w, kg_reader *in, kg_error *err) {
    run *r = &w->run;
    r->nclear = kg_get_u32(in);
    if (r->nclear > KG_W_MAX_BUFFERS)
        return kg_fail(err, KG_EFORMAT, "RUN clears %u buffers", r->nclear);
    for (uint32_t i = 0; i < r->nclear; i++) {
        r->clear[i] = kg_get_u32(in);
        if (r->clear[i] >= w->nbuffers || !w->buffers[r->clear[i]].writable)
            return kg_fail(err, KG_EFORMAT, "RUN clears buffer %u", r->clear[i]);
    }
    return KG_OK;
}

static int read_run(worker *w, kg_reader *in, kg_error *err) {
    run *r = &w->run;
    r->split = kg_get_u32(in);
    r->warm = kg_get_u32(in);
    r->timed = kg_get_u32(in);
    if (r->split > KG_SPLIT_ODD || r->timed > KG_W_MAX_TIMED)
        return kg_fail(err, KG_EFORMAT, "RUN asks for %u calls, split %u", r->timed, r->split);
    int rc = read_clears(w, in, err);
    size_t n;
    const void *programs = kg_get_bytes(in, &n);
    if (rc == KG_OK && n > sizeof r->programs)
        rc = kg_fail(err, KG_EOVERFLOW, "RUN has %zu bytes of Programs", n);
    if (rc == KG_OK && n > 0)
        memcpy(r->programs, programs, n);
    uint32_t nlaunches = kg_get_u32(in);
    if (rc == KG_OK && nlaunches > KG_MAX_LAUNCHES)
        rc = kg_fail(err, KG_EFORMAT, "RUN has %u launches", nlaunches);
    for (uint32_t i = 0; rc == KG_OK && i < nlaunches; i++)
        rc = read_launch(w, &r->launches[i], in, err);
    r->nlaunches = nlaunches;
    return rc == KG_OK ? finish(in, "RUN", err) : rc;
}

static void run_part(int64_t begin, int64_t end, void *ctx) {
    const launch *l = ctx;
    l->entry(begin, end, l->args);
}

static void one_call(kg_pool *pool, run *r) {
    for (uint32_t i = 0; i < r->nclear; i++)
        memset(r->buffers[r->clear[i]].data, 0, r->buffers[r->clear[i]].bytes);
    for (size_t i = 0; i < r->nlaunches; i++)
        kg_pool_for(pool, r->launches[i].range, r->launches[i].grain, (int)r->split, run_part,
                    &r->launches[i]);
}

static void lead_run(kg_pool *pool, void *ctx) {
    run *r = ctx;
    for (uint32_t i = 0; i < r->warm; i++)
        one_call(pool, r);
    for (uint32_t i = 0; i < r->timed; i++) {
        int64_t start = kg_now_ns();
        one_call(pool, r);
        r->ns[i] = (uint64_t)(kg_now_ns() - start);
    }
}

static int do_run(worker *w, kg_reader *in, kg_error *err) {
    int rc = expect(w, LOADED, "RUN", err);
    if (rc == KG_OK)
        rc = read_run(w, in, err);
    if (rc != KG_OK)
        return rc;
    w->run.buffers = w->buffers;
    kg_pool_lead(w->pool, lead_run, &w->run);
    kg_put_u32(&w->reply, w->run.timed);
    for (uint32_t i = 0; i < w->run.timed; i++)
        kg_put_u64(&w->reply, w->run.ns[i]);
    return KG_OK;
}

static int do_rates(worker *w, kg_reader *in, kg_error *err) {
    uint32_t n = kg_get_u32(in);
    int rc = expect(w, OPENED, "RATES", err);
    if (rc == KG_OK && n > 64)
        rc = kg_fail(err, KG_EFORMAT, "RATES asks for %u sizes", n);
    kg_put_u32(&w->reply, n);
    for (uint32_t i = 0; rc == KG_OK && i < n; i++) {
        kg_rate rate = {0};
        uint64_t bytes = kg_get_u64(in);
        rc = in->status == KG_OK ? kg_rate_measure(w->pool, bytes, &rate, err) : in->status;
        kg_put_f64(&w->reply, rate.read);
        kg_put_f64(&w->reply, rate.write);
        kg_put_f64(&w->reply, rate.copy);
    }
    return rc == KG_OK ? finish(in, "RATES", err) : rc;
}

static int dispatch(worker *w, uint32_t kind, kg_reader *in, kg_error *err) {
    switch (kind) {
    case KG_W_OPEN:
        return do_open(w, in, err);
    case KG_W_MAP:
        return do_map(w, in, err);
    case KG_W_LOAD:
        return do_load(w, in, err);
    case KG_W_RUN:
        return do_run(w, in, err);
    case KG_W_RATES:
        return do_rates(w, in, err);
    case KG_W_PING:
        return finish(in, "PING", err);
    default:
        return kg_fail(err, KG_EFORMAT, "request %u is not known", kind);
    }
}

/* Answers one request; false when the talk is over. */
static bool answer(worker *w) {
    size_t n;
    if (kg_frame_recv(w->socket, w->request, sizeof w->request, &n, w->fds, KG_FRAME_FDS, &w->nfds,
                      NULL) != KG_OK)
        return false;
    kg_reader in;
    kg_error err = {0};
    kg_reader_init(&in, w->request, n);
    uint32_t kind = kg_get_u32(&in), number = kg_get_u32(&in);
    kg_buf_clear(&w->reply);
    kg_put_u32(&w->reply, KG_W_OK);
    kg_put_u32(&w->reply, number);
    int rc = dispatch(w, kind, &in, &err);
    if (rc != KG_OK) {
        kg_buf_clear(&w->reply);
        kg_put_u32(&w->reply, KG_W_FAILED);
        kg_put_u32(&w->reply, number);
        kg_put_u32(&w->reply, (uint32_t)-rc);
        kg_put_str(&w->reply, err.msg);
    }
    for (size_t i = 0; w->stage != LOADED && i < w->nfds; i++)
        close(w->fds[i]);
    return kg_frame_send(w->socket, w->reply.data, w->reply.len, NULL, 0, NULL) == KG_OK;
}

int kg_cpu_worker(int socket) {
    static worker w;
    w.socket = socket;
    kg_buf_init(&w.reply, KG_FRAME_MAX);
    kg_buf_reserve(&w.reply, 16 + 8 * (size_t)KG_W_MAX_TIMED + 4096);
    kg_buf_clear(&w.reply);
    while (answer(&w))
        ;
    return 0;
}
