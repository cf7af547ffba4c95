/* Starts workers, asks, waits with a limit, and finds out how one died. */
#define _GNU_SOURCE
#include "tune/worker_client.h"

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fs.h"
#include "base/stop.h"
#include "sys/frames.h"
#include "sys/proc.h"

/* Beside a run, a worker answers in milliseconds; on a machine that swaps, in seconds. */
enum { QUIET_LIMIT_MS = 20 * 1000, RATES_LIMIT_MS = 60 * 1000, DEATH_MS = 2000, SLICE_MS = 50 };

struct kg_worker {
    kg_proc proc;
    pid_t pid; /* kept when proc is gone */
    int socket;
    bool alive;
    uint32_t number, landlock;
    kg_death death;
    kg_buf out;
    char in[KG_FRAME_MAX];
};

/* The folder of the binary that this code is in. */
static bool beside(char out[512]) {
    static const char here = 0;
    Dl_info info;
    char path[512];
    if (dladdr(&here, &info) == 0 || !info.dli_fname)
        return false;
    const char *file = info.dli_fname;
    char *real = realpath(file, NULL);
    if (!real) /* an executable run by its bare name */
        real = realpath("/proc/self/exe", NULL);
    if (!real)
        return false;
    char *slash = strrchr(real, '/');
    int n = snprintf(path, sizeof path, "%.*s/kgen-worker", (int)(slash ? slash - real : 0), real);
    free(real);
    if (n < 0 || (size_t)n >= sizeof path || !kg_is_file(path))
        return false;
    memcpy(out, path, (size_t)n + 1);
    return true;
}

static int find_worker(const char *asked, char out[512], kg_error *err) {
    if (!asked || !*asked)
        asked = getenv("KGEN_WORKER");
    if (asked && *asked) {
        int n = snprintf(out, 512, "%s", asked);
        if (n < 512 && kg_is_file(out))
            return KG_OK;
        return kg_fail(err, KG_EENV, "there is no kgen-worker at %.300s", asked);
    }
    if (beside(out))
        return KG_OK;
    return kg_fail(err, KG_EENV,
                   "there is no kgen-worker beside libkgen.so; install kgen again, or "
                   "name one in KGEN_WORKER");
}

static void bury(kg_worker *w) {
    kg_exit ex = {0};
    if (!w->alive)
        return;
    if (kg_proc_wait(&w->proc, DEATH_MS, &ex, NULL) != KG_OK)
        kg_proc_kill(&w->proc, &ex);
    w->alive = false;
    w->death.exit_signal = ex.signal;
    w->death.exit_code = ex.code;
}

static int dead(kg_worker *w, kg_error *err) {
    bury(w);
    return kg_fail(err, KG_ECHILD, "the worker ended");
}

static int overdue(kg_worker *w, int64_t limit_ms, kg_error *err) {
    kg_exit ex = {0};
    kg_proc_kill(&w->proc, &ex);
    w->alive = false;
    w->death.timed_out = true;
    w->death.exit_signal = ex.signal;
    return kg_fail(err, KG_ECHILD, "the worker did not answer within %lld ms", (long long)limit_ms);
}

static void read_fault(kg_worker *w, kg_reader *in) {
    kg_death d = {.reported = true};
    d.signal = kg_get_u32(in);
    d.code = kg_get_u32(in);
    d.address = kg_get_u64(in);
    d.access = kg_get_u32(in);
    d.stack_guard = kg_get_u32(in);
    d.system_call = kg_get_u32(in);
    if (in->status == KG_OK)
        w->death = d;
}

/* Waits for one frame; 1 when there is one, 0 at the deadline. */
static int wait_frame(kg_worker *w, int64_t deadline, kg_error *err) {
    for (;;) {
        if (kg_stop_wanted())
            return kg_fail(err, KG_EINTR, "interrupted");
        int64_t left = (deadline - kg_now_ns()) / 1000000;
        if (left < 0)
            return 0;
        struct pollfd p = {.fd = w->socket, .events = POLLIN};
        int got = poll(&p, 1, (int)(left < SLICE_MS ? left + 1 : SLICE_MS));
        if (got > 0)
            return 1;
        if (got < 0 && errno != EINTR)
            return kg_fail(err, KG_EIO, "poll: %s", strerror(errno));
    }
}

/* Sends what w->out holds and reads the answer's fields. */
static int ask(kg_worker *w, const int *fds, size_t nfds, int64_t limit_ms, kg_reader *in,
               kg_error *err) {
    if (!w->alive)
        return kg_fail(err, KG_ECHILD, "the worker has ended");
    int rc = kg_buf_check(&w->out, "a request", err);
    if (rc == KG_OK)
        rc = kg_frame_send(w->socket, w->out.data, w->out.len, fds, nfds, err);
    if (rc != KG_OK)
        return rc == KG_ECHILD ? dead(w, err) : rc;
    int64_t deadline = kg_now_ns() + limit_ms * 1000000;
    for (;;) {
        rc = wait_frame(w, deadline, err);
        if (rc <= 0)
            return rc == 0 ? overdue(w, limit_ms, err) : rc;
        size_t n;
        if (kg_frame_recv(w->socket, w->in, sizeof w->in, &n, NULL, 0, NULL, NULL) != KG_OK)
            return dead(w, err);
        kg_reader_init(in, w->in, n);
        uint32_t kind = kg_get_u32(in), number = kg_get_u32(in);
        if (kind == KG_W_FAULT) {
            read_fault(w, in);
            return dead(w, err);
        }
        if (number != w->number || (kind != KG_W_OK && kind != KG_W_FAILED))
            return kg_fail(err, KG_EFORMAT, "the worker sent frame %u, %u out of order", kind,
                           number);
        if (kind == KG_W_OK)
            return KG_OK;
        int code = -(int)kg_get_u32(in);
        return kg_fail(err, code < 0 ? code : KG_EFORMAT, "%s", kg_get_str(in));
    }
}

static void begin(kg_worker *w, uint32_t kind) {
    kg_buf_clear(&w->out);
    kg_put_u32(&w->out, kind);
    kg_put_u32(&w->out, ++w->number);
}

static int well_formed(const kg_reader *in, kg_error *err) {
    if (in->status == KG_OK && in->pos == in->len)
        return KG_OK;
    return kg_fail(err, KG_EFORMAT, "the worker's answer is malformed");
}

static int greet(kg_worker *w, const kg_worker_options *o, kg_error *err) {
    kg_reader in;
    begin(w, KG_W_OPEN);
    kg_put_u32(&w->out, KG_W_FORMAT);
    kg_put_u32(&w->out, o->threads);
    kg_put_u64(&w->out, o->stack);
    int rc = ask(w, NULL, 0, QUIET_LIMIT_MS, &in, err);
    if (rc != KG_OK)
        return kg_fail_prefix(err, rc, "kgen-worker");
    w->landlock = kg_get_u32(&in);
    kg_get_u32(&in);
    kg_get_u32(&in);
    return well_formed(&in, err);
}

int kg_worker_open(const kg_worker_options *options, kg_worker **out, kg_error *err) {
    char path[512];
    int ends[2], rc = find_worker(options->path, path, err);
    if (rc != KG_OK || (rc = kg_frame_pair(ends, err)) != KG_OK)
        return rc;
    kg_worker *w = calloc(1, sizeof *w);
    const char *const argv[] = {path, NULL}, *const env[] = {"LC_ALL=C", NULL};
    const kg_limits limits = {.cpu_s = options->cpu_s};
    if (w) {
        kg_buf_init(&w->out, KG_FRAME_MAX);
        w->socket = ends[0];
        rc = kg_proc_start(argv, env, &ends[1], 1, -1, &limits, &w->proc, err);
        w->alive = rc == KG_OK;
        w->pid = w->proc.pid;
    } else {
        rc = kg_fail(err, KG_ENOMEM, "a worker: out of memory");
        close(ends[0]);
    }
    close(ends[1]);
    if (rc == KG_OK)
        rc = greet(w, options, err);
    if (rc != KG_OK) {
        kg_worker_close(w);
        return rc;
    }
    *out = w;
    return KG_OK;
}

void kg_worker_close(kg_worker *w) {
    if (!w)
        return;
    close(w->socket);
    kg_exit ex;
    if (w->alive)
        kg_proc_kill(&w->proc, &ex);
    kg_buf_free(&w->out);
    free(w);
}

int kg_worker_map(kg_worker *w, const kg_slot *const *slots, size_t n, uint64_t *addresses,
                  kg_error *err) {
    int fds[KG_W_MAX_BUFFERS];
    kg_reader in;
    if (n > KG_W_MAX_BUFFERS)
        return kg_fail(err, KG_EOVERFLOW, "a call has %zu buffers, more than %d", n,
                       KG_W_MAX_BUFFERS);
    begin(w, KG_W_MAP);
    kg_put_u32(&w->out, (uint32_t)n);
    for (size_t i = 0; i < n; i++) {
        fds[i] = slots[i]->fd;
        kg_put_u64(&w->out, slots[i]->used);
        kg_put_u64(&w->out, slots[i]->offset);
        kg_put_u64(&w->out, slots[i]->bytes);
        kg_put_u8(&w->out, slots[i]->writable);
    }
    int rc = ask(w, fds, n, QUIET_LIMIT_MS, &in, err);
    if (rc != KG_OK)
        return rc;
    uint32_t count = kg_get_u32(&in);
    for (size_t i = 0; i < n; i++)
        addresses[i] = kg_get_u64(&in);
    return count == n ? well_formed(&in, err)
                      : kg_fail(err, KG_EFORMAT, "the worker mapped %u of %zu buffers", count, n);
}

int kg_worker_load(kg_worker *w, const void *image, size_t n, size_t nentries, kg_error *err) {
    kg_reader in;
    int fd = memfd_create("kgen-image", MFD_CLOEXEC);
    if (fd < 0)
        return kg_fail(err, KG_EIO, "memfd_create: %s", strerror(errno));
    if (write(fd, image, n) != (ssize_t)n) {
        close(fd);
        return kg_fail(err, KG_ENOMEM, "write of an image of %zu bytes", n);
    }
    begin(w, KG_W_LOAD);
    kg_put_u32(&w->out, (uint32_t)nentries);
    int rc = ask(w, &fd, 1, QUIET_LIMIT_MS, &in, err);
    close(fd);
    return rc == KG_OK ? well_formed(&in, err) : rc;
}

static void put_arg(kg_buf *out, const kg_run_arg *a) {
    kg_put_u8(out, a->kind);
    if (a->kind == KG_WA_BUFFER)
        kg_put_u32(out, a->buffer);
    else if (a->kind == KG_WA_I32 || a->kind == KG_WA_I64)
        kg_put_i64(out, a->i);
    else if (a->kind == KG_WA_F32 || a->kind == KG_WA_F64)
        kg_put_f64(out, a->f);
}

int kg_worker_run(kg_worker *w, const kg_run *run, int64_t limit_ms, uint64_t *ns, kg_error *err) {
    kg_reader in;
    begin(w, KG_W_RUN);
    kg_put_u32(&w->out, run->split);
    kg_put_u32(&w->out, run->warm);
    kg_put_u32(&w->out, run->timed);
    kg_put_u32(&w->out, (uint32_t)run->nclear);
    for (size_t i = 0; i < run->nclear; i++)
        kg_put_u32(&w->out, run->clear[i]);
    kg_put_bytes(&w->out, run->programs, run->programs_bytes);
    kg_put_u32(&w->out, (uint32_t)run->nlaunches);
    for (size_t i = 0; i < run->nlaunches; i++) {
        const kg_run_launch *l = &run->launches[i];
        kg_put_u32(&w->out, l->entry);
        kg_put_i64(&w->out, l->range);
        kg_put_i64(&w->out, l->grain);
        kg_put_u32(&w->out, (uint32_t)l->nargs);
        for (size_t k = 0; k < l->nargs; k++)
            put_arg(&w->out, &l->args[k]);
    }
    int rc = ask(w, NULL, 0, limit_ms, &in, err);
    if (rc != KG_OK)
        return rc;
    uint32_t count = kg_get_u32(&in);
    if (count != run->timed)
        return kg_fail(err, KG_EFORMAT, "the worker timed %u of %u calls", count, run->timed);
    for (uint32_t i = 0; i < count; i++)
        ns[i] = kg_get_u64(&in);
    return well_formed(&in, err);
}

int kg_worker_rates(kg_worker *w, const uint64_t *sizes, size_t n, double *rates, kg_error *err) {
    kg_reader in;
    begin(w, KG_W_RATES);
    kg_put_u32(&w->out, (uint32_t)n);
    for (size_t i = 0; i < n; i++)
        kg_put_u64(&w->out, sizes[i]);
    int rc = ask(w, NULL, 0, RATES_LIMIT_MS, &in, err);
    if (rc != KG_OK)
        return rc;
    uint32_t count = kg_get_u32(&in);
    for (size_t i = 0; i < 3 * n; i++)
        rates[i] = kg_get_f64(&in);
    return count == n ? well_formed(&in, err)
                      : kg_fail(err, KG_EFORMAT, "the worker's answer is malformed");
}

int kg_worker_ping(kg_worker *w, kg_error *err) {
    kg_reader in;
    begin(w, KG_W_PING);
    int rc = ask(w, NULL, 0, QUIET_LIMIT_MS, &in, err);
    return rc == KG_OK ? well_formed(&in, err) : rc;
}

const kg_death *kg_worker_death(const kg_worker *w) {
    return &w->death;
}

uint32_t kg_worker_landlock(const kg_worker *w) {
    return w->landlock;
}

pid_t kg_worker_pid(const kg_worker *w) {
    return w->pid;
}
