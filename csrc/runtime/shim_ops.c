/* Ops of a registry that are not canonical. A boxed function has no user data, so each op takes a
 * pair of functions from a pool made by the preprocessor. A call that no Kernel serves goes to
 * Python, which has the captured module: its tensors travel through the dispatcher, everything else
 * is read through kg_shim_python_call. */
#include "runtime/shim.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/jsontext.h"

/* ---- the Python fallback ---- */

typedef struct python_call {
    int64_t id;
    const kg_rt_op *op;
    const kg_call *call;
    const char *text; /* the Program's, or NULL */
    struct python_call *next;
} python_call;

static pthread_mutex_t calls_lock = PTHREAD_MUTEX_INITIALIZER;
static python_call *calls;
static int64_t last_call;

static void enter_call(python_call *c) {
    pthread_mutex_lock(&calls_lock);
    c->id = ++last_call;
    c->next = calls;
    calls = c;
    pthread_mutex_unlock(&calls_lock);
}

static void leave_call(python_call *c) {
    pthread_mutex_lock(&calls_lock);
    for (python_call **p = &calls; *p != NULL; p = &(*p)->next)
        if (*p == c) {
            *p = c->next;
            break;
        }
    pthread_mutex_unlock(&calls_lock);
}

int kg_shim_python(const kg_rt_op *op, const kg_call *call, const char *program_text,
                   AtenTensorHandle *inputs, size_t ninputs, AtenTensorHandle *results,
                   size_t nresults, kg_error *err) {
    python_call c = {.op = op, .call = call, .text = program_text};
    StableIValue stack[2];
    size_t n = 0;
    int rc = kg_list_make(inputs, ninputs, &stack[0], err);
    if (rc != KG_OK)
        return rc;
    enter_call(&c);
    stack[1] = (StableIValue)c.id;
    rc = kg_torch_call("kgen::_fallback", "", stack, err);
    leave_call(&c);
    if (rc == KG_OK)
        rc = kg_list_take(stack[0], results, nresults, &n, err);
    if (rc == KG_OK && n != nresults) {
        for (size_t i = 0; i < n; i++)
            kg_tensor_drop(results[i]);
        rc = kg_fail(err, KG_EINVAL, "the reference of %s gave %zu tensors in place of %zu",
                     op->name, n, nresults);
    }
    return rc;
}

/* Tensors are numbered in the order in which kgen::_fallback gets them. */
static void put_arg(kg_buf *out, kg_arg_type type, const kg_value *v, const kg_call *call,
                    size_t *tensor) {
    switch (type) {
    case KG_ARG_TENSOR:
    case KG_ARG_TENSOR_OPT:
        if (v->present)
            kg_buf_printf(out, "{\"tensor\":%zu}", (*tensor)++);
        else
            kg_buf_puts(out, "null");
        break;
    case KG_ARG_TENSOR_LIST:
        kg_buf_printf(out, "{\"tensors\":[%zu,%zu]}", *tensor, *tensor + call->ncaptured);
        *tensor += call->ncaptured;
        break;
    case KG_ARG_FLOAT_LIST:
        kg_buf_putc(out, '[');
        for (size_t i = 0; i < call->nscalars; i++) {
            kg_buf_puts(out, i > 0 ? "," : "");
            kg_jt_double(out, call->scalars[i]);
        }
        kg_buf_putc(out, ']');
        break;
    case KG_ARG_INT_LIST:
        kg_buf_putc(out, '[');
        for (size_t i = 0; i < v->u.list.n; i++)
            kg_buf_printf(out, "%s%" PRId64, i > 0 ? "," : "", v->u.list.v[i]);
        kg_buf_putc(out, ']');
        break;
    case KG_ARG_STR:
        kg_buf_puts(out, "{\"program\":true}");
        break;
    default:
        if (!v->present)
            kg_buf_puts(out, "null");
        else if (type == KG_ARG_BOOL)
            kg_buf_puts(out, v->u.b ? "true" : "false");
        else if (type == KG_ARG_INT || type == KG_ARG_INT_OPT)
            kg_buf_printf(out, "%" PRId64, v->u.i);
        else
            kg_jt_double(out, v->u.f);
    }
}

int kg_shim_python_call(int64_t id, kg_buf *out, kg_error *err) {
    pthread_mutex_lock(&calls_lock);
    const python_call *c = calls;
    while (c != NULL && c->id != id)
        c = c->next;
    if (c != NULL) {
        size_t tensor = 0;
        kg_buf_puts(out, "{\"op\":");
        kg_jt_text(out, c->op->name);
        kg_buf_puts(out, ",\"args\":[");
        for (size_t i = 0; i < c->op->nargs; i++) {
            kg_buf_puts(out, i > 0 ? "," : "");
            put_arg(out, c->op->types[i], &c->call->args[i], c->call, &tensor);
        }
        kg_buf_puts(out, "],\"program\":");
        kg_jt_text(out, c->text != NULL ? c->text : "");
        kg_buf_putc(out, '}');
    }
    pthread_mutex_unlock(&calls_lock);
    return c != NULL ? kg_buf_check(out, "a fallback's arguments", err)
                     : kg_fail(err, KG_ENOTFOUND, "no fallback %" PRId64 " is under way", id);
}

/* ---- an own op's stack ---- */

typedef struct own_call {
    kg_call call;
    AtenTensorHandle inputs[KG_MAX_ARGS + KG_MAX_CAPTURED];
    size_t ninputs;
    int rc; /* the first failure; what it could not hold the reference will serve or refuse */
} own_call;

static void note(own_call *c, int rc) {
    if (c->rc == KG_OK)
        c->rc = rc;
}

static void take_tensor(own_call *c, AtenTensorHandle t, kg_value *v, kg_error *err) {
    int32_t device = c->call.device, index = c->call.device_index;
    note(c, kg_shim_tensor(t, v, &c->call, c->rc == KG_OK ? err : NULL));
    if (c->ninputs > 0 && (device != c->call.device || index != c->call.device_index))
        note(c, KG_ENOTFOUND); /* torch's own message says which device is which */
    c->inputs[c->ninputs++] = t;
}

static void take_list(own_call *c, kg_arg_type type, StableIValue slot, kg_value *v,
                      kg_error *err) {
    StableIValue numbers[KG_MAX_SCALARS];
    size_t max = type == KG_ARG_INT_LIST ? KG_MAX_LIST : KG_MAX_SCALARS, n = 0;
    v->present = true;
    note(c, kg_list_numbers(slot, numbers, max, &n, c->rc == KG_OK ? err : NULL));
    if (type == KG_ARG_INT_LIST) {
        v->u.list.n = n;
        for (size_t i = 0; i < n; i++)
            v->u.list.v[i] = (int64_t)numbers[i];
    } else {
        c->call.nscalars = n;
        for (size_t i = 0; i < n; i++)
            c->call.scalars[i] = kg_f64_slot(numbers[i]);
    }
}

static void take_captured(own_call *c, StableIValue slot, kg_value *v, kg_error *err) {
    AtenTensorHandle *at = c->inputs + c->ninputs;
    size_t n = 0;
    v->present = true;
    note(c, kg_list_take(slot, at, KG_MAX_CAPTURED, &n, c->rc == KG_OK ? err : NULL));
    c->ninputs += n;
    c->call.ncaptured = n;
    for (size_t i = 0; i < n; i++) {
        int32_t device = c->call.device, index = c->call.device_index;
        note(c, kg_torch_view(at[i], &c->call.captured[i], &device, &index,
                              c->rc == KG_OK ? err : NULL));
        if (device != c->call.device || index != c->call.device_index)
            note(c, KG_ENOTFOUND); /* as take_tensor */
    }
}

static void take_number(kg_arg_type type, StableIValue slot, kg_value *v) {
    bool optional = type == KG_ARG_INT_OPT || type == KG_ARG_FLOAT_OPT;
    v->present = !optional || slot != 0;
    if (!v->present)
        return;
    if (optional)
        slot = kg_slot_take(slot);
    if (type == KG_ARG_BOOL)
        v->u.b = kg_bool_slot(slot);
    else if (type == KG_ARG_INT || type == KG_ARG_INT_OPT)
        v->u.i = (int64_t)slot;
    else
        v->u.f = kg_f64_slot(slot);
}

static void take_arg(own_call *c, kg_arg_type type, StableIValue slot, kg_value *v, kg_error *err) {
    switch (type) {
    case KG_ARG_TENSOR:
        take_tensor(c, kg_slot_tensor(slot), v, err);
        break;
    case KG_ARG_TENSOR_OPT:
        v->present = slot != 0;
        if (slot != 0)
            take_tensor(c, kg_slot_tensor(kg_slot_take(slot)), v, err);
        break;
    case KG_ARG_TENSOR_LIST:
        take_captured(c, slot, v, err);
        break;
    case KG_ARG_INT_LIST:
    case KG_ARG_FLOAT_LIST:
        take_list(c, type, slot, v, err);
        break;
    default:
        take_number(type, slot, v);
    }
}

static void own_take(const kg_rt_op *op, const StableIValue *stack, own_call *c, kg_error *err) {
    c->rc = KG_OK;
    c->ninputs = 0;
    c->call.device = KG_CPU;
    c->call.device_index = 0;
    c->call.nargs = op->nargs;
    c->call.ncaptured = 0;
    c->call.nscalars = 0;
    c->call.program = NULL;
    c->call.skip_outputs = 0;
    for (size_t i = 0; i < op->nargs; i++)
        take_arg(c, op->types[i], stack[i], &c->call.args[i], err);
}

static int own_body(const kg_rt_op *op, StableIValue *stack, kg_error *err) {
    own_call c;
    void *out[KG_MAX_OUTPUTS];
    AtenTensorHandle results[KG_MAX_OUTPUTS];
    own_take(op, stack, &c, err);
    int rc = c.rc;
    if (rc == KG_OK)
        rc = kg_rt_run(op, &c.call, out, err);
    if (rc == KG_ENOTFOUND || rc == KG_EUNSUPPORTED) {
        rc = kg_shim_python(op, &c.call, NULL, c.inputs, c.ninputs, results, op->noutputs, err);
        for (size_t i = 0; rc == KG_OK && i < op->noutputs; i++)
            out[i] = results[i];
    } else {
        for (size_t i = 0; i < c.ninputs; i++)
            kg_tensor_drop(c.inputs[i]);
    }
    for (size_t i = 0; rc == KG_OK && i < op->noutputs; i++)
        stack[i] = kg_tensor_slot(out[i]);
    return rc;
}

/* ---- the pool ---- */

#define POOL_SIZE 256
/* clang-format off */
#define ROW(X, hi)                                                                                 \
    X(0x##hi##0) X(0x##hi##1) X(0x##hi##2) X(0x##hi##3) X(0x##hi##4) X(0x##hi##5) X(0x##hi##6)     \
    X(0x##hi##7) X(0x##hi##8) X(0x##hi##9) X(0x##hi##a) X(0x##hi##b) X(0x##hi##c) X(0x##hi##d)     \
    X(0x##hi##e) X(0x##hi##f)
#define POOL(X)                                                                                    \
    ROW(X, 0) ROW(X, 1) ROW(X, 2) ROW(X, 3) ROW(X, 4) ROW(X, 5) ROW(X, 6) ROW(X, 7)                \
    ROW(X, 8) ROW(X, 9) ROW(X, a) ROW(X, b) ROW(X, c) ROW(X, d) ROW(X, e) ROW(X, f)
/* clang-format on */

typedef struct slot {
    const kg_rt_op *op;
    char *backend, *train; /* "kgen::_name", "kgen::_name_train" */
    kg_error failed;       /* code KG_OK: the op is defined */
} slot;

static slot slots[POOL_SIZE];
static size_t nslots;
static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER;

static void run_public(size_t i, StableIValue *stack) {
    kg_error e;
    const char *op = kg_th.aoti_torch_grad_mode_is_enabled() ? slots[i].train : slots[i].backend;
    kg_shim_raise(kg_torch_call(op, "", stack, &e), &e);
}

static void run_backend(size_t i, StableIValue *stack) {
    kg_error e;
    kg_shim_raise(own_body(slots[i].op, stack, &e), &e);
}

#define PAIR(n)                                                                                    \
    static void public_##n(StableIValue *stack, uint64_t nin, uint64_t nout) {                     \
        (void)nin;                                                                                 \
        (void)nout;                                                                                \
        run_public(n, stack);                                                                      \
    }                                                                                              \
    static void backend_##n(StableIValue *stack, uint64_t nin, uint64_t nout) {                    \
        (void)nin;                                                                                 \
        (void)nout;                                                                                \
        run_backend(n, stack);                                                                     \
    }
POOL(PAIR)

#define PUBLIC(n) public_##n,
#define BACKEND(n) backend_##n,
static const kg_torch_boxed publics[POOL_SIZE] = {POOL(PUBLIC)};
static const kg_torch_boxed backends[POOL_SIZE] = {POOL(BACKEND)};

static char *concat(const char *a, const char *b, const char *c) {
    kg_buf out;
    kg_buf_init(&out, 0);
    kg_buf_printf(&out, "%s%s%s", a, b, c);
    return kg_buf_take(&out);
}

/* suffix goes between the name and its parameters: "_name_train(Tensor x) -> Tensor". */
static int define_variant(const kg_rt_op *op, const char *prefix, const char *suffix,
                          kg_error *err) {
    char *start = concat(prefix, op->name, suffix);
    char *schema = start != NULL ? concat(start, op->schema + strcspn(op->schema, "("), "") : NULL;
    int rc = schema != NULL ? kg_shim_define(schema, err)
                            : kg_fail(err, KG_ENOMEM, "no memory for the op %s", op->name);
    free(start);
    free(schema);
    return rc;
}

static int register_slot(size_t i, kg_error *err) {
    const slot *s = &slots[i];
    const char *backend = s->backend + strlen("kgen::"), *train = s->train + strlen("kgen::");
    int rc = define_variant(s->op, "", "", err);
    if (rc == KG_OK)
        rc = define_variant(s->op, "_", "", err);
    if (rc == KG_OK)
        rc = define_variant(s->op, "_", "_train", err);
    if (rc == KG_OK)
        rc = kg_shim_impl("CompositeImplicitAutograd", s->op->name, publics[i], err);
    if (rc == KG_OK)
        rc = kg_shim_impl("CPU", backend, backends[i], err);
    if (rc == KG_OK)
        rc = kg_shim_impl("CUDA", backend, backends[i], err);
    if (rc == KG_OK)
        rc = kg_shim_impl("CPU", train, backends[i], err);
    if (rc == KG_OK)
        rc = kg_shim_impl("CUDA", train, backends[i], err);
    return rc;
}

static int add_slot(const kg_rt_op *op, kg_error *err) {
    if (nslots == POOL_SIZE)
        return kg_fail(err, KG_EOVERFLOW, "%s: this process has its %d own Ops already", op->name,
                       POOL_SIZE);
    slot *s = &slots[nslots];
    *s = (slot){.op = op,
                .backend = concat("kgen::_", op->name, ""),
                .train = concat("kgen::_", op->name, "_train")};
    if (s->backend == NULL || s->train == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for the op %s", op->name);
    /* The slot is used up even when torch refuses: a function of it may be registered. */
    if (register_slot(nslots++, &s->failed) == KG_OK)
        s->failed.code = KG_OK;
    return KG_OK;
}

int kg_shim_own_op(const char *name, kg_error *err) {
    const kg_rt_op *op;
    int rc = kg_rt_find_op(name, &op, err);
    if (rc != KG_OK || op->canonical)
        return rc;
    pthread_mutex_lock(&slots_lock);
    size_t i = 0;
    while (i < nslots && slots[i].op != op)
        i++;
    if (i == nslots)
        rc = add_slot(op, err);
    if (rc == KG_OK && slots[i].failed.code != KG_OK)
        rc =
            kg_fail(err, slots[i].failed.code, "torch refused the op: %.450s", slots[i].failed.msg);
    pthread_mutex_unlock(&slots_lock);
    return rc;
}
