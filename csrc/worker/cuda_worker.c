/* Serves requests on a GPU: a context of its own, the judge's allocations mapped with guards around
 * them, an image loaded, and from then on only numbers come in. A Candidate is device code alone,
 * so what the locks here hold back is what a driver or this program could be led to.
 *
 * Refuses requests out of order, indices out of range, and a GPU that does not even set and read
 * back a few bytes. */
#define _GNU_SOURCE
#include "worker/cuda_worker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/cuda_state.h"
#include "sys/sandbox.h"

enum { PROBE_BYTES = 1 << 20, FLUSH_OF_L2 = 3, FAULT_EXIT = 3 };

void kg_cuda_fault(kg_cuda_state *w, uint32_t stage, uint32_t launch, const kg_error *err) {
    int result = err->code == KG_OK ? 0 : kg_cuda_last();
    kg_buf_clear(&w->talk.reply);
    kg_put_u32(&w->talk.reply, KG_W_DEVICE_FAULT);
    kg_put_u32(&w->talk.reply, 0);
    kg_put_u32(&w->talk.reply, stage);
    kg_put_u32(&w->talk.reply, launch);
    kg_put_u32(&w->talk.reply, (uint32_t)result);
    kg_put_str(&w->talk.reply, result ? kg_cuda_result_name(result) : "");
    kg_put_str(&w->talk.reply, err->msg);
    kg_frame_send(w->talk.socket, w->talk.reply.data, w->talk.reply.len, NULL, 0, NULL);
    _exit(FAULT_EXIT);
}

static int expect(const kg_cuda_state *w, kg_cuda_stage stage, const char *what, kg_error *err) {
    if (w->stage == stage)
        return KG_OK;
    return kg_fail(err, KG_EINVAL, "%s comes out of order", what);
}

/* A fresh context that sets bytes and reads them back: the device is well. */
static int probe(kg_cuda_state *w, kg_error *err) {
    kg_cu_ptr at = 0;
    unsigned char *back = malloc(PROBE_BYTES);
    int rc = back ? kg_cuda_alloc(PROBE_BYTES, &at, err)
                  : kg_fail(err, KG_ENOMEM, "a probe: out of memory");
    if (rc == KG_OK)
        rc = kg_cuda_memset8(at, 0xa5, PROBE_BYTES, w->stream, err);
    if (rc == KG_OK)
        rc = kg_cuda_stream_synchronize(w->stream, err);
    if (rc == KG_OK)
        rc = kg_cuda_to_host(back, at, PROBE_BYTES, err);
    for (size_t i = 0; rc == KG_OK && i < PROBE_BYTES; i++)
        if (back[i] != 0xa5)
            rc = kg_fail(err, KG_EENV,
                         "the GPU does not keep what is written to it (byte %zu of a probe): reset "
                         "it, and look at nvidia-smi -q for errors",
                         i);
    kg_cuda_free(at);
    free(back);
    return rc;
}

static int open_device(kg_cuda_state *w, kg_error *err) {
    static kg_cuda_scope kept; /* the context stays current */
    const kg_cuda_device *d = NULL;
    int rc = kg_cuda_device_get(w->device, &d, err);
    if (rc == KG_OK)
        rc = kg_cuda_enter(w->device, &kept, err);
    if (rc == KG_OK)
        rc = kg_cuda_stream_create(&w->stream, err);
    kg_cu_event *const events[] = {&w->window, &w->begin, &w->end};
    for (size_t i = 0; rc == KG_OK && i < 3; i++)
        rc = kg_cuda_event_create(true, events[i], err);
    if (rc == KG_OK) {
        w->flush_bytes = FLUSH_OF_L2 * (size_t)d->l2_bytes;
        rc = kg_cuda_alloc(w->flush_bytes, &w->flush, err);
    }
    return rc == KG_OK ? probe(w, err) : rc;
}

static int do_open(kg_cuda_state *w, kg_error *err) {
    kg_reader *in = &w->talk.in;
    uint32_t format = kg_get_u32(in), device = kg_get_u32(in), index = kg_get_u32(in);
    int abi = 0, rc = expect(w, KG_CUDA_FRESH, "OPEN", err);
    kg_get_u32(in);
    kg_get_u64(in);
    if (rc == KG_OK)
        rc = kg_talk_finish(&w->talk, "OPEN", err);
    if (rc == KG_OK && format != KG_W_FORMAT)
        rc = kg_fail(err, KG_EVERSION,
                     "kgen speaks worker protocol %u, this kgen-worker %d; both come from one "
                     "installation",
                     format, KG_W_FORMAT);
    if (rc == KG_OK && (device != KG_CUDA || index > INT32_MAX))
        rc = kg_fail(err, KG_EINVAL, "this worker was started for a GPU");
    w->device = (int)index;
    /* The driver starts threads and opens its devices: what binds those comes before it, what it
     * would trip over comes after it. */
    if (rc == KG_OK)
        rc = kg_sandbox_device_files(&abi, err);
    if (rc == KG_OK)
        rc = open_device(w, err);
    if (rc == KG_OK)
        rc = kg_sandbox_device_system(err);
    if (rc != KG_OK)
        return rc;
    w->stage = KG_CUDA_OPENED;
    kg_put_u32(&w->talk.reply, (uint32_t)abi);
    kg_put_u32(&w->talk.reply, 0);
    kg_put_u32(&w->talk.reply, 0);
    return KG_OK;
}

/* A driver that maps no memory for reading alone maps it for both: the judge hashes inputs in any
 * case. */
static int map_at(kg_cu_ptr at, size_t bytes, kg_cu_memory m, int device, bool writable,
                  kg_error *err) {
    int rc = kg_cuda_map_memory(at, bytes, m, device, writable, err);
    if (rc != KG_OK && rc != KG_EDEVICE && !writable)
        rc = kg_cuda_map_memory(at, bytes, m, device, true, err);
    return rc;
}

static int map_one(kg_cuda_state *w, size_t i, kg_error *err) {
    kg_reader *in = &w->talk.in;
    uint64_t bytes = kg_get_u64(in), offset = kg_get_u64(in), data = kg_get_u64(in);
    bool writable = kg_get_u8(in) != 0;
    kg_cu_memory memory = 0;
    kg_cu_ptr room = 0;
    if (in->status != KG_OK || bytes == 0 || bytes > (uint64_t)1 << 46 || offset > bytes ||
        data > bytes - offset)
        return kg_fail(err, KG_EFORMAT, "MAP is malformed");
    int rc = kg_cuda_memory_import(w->talk.fds[i], &memory, err);
    if (rc == KG_OK)
        rc = kg_cuda_reserve(bytes + 2 * (size_t)KG_W_GUARD, 0, &room, err);
    if (rc == KG_OK)
        rc = map_at(room + KG_W_GUARD, bytes, memory, w->device, writable, err);
    kg_cuda_memory_release(memory); /* the mapping stays */
    if (rc != KG_OK)
        return rc;
    w->buffers[i] = (kg_cuda_buffer){.data = room + KG_W_GUARD + offset,
                                     .bytes = data,
                                     .room = room,
                                     .reserved = bytes + 2 * (size_t)KG_W_GUARD};
    w->limits.writable[i] = writable;
    return KG_OK;
}

/* The Case before this one: its image with all that it kept, and its memory. */
static int leave_case(kg_cuda_state *w, kg_error *err) {
    int rc = kg_cuda_synchronize(err);
    kg_cuda_module_unload(w->module);
    w->module = NULL;
    for (size_t i = 0; rc == KG_OK && i < w->limits.nbuffers; i++) {
        kg_cuda_buffer *b = &w->buffers[i];
        rc = kg_cuda_unmap(b->room + KG_W_GUARD, b->reserved - 2 * (size_t)KG_W_GUARD, err);
        if (rc == KG_OK)
            kg_cuda_unreserve(b->room, b->reserved);
        *b = (kg_cuda_buffer){0};
    }
    w->limits.nbuffers = w->limits.nentries = 0;
    w->stage = KG_CUDA_OPENED;
    return rc;
}

static int do_map(kg_cuda_state *w, kg_error *err) {
    uint32_t n = kg_get_u32(&w->talk.in);
    int rc =
        w->stage == KG_CUDA_LOADED ? leave_case(w, err) : expect(w, KG_CUDA_OPENED, "MAP", err);
    if (rc == KG_OK && (n > KG_W_MAX_BUFFERS || n != w->talk.nfds))
        rc = kg_fail(err, KG_EFORMAT, "MAP has %u buffers and %zu descriptors", n, w->talk.nfds);
    kg_put_u32(&w->talk.reply, n);
    for (uint32_t i = 0; rc == KG_OK && i < n; i++) {
        rc = map_one(w, i, err);
        kg_put_u64(&w->talk.reply, w->buffers[i].data);
    }
    if (rc == KG_OK)
        rc = kg_talk_finish(&w->talk, "MAP", err);
    if (rc != KG_OK)
        return rc;
    w->limits.nbuffers = n;
    w->stage = KG_CUDA_MAPPED;
    return KG_OK;
}

/* The bytes of a memfd, and a NUL. */
static int read_image(int fd, char **out, size_t *n, kg_error *err) {
    struct stat st;
    if (fstat(fd, &st) != 0 || st.st_size <= 0 || st.st_size > 1 << 30)
        return kg_fail(err, KG_EFORMAT, "LOAD has no image");
    char *bytes = malloc((size_t)st.st_size + 1);
    if (!bytes)
        return kg_fail(err, KG_ENOMEM, "an image: out of memory");
    for (off_t at = 0; at < st.st_size;) {
        ssize_t got = pread(fd, bytes + at, (size_t)(st.st_size - at), at);
        if (got <= 0) {
            free(bytes);
            return kg_fail(err, KG_EIO, "pread of an image: %s", strerror(errno));
        }
        at += got;
    }
    bytes[st.st_size] = '\0';
    *out = bytes;
    *n = (size_t)st.st_size;
    return KG_OK;
}

typedef struct ask {
    const char *name;
    uint32_t threads, shared, cluster, nargs, arg_bytes[KG_MAX_LAUNCH_ARGS];
} ask;

static int read_ask(kg_reader *in, ask *a, kg_error *err) {
    a->name = kg_get_str(in);
    a->threads = kg_get_u32(in);
    a->shared = kg_get_u32(in);
    a->cluster = kg_get_u32(in);
    a->nargs = kg_get_u32(in);
    if (in->status != KG_OK || a->nargs > KG_MAX_LAUNCH_ARGS || a->threads > 1024)
        return kg_fail(err, KG_EFORMAT, "LOAD is malformed");
    for (uint32_t i = 0; i < a->nargs; i++)
        a->arg_bytes[i] = kg_get_u32(in);
    return KG_OK;
}

/* The plan's arguments against the function's own parameters, where the driver tells them. */
static int check_params(kg_cu_function f, const ask *a, kg_error *err) {
    size_t offset, size;
    for (size_t i = 0; i < a->nargs; i++) {
        int rc = kg_cuda_function_param(f, i, &offset, &size, err);
        if (rc == KG_EUNSUPPORTED)
            return KG_OK;
        if (rc != KG_OK)
            return kg_fail(err, KG_EFORMAT, "%s has %zu parameters, the plan gives %u", a->name, i,
                           a->nargs);
        if (size != a->arg_bytes[i])
            return kg_fail(err, KG_EFORMAT, "%s: parameter %zu has %zu bytes, the plan gives %u",
                           a->name, i, size, a->arg_bytes[i]);
    }
    if (kg_cuda_function_param(f, a->nargs, &offset, &size, NULL) == KG_OK)
        return kg_fail(err, KG_EFORMAT, "%s has more parameters than the %u that the plan gives",
                       a->name, a->nargs);
    return KG_OK;
}

static int take_kernel(kg_cuda_state *w, kg_cu_module module, size_t i, const ask *a,
                       kg_error *err) {
    kg_cuda_kernel *k = &w->kernels[i];
    kg_cuda_function_info info;
    int blocks = 0, rc = kg_cuda_function(module, a->name, &k->function, err);
    k->nargs = a->nargs;
    if (rc == KG_OK)
        rc = check_params(k->function, a, err);
    if (rc == KG_OK)
        rc = kg_cuda_function_info_get(k->function, &info, err);
    if (rc != KG_OK)
        return rc;
    /* More shared memory than the default needs a leave that the launch asks for; none: 0. */
    if (kg_cuda_max_blocks(k->function, (int)a->threads, a->shared, &blocks, NULL) != KG_OK)
        blocks = 0;
    kg_put_u32(&w->talk.reply, (uint32_t)info.registers);
    kg_put_u32(&w->talk.reply, (uint32_t)info.local_bytes);
    kg_put_u32(&w->talk.reply, (uint32_t)info.static_shared);
    kg_put_u32(&w->talk.reply, (uint32_t)blocks);
    return KG_OK;
}

static int load_image(kg_cuda_state *w, const ask *asks, size_t n, kg_error *err) {
    char *image = NULL;
    size_t bytes = 0;
    int rc = read_image(w->talk.fds[0], &image, &bytes, err);
    if (rc == KG_OK) {
        rc = kg_cuda_module_load(image, bytes, &w->module, err);
        if (rc == KG_ENOMEM || rc == KG_EDEVICE)
            kg_cuda_fault(w, KG_STAGE_LOAD, UINT32_MAX, err);
    }
    free(image);
    kg_put_u32(&w->talk.reply, (uint32_t)n);
    for (size_t i = 0; rc == KG_OK && i < n; i++)
        rc = take_kernel(w, w->module, i, &asks[i], err);
    /* Whatever the driver does not like about it, it does not load. */
    if (rc != KG_OK)
        err->code = KG_EFORMAT;
    return rc == KG_OK ? KG_OK : KG_EFORMAT;
}

static int do_load(kg_cuda_state *w, kg_error *err) {
    ask asks[KG_MAX_LAUNCHES];
    uint32_t n = kg_get_u32(&w->talk.in);
    int rc = expect(w, KG_CUDA_MAPPED, "LOAD", err);
    if (rc == KG_OK && (n < 1 || n > KG_MAX_LAUNCHES || w->talk.nfds != 1))
        rc = kg_fail(err, KG_EFORMAT, "LOAD has %u entries and %zu descriptors", n, w->talk.nfds);
    for (uint32_t i = 0; rc == KG_OK && i < n; i++)
        rc = read_ask(&w->talk.in, &asks[i], err);
    if (rc == KG_OK)
        rc = kg_talk_finish(&w->talk, "LOAD", err);
    if (rc == KG_OK)
        rc = load_image(w, asks, n, err);
    if (rc != KG_OK)
        return rc;
    w->limits.nentries = n;
    w->stage = KG_CUDA_LOADED;
    return KG_OK;
}

/* What the driver does not like about it is no fault of the Candidate's. */
static int load_scrub(kg_cuda_state *w, const char *image, size_t bytes, kg_error *err) {
    const kg_cuda_device *d = NULL;
    kg_cuda_module_unload(w->scrubber);
    w->scrubber = NULL;
    int rc = kg_cuda_device_get(w->device, &d, err);
    if (rc == KG_OK)
        rc = kg_cuda_module_load(image, bytes, &w->scrubber, err);
    if (rc != KG_OK)
        return rc;
    w->scrub = (kg_cuda_launch){
        .grid = {(uint32_t)d->sms, 1, 1}, .block = {1024, 1, 1}, .shared = (uint32_t)d->max_shared};
    rc = kg_cuda_function(w->scrubber, "kg_check_scrub", &w->scrub.function, err);
    return rc == KG_OK ? kg_cuda_launch_prepare(&w->scrub, err) : rc;
}

static int do_scrub(kg_cuda_state *w, kg_error *err) {
    char *image = NULL;
    size_t bytes = 0;
    int rc = expect(w, KG_CUDA_LOADED, "SCRUB", err);
    if (rc == KG_OK && w->talk.nfds != 1)
        rc = kg_fail(err, KG_EFORMAT, "SCRUB has %zu descriptors", w->talk.nfds);
    if (rc == KG_OK)
        rc = kg_talk_finish(&w->talk, "SCRUB", err);
    if (rc == KG_OK)
        rc = read_image(w->talk.fds[0], &image, &bytes, err);
    if (rc == KG_OK)
        rc = load_scrub(w, image, bytes, err);
    free(image);
    w->scrubs = rc == KG_OK;
    return rc;
}

static int do_run(kg_cuda_state *w, kg_error *err) {
    int rc = expect(w, KG_CUDA_LOADED, "RUN", err);
    if (rc == KG_OK)
        rc = kg_wire_read_run(&w->talk.in, &w->limits, &w->run, err);
    if (rc == KG_OK)
        rc = kg_talk_finish(&w->talk, "RUN", err);
    if (rc == KG_OK)
        rc = kg_cuda_run(w, err);
    if (rc != KG_OK)
        return rc;
    kg_put_u32(&w->talk.reply, w->run.timed);
    for (uint32_t i = 0; i < w->run.timed; i++) {
        kg_put_u64(&w->talk.reply, w->times[i].ns);
        kg_put_u64(&w->talk.reply, w->times[i].window_ns);
        kg_put_u64(&w->talk.reply, w->times[i].wall_ns);
        kg_put_u8(&w->talk.reply, w->graph);
    }
    return KG_OK;
}

static int answer(void *worker, kg_talk *t, uint32_t kind, kg_error *err) {
    kg_cuda_state *w = worker;
    switch (kind) {
    case KG_W_OPEN:
        return do_open(w, err);
    case KG_W_MAP:
        return do_map(w, err);
    case KG_W_LOAD:
        return do_load(w, err);
    case KG_W_RUN:
        return do_run(w, err);
    case KG_W_PING:
        return kg_talk_finish(t, "PING", err);
    case KG_W_SCRUB:
        return do_scrub(w, err);
    default:
        return kg_fail(err, KG_EFORMAT, "request %u is not known", kind);
    }
}

int kg_cuda_worker(int socket) {
    static kg_cuda_state w;
    w.limits.device = KG_CUDA;
    kg_talk_init(&w.talk, socket);
    kg_talk_serve(&w.talk, answer, &w);
    return 0;
}
