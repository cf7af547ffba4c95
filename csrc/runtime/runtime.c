/* The serving process: Ops, the fast path of a call, and the first call of a class. Registries are
 * opened in registries.c, answers for people are written in explain.c. */
#include "runtime/runtime.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/process.h"
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

/* The class, resolved by this thread or by the one that held the lock before. */
static kg_class *resolve(const kg_rt_op *op, const kg_call *call, int threads,
                         const unsigned char *signature, size_t n, uint64_t hash, kg_error *err) {
    kg_class *c = NULL;
    kg_writers_lock();
    const kg_snapshot *s = kg_snapshot_current();
    if (s != NULL)
        c = kg_snapshot_find(s, hash, signature, n);
    if (s != NULL && c == NULL &&
        kg_lookup(s, &kg_proc_state.here, op, call, threads, signature, n, hash, NULL, &c, err) ==
            KG_OK) {
        c = kg_snapshot_insert(c);
        kg_proc_state.resolved++;
    }
    kg_writers_unlock();
    return c;
}

/* The first call with a Program that the Kernel was not judged on. A wrong result never leaves. */
static int check_first(kg_class *c, const kg_call *call, void **handles, const kg_tensor *outs,
                       kg_error *err) {
    char name[128];
    kg_error e;
    int rc = kg_launcher_of(call->device)->on_host
                 ? kg_sample_attention(c->block->op, call, outs, &e)
                 : kg_fail(&e, KG_EUNSUPPORTED, "the device's memory cannot be read here");
    if (rc == KG_OK) {
        kg_writers_lock();
        if (atomic_exchange(&c->ready.trust, KG_TRUST_CHECKED) != KG_TRUST_CHECKED)
            kg_trust_store(c);
        kg_writers_unlock();
        return KG_OK;
    }
    for (size_t i = 0; i < c->ready.noutputs; i++)
        if (handles[i] != NULL)
            kg_proc_state.host->release(handles[i]);
    atomic_store(&c->ready.trust, KG_TRUST_REFUSED);
    kg_kernel_name(c->block, c->kernel, name);
    kg_log_once(KG_LOG_WARNING,
                "%s is wrong on a Program that it was not judged on (%s); the reference serves it",
                name, e.msg);
    return kg_fail(err, KG_EUNSUPPORTED, "%s: %.300s", name, e.msg);
}

static int run_class(kg_class *c, const kg_call *call, void **handles, kg_error *err) {
    kg_tensor outs[KG_MAX_OUTPUTS];
    if (c->kind == KG_SERVED_FALLBACK)
        return kg_fail(err, KG_ENOTFOUND, "no Kernel serves it");
    int trust = atomic_load_explicit(&c->ready.trust, memory_order_relaxed);
    if (trust == KG_TRUST_REFUSED)
        return kg_fail(err, KG_ENOTFOUND, "its Kernel was wrong on this Program");
    int rc =
        kg_launcher_of(call->device)->run(&c->ready, call, kg_proc_state.host, handles, outs, err);
    if (rc != KG_OK) {
        char name[128];
        kg_kernel_name(c->block, c->kernel, name);
        kg_log_once(KG_LOG_WARNING, "%s could not be launched (%s); the reference serves the call",
                    name, err != NULL ? err->msg : "");
        return KG_ENOTFOUND;
    }
    return trust == KG_TRUST_UNKNOWN ? check_first(c, call, handles, outs, err) : KG_OK;
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
    int threads = kg_proc_state.host->threads();
    size_t n = sign(op, call, threads, signature);
    uint64_t hash = kg_xxh64(signature, n);
    const kg_snapshot *s = kg_snapshot_current();
    kg_class *c = s != NULL ? kg_snapshot_find(s, hash, signature, n) : NULL;
    if (c == NULL)
        c = resolve(op, call, threads, signature, n, hash, err);
    int rc = c != NULL ? run_class(c, call, handles, err)
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
