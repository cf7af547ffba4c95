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
    bool alive, greeted;
    kg_worker_options options;
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

static void copy_text(char *to, size_t room, const char *from) {
    snprintf(to, room, "%s", from);
}

static void read_device_fault(kg_worker *w, kg_reader *in) {
    kg_death d = {.device_reported = true};
    d.stage = kg_get_u32(in);
    d.launch = kg_get_u32(in);
    d.result = kg_get_u32(in);
    copy_text(d.name, sizeof d.name, kg_get_str(in));
    copy_text(d.asked, sizeof d.asked, kg_get_str(in));
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

/* Sends what w->out holds. */
static int say(kg_worker *w, const int *fds, size_t nfds, kg_error *err) {
    if (!w->alive)
        return kg_fail(err, KG_ECHILD, "the worker has ended");
    int rc = kg_buf_check(&w->out, "a request", err);
    if (rc == KG_OK)
        rc = kg_frame_send(w->socket, w->out.data, w->out.len, fds, nfds, err);
    return rc == KG_ECHILD ? dead(w, err) : rc;
}

/* Reads the answer's fields. */
static int hear(kg_worker *w, int64_t limit_ms, kg_reader *in, kg_error *err) {
    int64_t deadline = kg_now_ns() + limit_ms * 1000000;
    int rc = wait_frame(w, deadline, err);
    size_t n;
    if (rc <= 0)
        return rc == 0 ? overdue(w, limit_ms, err) : rc;
    if (kg_frame_recv(w->socket, w->in, sizeof w->in, &n, NULL, 0, NULL, NULL) != KG_OK)
        return dead(w, err);
    kg_reader_init(in, w->in, n);
    uint32_t kind = kg_get_u32(in), number = kg_get_u32(in);
    if (kind == KG_W_FAULT || kind == KG_W_DEVICE_FAULT) {
        if (kind == KG_W_FAULT)
            read_fault(w, in);
        else
            read_device_fault(w, in);
        return dead(w, err);
    }
    if (number != w->number || (kind != KG_W_OK && kind != KG_W_FAILED))
        return kg_fail(err, KG_EFORMAT, "the worker sent frame %u, %u out of order", kind, number);
    if (kind == KG_W_OK)
        return KG_OK;
    int code = -(int)kg_get_u32(in);
    return kg_fail(err, code < 0 ? code : KG_EFORMAT, "%s", kg_get_str(in));
}

static int ask(kg_worker *w, const int *fds, size_t nfds, int64_t limit_ms, kg_reader *in,
               kg_error *err) {
    int rc = say(w, fds, nfds, err);
    return rc == KG_OK ? hear(w, limit_ms, in, err) : rc;
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

/* What a driver (or its stand-in in tests) needs to find itself and the GPU that was meant; nothing
 * else is passed on. */
static const char *const passed_on[] = {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER",
                                        "LD_LIBRARY_PATH", "KGEN_LIBCUDA", "KGEN_FAKE_CUDA"};
enum { PASSED_ON = sizeof passed_on / sizeof *passed_on, FIXED = 3 };

static int fill_env(const char *env[PASSED_ON + FIXED], char text[PASSED_ON][1024], int device,
                    kg_error *err) {
    size_t n = 0;
    env[n++] = "LC_ALL=C";
    if (device == KG_CUDA)
        env[n++] = "CUDA_CACHE_DISABLE=1"; /* no file is written */
    for (size_t i = 0; device == KG_CUDA && i < PASSED_ON; i++) {
        const char *value = getenv(passed_on[i]);
        if (!value)
            continue;
        int length = snprintf(text[i], sizeof text[i], "%s=%s", passed_on[i], value);
        if (length < 0 || (size_t)length >= sizeof text[i])
            return kg_fail(err, KG_EOVERFLOW, "%s is longer than %zu bytes", passed_on[i],
                           sizeof text[i]);
        env[n++] = text[i];
    }
    env[n] = NULL;
    return KG_OK;
}

static int start(kg_worker *w, const char *path, int socket, kg_error *err) {
    const char *const argv[] = {path, w->options.device == KG_CUDA ? "cuda" : NULL, NULL};
    const char *env[PASSED_ON + FIXED];
    char text[PASSED_ON][1024];
    const kg_limits limits = {.cpu_s = w->options.cpu_s};
    int rc = fill_env(env, text, w->options.device, err);
    if (rc == KG_OK)
        rc = kg_proc_start(argv, env, &socket, 1, -1, &limits, &w->proc, err);
    if (rc != KG_OK)
        return rc;
    w->alive = true;
    w->pid = w->proc.pid;
    begin(w, KG_W_OPEN);
    kg_put_u32(&w->out, KG_W_FORMAT);
    kg_put_u32(&w->out, (uint32_t)w->options.device);
    kg_put_u32(&w->out, w->options.index);
    kg_put_u32(&w->out, w->options.threads);
    kg_put_u64(&w->out, w->options.stack);
    return say(w, NULL, 0, err);
}

int kg_worker_start(const kg_worker_options *options, kg_worker **out, kg_error *err) {
    char path[512];
    int ends[2], rc = find_worker(options->path, path, err);
    if (rc != KG_OK || (rc = kg_frame_pair(ends, err)) != KG_OK)
        return rc;
    kg_worker *w = calloc(1, sizeof *w);
    if (!w) {
        close(ends[0]);
        close(ends[1]);
        return kg_fail(err, KG_ENOMEM, "a worker: out of memory");
    }
    kg_buf_init(&w->out, KG_FRAME_MAX);
    w->socket = ends[0];
    w->options = *options;
    w->options.path = NULL; /* borrowed */
    rc = start(w, path, ends[1], err);
    close(ends[1]);
    if (rc != KG_OK) {
        kg_worker_close(w);
        return rc;
    }
    *out = w;
    return KG_OK;
}

int kg_worker_greet(kg_worker *w, kg_error *err) {
    kg_reader in;
    if (w->greeted)
        return KG_OK;
    int rc = hear(w, QUIET_LIMIT_MS, &in, err);
    if (rc != KG_OK)
        return kg_fail_prefix(err, rc, "kgen-worker");
    w->landlock = kg_get_u32(&in);
    kg_get_u32(&in);
    kg_get_u32(&in);
    w->greeted = true;
    return well_formed(&in, err);
}

int kg_worker_open(const kg_worker_options *options, kg_worker **out, kg_error *err) {
    kg_worker *w = NULL;
    int rc = kg_worker_start(options, &w, err);
    if (rc == KG_OK)
        rc = kg_worker_greet(w, err);
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

/* Sends LOAD, of which w->out holds the fields, with the image. */
static int load(kg_worker *w, const void *image, size_t n, kg_reader *in, kg_error *err) {
    int fd = memfd_create("kgen-image", MFD_CLOEXEC);
    if (fd < 0)
        return kg_fail(err, KG_EIO, "memfd_create: %s", strerror(errno));
    if (write(fd, image, n) != (ssize_t)n) {
        close(fd);
        return kg_fail(err, KG_ENOMEM, "write of an image of %zu bytes", n);
    }
    int rc = ask(w, &fd, 1, QUIET_LIMIT_MS, in, err);
    close(fd);
    return rc;
}

int kg_worker_load(kg_worker *w, const void *image, size_t n, size_t nentries, kg_error *err) {
    kg_reader in;
    begin(w, KG_W_LOAD);
    kg_put_u32(&w->out, (uint32_t)nentries);
    int rc = load(w, image, n, &in, err);
    return rc == KG_OK ? well_formed(&in, err) : rc;
}

int kg_worker_load_kernels(kg_worker *w, const void *image, size_t bytes, const kg_kernel_ask *asks,
                           size_t n, kg_kernel_use *uses, kg_error *err) {
    kg_reader in;
    begin(w, KG_W_LOAD);
    kg_put_u32(&w->out, (uint32_t)n);
    for (size_t i = 0; i < n; i++) {
        kg_put_str(&w->out, asks[i].name);
        kg_put_u32(&w->out, asks[i].threads);
        kg_put_u32(&w->out, asks[i].shared);
        kg_put_u32(&w->out, asks[i].cluster);
        kg_put_u32(&w->out, (uint32_t)asks[i].nargs);
        for (size_t k = 0; k < asks[i].nargs; k++)
            kg_put_u32(&w->out, asks[i].arg_bytes[k]);
    }
    int rc = load(w, image, bytes, &in, err);
    if (rc != KG_OK)
        return rc;
    uint32_t count = kg_get_u32(&in);
    for (size_t i = 0; i < n; i++) {
        uses[i].registers = kg_get_u32(&in);
        uses[i].local = kg_get_u32(&in);
        uses[i].shared = kg_get_u32(&in);
        uses[i].blocks = kg_get_u32(&in);
    }
    return count == n ? well_formed(&in, err)
                      : kg_fail(err, KG_EFORMAT, "the worker's answer is malformed");
}

int kg_worker_scrub(kg_worker *w, const void *image, size_t n, kg_error *err) {
    kg_reader in;
    begin(w, KG_W_SCRUB);
    int rc = load(w, image, n, &in, err);
    return rc == KG_OK ? well_formed(&in, err) : rc;
}

static void put_arg(kg_buf *out, const kg_run_arg *a) {
    kg_put_u8(out, a->kind);
    if (a->kind == KG_WA_BUFFER || a->kind == KG_WA_MAP)
        kg_put_u32(out, a->buffer);
    else if (a->kind == KG_WA_I32 || a->kind == KG_WA_I64)
        kg_put_i64(out, a->i);
    else if (a->kind == KG_WA_F32 || a->kind == KG_WA_F64)
        kg_put_f64(out, a->f);
}

static void put_map(kg_buf *out, const kg_map *m, uint32_t buffer) {
    kg_put_u32(out, buffer);
    kg_put_u32(out, (uint32_t)m->dtype);
    kg_put_u32(out, (uint32_t)m->swizzle);
    kg_put_u32(out, (uint32_t)m->l2);
    kg_put_u32(out, (uint32_t)m->rank);
    for (size_t d = 0; d < m->rank; d++) {
        kg_put_i64(out, m->dims[d]);
        kg_put_i64(out, m->box[d]);
    }
    for (size_t d = 0; d + 1 < m->rank; d++)
        kg_put_i64(out, m->strides[d]);
}

static void put_launch(kg_buf *out, int device, const kg_run_launch *l) {
    kg_put_u32(out, l->entry);
    if (device == KG_CPU) {
        kg_put_i64(out, l->range);
        kg_put_i64(out, l->grain);
    } else {
        const int64_t *const threes[] = {l->grid, l->block, l->cluster};
        for (int k = 0; k < 3; k++)
            for (int i = 0; i < 3; i++)
                kg_put_i64(out, threes[k][i]);
        kg_put_i64(out, l->shared);
        kg_put_u32(out,
                   (l->cooperative ? KG_LAUNCH_COOPERATIVE : 0u) | (l->pdl ? KG_LAUNCH_PDL : 0u));
    }
    kg_put_u32(out, (uint32_t)l->nargs);
    for (size_t k = 0; k < l->nargs; k++)
        put_arg(out, &l->args[k]);
}

static void put_run(kg_worker *w, const kg_run *run) {
    uint32_t keep = run->keep ? KG_RUN_KEEP : 0u;
    begin(w, KG_W_RUN);
    kg_put_u32(&w->out, run->split);
    kg_put_u32(&w->out, run->warm);
    kg_put_u32(&w->out, run->timed);
    if (w->options.device == KG_CPU)
        kg_put_u32(&w->out, keep | (run->stale ? KG_RUN_STALE : 0u));
    else
        kg_put_u32(&w->out,
                   keep | (run->cold ? KG_RUN_COLD : 0u) | (run->graph ? KG_RUN_GRAPH : 0u));
    kg_put_u32(&w->out, (uint32_t)run->nclear);
    for (size_t i = 0; i < run->nclear; i++)
        kg_put_u32(&w->out, run->clear[i]);
    kg_put_bytes(&w->out, run->programs, run->programs_bytes);
    kg_put_u32(&w->out, (uint32_t)run->nmaps);
    for (size_t i = 0; i < run->nmaps; i++)
        put_map(&w->out, &run->maps[i], run->map_buffer[i]);
    kg_put_u32(&w->out, (uint32_t)run->nlaunches);
    for (size_t i = 0; i < run->nlaunches; i++)
        put_launch(&w->out, w->options.device, &run->launches[i]);
}

int kg_worker_run(kg_worker *w, const kg_run *run, int64_t limit_ms, kg_call_time *times,
                  kg_error *err) {
    kg_reader in;
    put_run(w, run);
    int rc = ask(w, NULL, 0, limit_ms, &in, err);
    if (rc != KG_OK)
        return rc;
    uint32_t count = kg_get_u32(&in);
    if (count != run->timed)
        return kg_fail(err, KG_EFORMAT, "the worker timed %u of %u calls", count, run->timed);
    for (uint32_t i = 0; i < count; i++) {
        times[i] = (kg_call_time){.ns = kg_get_u64(&in)};
        if (w->options.device == KG_CPU)
            continue;
        times[i].window_ns = kg_get_u64(&in);
        times[i].wall_ns = kg_get_u64(&in);
        times[i].graph = kg_get_u8(&in) != 0;
    }
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
