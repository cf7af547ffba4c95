/* The serving process: Ops, the fast path of a call, and the first call of a class. Registries are
 * opened in registries.c, answers for people are written in explain.c. */
#include "runtime/runtime.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/process.h"
#include "runtime/quarantine.h"
#include "runtime/sample.h"

/* 24 tensors of rank 8 with sizes and strides, 16 captured ones and 32 scalars take less. */
#define SIGNATURE_MAX 6656
#define MAX_PROGRAMS 4096

kg_process kg_proc_state;

static pthread_mutex_t program_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- the signature of a call ---- */

static unsigned char *put(unsigned char *p, const void *bytes, size_t n) {
    memcpy(p, bytes, n);
    return p + n;
}

static unsigned char align_class(const kg_tensor *t) {
    uintptr_t at = (uintptr_t)t->data | 256;
    return (unsigned char)__builtin_ctzl(at);
}

static unsigned char *put_tensor(unsigned char *p, const kg_tensor *t) {
    *p++ = (unsigned char)(t->dtype + 1);
    *p++ = (unsigned char)t->ndim;
    *p++ = align_class(t);
    p = put(p, t->size, (size_t)t->ndim * sizeof(t->size[0]));
    return put(p, t->stride, (size_t)t->ndim * sizeof(t->stride[0]));
}

static unsigned char *put_arg(unsigned char *p, kg_arg_type type, const kg_value *v) {
    switch (type) {
    case KG_ARG_TENSOR:
    case KG_ARG_TENSOR_OPT:
        if (v->present)
            return put_tensor(p, &v->u.t);
        *p++ = 0;
        return p;
    case KG_ARG_BOOL:
        *p++ = v->u.b;
        return p;
    case KG_ARG_INT_LIST:
        *p++ = (unsigned char)v->u.list.n;
        return put(p, v->u.list.v, v->u.list.n * sizeof(v->u.list.v[0]));
    case KG_ARG_TENSOR_LIST:
    case KG_ARG_FLOAT_LIST:
    case KG_ARG_STR:
        return p; /* the Program's, below */
    default:
        *p++ = v->present;
        return v->present ? put(p, &v->u.i, sizeof(v->u.i)) : p;
    }
}

/* Interned Programs: one address is one text. Scalars do not decide which Kernel serves. */
static size_t sign(const kg_rt_op *op, const kg_call *c, int threads, unsigned char *out) {
    struct {
        const struct kg_program *program;
        uint32_t op, skip;
        int16_t device, index, precision, threads;
        uint32_t captured, scalars;
    } head = {c->program,
              op->id,
              c->skip_outputs,
              (int16_t)c->device,
              (int16_t)c->device_index,
              (int16_t)c->precision,
              (int16_t)threads,
              (uint32_t)c->ncaptured,
              (uint32_t)c->nscalars};
    unsigned char *p = put(out, &head, sizeof(head));
    for (size_t i = 0; i < op->nargs; i++)
        p = put_arg(p, op->types[i], &c->args[i]);
    for (size_t i = 0; i < c->ncaptured; i++)
        p = put_tensor(p, &c->captured[i]);
    return (size_t)(p - out);
}

/* ---- a call ---- */

static void bump(_Atomic uint64_t *counter) {
    uint64_t n = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, n + 1, memory_order_relaxed);
}

/* Whether the call goes into a CUDA graph, when nothing may be built, loaded or waited for. */
static int recording(const kg_call *call, bool *yes, kg_error *err) {
    const kg_launcher *device = kg_launcher_of(call->device);
    *yes = false;
    if (device->recording == NULL)
        return KG_OK;
    int rc = device->recording(call, kg_proc_state.host, yes, err);
    /* The driver refuses the question on the default stream while another one captures. */
    *yes = *yes || rc == KG_EBUSY;
    return rc == KG_EBUSY ? KG_OK : rc;
}

/* The class, resolved by this thread or by the one that held the lock before; *out is NULL when no
 * registry is open. */
static int resolve(const kg_rt_op *op, const kg_call *call, int threads,
                   const unsigned char *signature, size_t n, uint64_t hash, kg_class **out,
                   kg_error *err) {
    kg_class *c = NULL;
    bool captured = false;
    int rc = KG_OK;
    if (recording(call, &captured, err) == KG_EDEVICE)
        return KG_EDEVICE;
    kg_writers_lock();
    const kg_snapshot *s = kg_snapshot_current();
    if (s != NULL)
        c = kg_snapshot_find(s, hash, signature, n);
    if (s != NULL && c == NULL) {
        rc = kg_lookup(s, &kg_proc_state.here, op, call, threads, captured, signature, n, hash,
                       NULL, &c, err);
        if (rc == KG_OK) {
            c = kg_snapshot_insert(c);
            kg_proc_state.resolved++;
        } else if (rc == KG_ENOMEM) {
            rc = KG_OK; /* the reference may do with less */
        }
    }
    kg_writers_unlock();
    if (rc == KG_OK)
        *out = c;
    return rc;
}

/* ---- a lost device ---- */

enum { MAX_DEVICES = 64 };

/* The Kernel that was launched last on each CUDA device, by its place in the table of those that
 * ever were: a fault comes to light at some later call, and this is the best suspect. */
typedef struct kg_suspect {
    char id[65], name[128];
    struct kg_suspect *next;
} suspect;
static suspect *suspects; /* under the lock; never freed */
static pthread_mutex_t suspect_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(suspect *) last_launched[MAX_DEVICES];

static suspect *suspect_of(const kg_class *c) {
    pthread_mutex_lock(&suspect_lock);
    suspect *s = suspects;
    while (s != NULL && strcmp(s->id, c->kernel->id) != 0)
        s = s->next;
    if (s == NULL && (s = calloc(1, sizeof(*s))) != NULL) {
        snprintf(s->id, sizeof(s->id), "%s", c->kernel->id);
        kg_kernel_name(c->block, c->kernel, s->name);
        s->next = suspects;
        suspects = s;
    }
    pthread_mutex_unlock(&suspect_lock);
    return s;
}

/* Found once a class, for the sake of the calls after. */
static suspect *launched_as(kg_class *c) {
    suspect *s = atomic_load_explicit(&c->suspect, memory_order_relaxed);
    if (s == NULL) {
        s = suspect_of(c);
        atomic_store_explicit(&c->suspect, s, memory_order_relaxed);
    }
    return s;
}

static bool has_suspects(const kg_call *call) {
    return call->device == KG_CUDA && call->device_index >= 0 && call->device_index < MAX_DEVICES;
}

/* Says who it was, and keeps later processes from it. sure: it was waited for. */
static int device_lost(const suspect *s, const kg_call *call, bool sure, kg_error *err) {
    kg_place place;
    char path[512], why[256];
    kg_error e = {.msg = ""};
    snprintf(why, sizeof(why), "%.255s", err != NULL ? err->msg : "");
    if (s == NULL)
        return kg_fail(err, KG_EDEVICE,
                       "%s (it came to light in a call of kgen, before any Kernel of kgen ran on "
                       "the device)",
                       why);
    int rc = kg_place_of(&kg_proc_state.here, call->device, call->device_index, &place, &e);
    if (rc == KG_OK)
        rc = kg_quarantine(s->id, s->name, place.device, why, path, &e);
    const char *how = sure ? "" : ", the last Kernel of kgen that was launched on the device";
    if (rc != KG_OK)
        return kg_fail(err, KG_EDEVICE, "%.60s%s: %.200s (it could not be quarantined: %.100s)",
                       s->name, how, why, e.msg);
    return kg_fail(err, KG_EDEVICE,
                   "%.60s%s: %.160s; it is quarantined: remove %.180s to serve it again", s->name,
                   how, why, path);
}

static int lost(const kg_call *call, kg_error *err) {
    suspect *s = has_suspects(call) ? atomic_load(&last_launched[call->device_index]) : NULL;
    return device_lost(s, call, false, err);
}

/* ---- the first run ---- */

static void drop(const kg_class *c, void **handles) {
    for (size_t i = 0; i < c->ready.noutputs; i++)
        if (handles[i] != NULL)
            kg_proc_state.host->release(handles[i]);
}

static int copy_from_device(void *ctx, void *to, const void *from, size_t n, kg_error *err) {
    const kg_call *call = ctx;
    return kg_launcher_of(call->device)->read(call, to, from, n, err);
}

static int sample(const kg_class *c, const kg_call *call, const kg_tensor *outs, kg_error *err) {
    const kg_op *op = c->block->op;
    bool here = kg_launcher_of(call->device)->read == NULL;
    bool attention = strcmp(op->name, "attention") == 0;
    void *ctx;
    memcpy(&ctx, &call, sizeof(ctx));
    if (here)
        return attention ? kg_sample_attention(op, call, outs, err)
                         : kg_sample_product(op, call, outs, err);
    return attention ? kg_sample_attention_device(op, call, outs, copy_from_device, ctx, err)
                     : kg_sample_product_device(op, call, outs, copy_from_device, ctx, err);
}

/* The first call with a Program that the Kernel was not judged on. A wrong result never leaves. */
static int check_first(kg_class *c, const kg_call *call, void **handles, const kg_tensor *outs,
                       kg_error *err) {
    char name[128];
    kg_error e;
    int rc = sample(c, call, outs, &e);
    if (rc == KG_OK) {
        kg_writers_lock();
        if (atomic_exchange(&c->ready.trust, KG_TRUST_CHECKED) != KG_TRUST_CHECKED)
            kg_trust_store(c);
        kg_writers_unlock();
        return KG_OK;
    }
    drop(c, handles);
    atomic_store(&c->ready.trust, KG_TRUST_REFUSED);
    kg_kernel_name(c->block, c->kernel, name);
    kg_log_once(KG_LOG_WARNING,
                "%s is wrong on a Program that it was not judged on (%s); the reference serves it",
                name, e.msg);
    return kg_fail(err, KG_EUNSUPPORTED, "%s: %.300s", name, e.msg);
}

/* Before an image's first run on a device: what others left behind is not put down to it. Nothing
 * can be waited for in a capture; *wait says whether it may be. */
static int before_first(const kg_class *c, const kg_call *call, int trust, bool *wait,
                        kg_error *err) {
    const kg_launcher *device = kg_launcher_of(call->device);
    bool captured = false;
    char name[128];
    *wait = false;
    if (device->settle == NULL)
        return KG_OK;
    int rc = recording(call, &captured, err);
    if (rc == KG_OK && captured && trust == KG_TRUST_UNKNOWN) {
        kg_kernel_name(c->block, c->kernel, name);
        return kg_fail(err, KG_EBUSY,
                       "%s must be compared on its first call with this Program, which cannot be "
                       "while a CUDA graph is captured: call kgen.warmup(model, inputs) before",
                       name);
    }
    *wait = rc == KG_OK && !captured;
    return *wait ? device->settle(call, kg_proc_state.host, err) : rc;
}

/* A Program that was not compared yet is a first run, too. */
static bool is_first(const kg_class *c, const kg_call *call, int trust) {
    return call->device != KG_CPU && (trust == KG_TRUST_UNKNOWN || c->ready.proved == NULL ||
                                      !atomic_load_explicit(c->ready.proved, memory_order_relaxed));
}

static int after_first(kg_class *c, const kg_call *call, void **handles, kg_error *err) {
    int rc = kg_launcher_of(call->device)->settle(call, kg_proc_state.host, err);
    if (rc != KG_OK)
        drop(c, handles);
    if (rc == KG_EDEVICE)
        return device_lost(suspect_of(c), call, true, err);
    if (rc == KG_OK && c->ready.proved != NULL)
        atomic_store(c->ready.proved, true);
    return rc;
}

/* Any failure but a lost device's is the Kernel's, and the reference serves the call. */
static int failed(const kg_class *c, const kg_call *call, int rc, kg_error *err) {
    char name[128];
    if (rc == KG_EDEVICE)
        return lost(call, err);
    if (rc == KG_EBUSY)
        return rc;
    kg_kernel_name(c->block, c->kernel, name);
    kg_log_once(KG_LOG_WARNING, "%s could not be launched (%s); the reference serves the call",
                name, err != NULL ? err->msg : "");
    return KG_ENOTFOUND;
}

static int run_class(kg_class *c, const kg_call *call, void **handles, kg_error *err) {
    kg_tensor outs[KG_MAX_OUTPUTS];
    bool wait = false;
    if (c->kind == KG_SERVED_FALLBACK)
        return kg_fail(err, KG_ENOTFOUND, "no Kernel serves it");
    int trust = atomic_load_explicit(&c->ready.trust, memory_order_relaxed);
    if (trust == KG_TRUST_REFUSED)
        return kg_fail(err, KG_ENOTFOUND, "its Kernel was wrong on this Program");
    int rc = KG_OK;
    if (is_first(c, call, trust))
        rc = before_first(c, call, trust, &wait, err);
    if (rc == KG_OK)
        rc = kg_launcher_of(call->device)
                 ->run(&c->ready, call, kg_proc_state.host, handles, outs, err);
    if (rc != KG_OK)
        return failed(c, call, rc, err);
    if (has_suspects(call))
        atomic_store_explicit(&last_launched[call->device_index], launched_as(c),
                              memory_order_relaxed);
    if (wait)
        rc = after_first(c, call, handles, err);
    return rc == KG_OK && trust == KG_TRUST_UNKNOWN ? check_first(c, call, handles, outs, err) : rc;
}

/* Not what this thread called last. */
static int find(kg_reader_slot *me, const kg_snapshot *s, const kg_rt_op *op, const kg_call *call,
                int threads, const unsigned char *signature, size_t n, kg_class **out,
                kg_error *err) {
    uint64_t hash = kg_xxh64(signature, n);
    *out = s != NULL ? kg_snapshot_find(s, hash, signature, n) : NULL;
    if (*out == NULL)
        return resolve(op, call, threads, signature, n, hash, out, err);
    me->last = *out;
    me->in = s->serial;
    return KG_OK;
}

int kg_rt_run(const kg_rt_op *op, kg_call *call, void *handles[KG_MAX_OUTPUTS], kg_error *err) {
    _Alignas(16) unsigned char signature[SIGNATURE_MAX];
    if (kg_proc_state.disabled)
        return kg_rt_explaining() ? kg_explain_disabled(op, err)
                                  : kg_fail(err, KG_ENOTFOUND, "KGEN_DISABLE is set");
    kg_reader_slot *me = kg_reader_enter();
    if (me == NULL)
        return kg_fail(err, KG_ENOTFOUND, "no memory for a thread's slot");
    call->precision = kg_rt_precision();
    /* A GPU's Kernels do not know of them. */
    int threads = call->device == KG_CPU ? kg_proc_state.host->threads() : 0;
    size_t n = sign(op, call, threads, signature);
    const kg_snapshot *s = kg_snapshot_current();
    kg_class *c = s != NULL ? kg_reader_recall(me, s, signature, n) : NULL;
    int rc = KG_OK;
    if (c == NULL)
        rc = find(me, s, op, call, threads, signature, n, &c, err);
    if (rc == KG_EDEVICE)
        rc = lost(call, err);
    else if (rc == KG_OK)
        rc = c != NULL ? run_class(c, call, handles, err)
                       : kg_fail(err, KG_ENOTFOUND, "no registry is open");
    if (kg_rt_explaining())
        kg_explain_call(op, call, threads, c, rc);
    bump(rc == KG_OK ? &me->served : &me->fallbacks);
    kg_reader_leave(me);
    return rc;
}

/* ---- Programs ---- */

typedef struct interned {
    uint64_t hash;
    size_t n;
    kg_program *program;
    char *text; /* as it was given, which need not be the canonical one's bytes */
} interned;

/* Open addressing; entries appear whole and never leave, so readers take no lock. */
static _Atomic(interned *) programs[2 * MAX_PROGRAMS];
static size_t nprograms;

static size_t program_home(uint64_t i) {
    return (size_t)i & (2 * MAX_PROGRAMS - 1);
}

static const kg_program *find_program(const char *text, size_t n, uint64_t hash) {
    for (size_t i = program_home(hash);; i = program_home(i + 1)) {
        interned *e = atomic_load_explicit(&programs[i], memory_order_acquire);
        if (e == NULL)
            return NULL;
        if (e->hash == hash && e->n == n && memcmp(e->text, text, n) == 0)
            return e->program;
    }
}

/* Under the lock. */
static int add_program(const char *text, size_t n, uint64_t hash, const kg_program **out,
                       kg_error *err) {
    if (nprograms == MAX_PROGRAMS)
        return kg_fail(err, KG_EOVERFLOW,
                       "this process has seen %d different Programs; lift what varies into scalars "
                       "or captured tensors",
                       MAX_PROGRAMS);
    interned *e = calloc(1, sizeof(*e));
    if (e != NULL)
        e->text = malloc(n + 1);
    if (e == NULL || e->text == NULL) {
        free(e);
        return kg_fail(err, KG_ENOMEM, "no memory for a Program");
    }
    int rc = kg_program_parse(text, n, &e->program, err);
    if (rc != KG_OK) {
        free(e->text);
        free(e);
        return rc;
    }
    memcpy(e->text, text, n);
    e->text[n] = '\0';
    e->hash = hash;
    e->n = n;
    size_t i = program_home(hash);
    while (atomic_load(&programs[i]) != NULL)
        i = program_home(i + 1);
    atomic_store_explicit(&programs[i], e, memory_order_release);
    nprograms++;
    *out = e->program;
    return KG_OK;
}

int kg_rt_program(const char *text, size_t n, const struct kg_program **out, kg_error *err) {
    uint64_t hash = kg_xxh64(text, n);
    int rc = KG_OK;
    const kg_program *p = find_program(text, n, hash);
    if (p == NULL) {
        pthread_mutex_lock(&program_lock);
        p = find_program(text, n, hash);
        if (p == NULL)
            rc = add_program(text, n, hash, &p, err);
        pthread_mutex_unlock(&program_lock);
    }
    if (rc == KG_OK)
        *out = p;
    return rc;
}

/* ---- settings ---- */

static _Thread_local int thread_precision = -1;

int kg_rt_precision(void) {
    return thread_precision >= 0 ? thread_precision : kg_proc_state.precision;
}

int kg_rt_set_precision(int precision) {
    int before = kg_rt_precision();
    thread_precision = precision;
    return before;
}

bool kg_rt_disabled(void) {
    return kg_proc_state.disabled;
}

const char *kg_served_name(kg_served_kind kind) {
    static const char *const names[] = {"exact", "dynamic", "instantiated", "fallback"};
    return names[kind];
}

void kg_rt_count(kg_rt_counters *out) {
    kg_reader_sum(&out->served, &out->fallbacks);
    kg_writers_lock();
    const kg_snapshot *s = kg_snapshot_current();
    out->resolved = kg_proc_state.resolved;
    out->classes = s != NULL ? s->nclasses : 0;
    kg_writers_unlock();
}
