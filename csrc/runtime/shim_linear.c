/* Serves kgen::linear and kgen::matmul (torch's own, by name and schema) and, with a Program as
 * epilogue, kgen::linear_mod and kgen::matmul_mod. A call of the contract is made of views alone:
 * leading dims become M, batch dims B, a transposed operand keeps its strides. What cannot be said
 * so (dims that do not fold, other ranks and dtypes, nothing to compute) goes to torch, whose
 * result or error the user then sees. */
#include "runtime/shim.h"

#include <string.h>

#include "runtime/program.h"

/* Places of a stack and of a contract's arguments. */
enum { INPUT, SECOND, BIAS, MAX_ARGS = 6 };

/* What a call came to. The output that the user sees has the dims of `shown`: nbatch of them are B,
 * nrows M, ncols (0 or 1) N. */
typedef struct product {
    kg_call call;
    int64_t shown[KG_MAX_RANK];
    int32_t nshown, nbatch, nrows, ncols;
} product;

typedef struct front {
    const char *name, *aten;
    const char *backend, *train; /* "kgen::_name", "kgen::_name_train" */
    size_t noperands;            /* tensors before a Program's arguments */
    int32_t rank;                /* of the contract's output */
    int (*see)(product *p, kg_error *err);
    const kg_rt_op *op;
} front;

/* ---- folding dims ---- */

/* Dims [0, n) of up to two tensors as one dim; a dim of size 1 has no say. steps: in and out one
 * stride a tensor, what a single element would have. False: they do not fold. */
static bool fold(const int64_t *size, int32_t n, const int64_t *const *strides, int ntensors,
                 int64_t *count, int64_t *steps) {
    bool first = true;
    *count = 1;
    for (int32_t d = n - 1; d >= 0; d--) {
        if (size[d] == 1)
            continue;
        for (int t = 0; t < ntensors; t++) {
            int64_t next;
            if (first)
                steps[t] = strides[t][d];
            else if (__builtin_mul_overflow(steps[t], *count, &next) || strides[t][d] != next)
                return false;
        }
        first = false;
        if (__builtin_mul_overflow(*count, size[d], count))
            return false;
    }
    return true;
}

static bool fold_one(const int64_t *size, int32_t n, const int64_t *stride, int64_t *count,
                     int64_t *step) {
    return fold(size, n, &stride, 1, count, step);
}

static void set_dim(kg_tensor *t, int32_t d, int64_t size, int64_t stride) {
    t->size[d] = size;
    t->stride[d] = stride;
}

/* ---- the calls of the contracts ---- */

/* Product of what there is to compute; false: nothing. */
static bool something(int64_t b, int64_t m, int64_t n, int64_t k) {
    return b > 0 && m > 0 && n > 0 && k > 0;
}

/* input (..., K) becomes (M, K). */
static int see_linear(product *p, kg_error *err) {
    kg_tensor *x = &p->call.args[INPUT].u.t, given = *x;
    const kg_tensor *w = &p->call.args[SECOND].u.t;
    const kg_value *bias = &p->call.args[BIAS];
    (void)err;
    if (given.ndim < 1 || w->ndim != 2 || w->dtype != given.dtype ||
        given.size[given.ndim - 1] != w->size[1])
        return KG_ENOTFOUND;
    if (bias->present &&
        (bias->u.t.ndim != 1 || bias->u.t.size[0] != w->size[0] || bias->u.t.dtype != given.dtype))
        return KG_ENOTFOUND;
    const int32_t last = given.ndim - 1;
    int64_t m, step = given.size[last];
    if (!fold_one(given.size, last, given.stride, &m, &step))
        return KG_ENOTFOUND;
    x->ndim = 2;
    set_dim(x, 1, given.size[last], given.stride[last]);
    set_dim(x, 0, m, step);
    p->nshown = given.ndim;
    memcpy(p->shown, given.size, (size_t)last * sizeof(p->shown[0]));
    p->shown[last] = w->size[0];
    p->nbatch = 0;
    p->nrows = last;
    p->ncols = 1;
    return something(1, m, w->size[0], w->size[1]) ? KG_OK : KG_ENOTFOUND;
}

/* A vector becomes a matrix of one row (input) or one column (other). */
static void as_matrix(kg_tensor *t, bool row) {
    if (t->ndim != 1)
        return;
    t->ndim = 2;
    if (row) {
        set_dim(t, 1, t->size[0], t->stride[0]);
        set_dim(t, 0, 1, t->size[1]);
    } else {
        set_dim(t, 1, 1, 1);
    }
}

/* Batch dims of both, as torch broadcasts them: sizes into p->shown, strides of each (0 where it is
 * the same for all). */
static bool broadcast(product *p, const kg_tensor *const t[2], int64_t strides[2][KG_MAX_RANK]) {
    int32_t n[2] = {t[0]->ndim - 2, t[1]->ndim - 2};
    p->nbatch = n[0] > n[1] ? n[0] : n[1];
    for (int32_t d = 0; d < p->nbatch; d++) {
        p->shown[d] = 1;
        for (int i = 0; i < 2; i++) {
            int32_t at = d - (p->nbatch - n[i]);
            int64_t size = at < 0 ? 1 : t[i]->size[at];
            strides[i][d] = size == 1 ? 0 : t[i]->stride[at];
            if (size != 1 && p->shown[d] != 1 && p->shown[d] != size)
                return false;
            p->shown[d] = size != 1 ? size : p->shown[d];
        }
    }
    return true;
}

/* The rows and columns of t, a stack of nbatch matrices that are `step` apart. */
static void as_stack(kg_tensor *t, int64_t nbatch, int64_t step) {
    int32_t d = t->ndim - 2;
    int64_t size[2] = {t->size[d], t->size[d + 1]}, stride[2] = {t->stride[d], t->stride[d + 1]};
    t->ndim = 3;
    set_dim(t, 0, nbatch, step);
    set_dim(t, 1, size[0], stride[0]);
    set_dim(t, 2, size[1], stride[1]);
}

/* A matrix or vector on the right: the leading dims of input are more of its rows. */
static bool fold_rows(product *p, kg_tensor *x, const kg_tensor *given) {
    int32_t last = given->ndim - 1;
    int64_t m, step = given->size[last];
    if (!fold_one(given->size, last, given->stride, &m, &step))
        return false;
    x->ndim = 2;
    set_dim(x, 1, given->size[last], given->stride[last]);
    set_dim(x, 0, m, step);
    memcpy(p->shown, given->size, (size_t)last * sizeof(p->shown[0]));
    p->nbatch = 0;
    p->nrows = last;
    return true;
}

static int see_matmul(product *p, kg_error *err) {
    kg_tensor *x = &p->call.args[INPUT].u.t, *y = &p->call.args[SECOND].u.t;
    const bool row = x->ndim == 1, column = y->ndim == 1;
    int64_t nbatch = 1, steps[2] = {0, 0}, strides[2][KG_MAX_RANK];
    (void)err;
    if (x->ndim < 1 || y->ndim < 1 || x->dtype != y->dtype)
        return KG_ENOTFOUND;
    as_matrix(x, true);
    as_matrix(y, false);
    const kg_tensor given = *x;
    if (given.size[given.ndim - 1] != y->size[y->ndim - 2])
        return KG_ENOTFOUND;
    p->ncols = !column;
    if (y->ndim > 2 || !fold_rows(p, x, &given)) {
        const kg_tensor *const both[2] = {&given, y};
        const int64_t *const of[2] = {strides[0], strides[1]};
        if (!broadcast(p, both, strides) || !fold(p->shown, p->nbatch, of, 2, &nbatch, steps))
            return KG_ENOTFOUND;
        p->nrows = 1;
        p->shown[p->nbatch] = given.size[given.ndim - 2];
    }
    as_stack(x, nbatch, steps[0]);
    as_stack(y, nbatch, steps[1]);
    if (row) /* its one row is no dim of the result */
        p->nrows = 0;
    p->nshown = p->nbatch + p->nrows + p->ncols;
    if (p->nshown > KG_MAX_RANK)
        return KG_ENOTFOUND;
    if (p->ncols == 1)
        p->shown[p->nshown - 1] = y->size[2];
    return something(nbatch, x->size[1], y->size[2], y->size[1]) ? KG_OK : KG_ENOTFOUND;
}

static front linear = {.name = "linear",
                       .aten = "aten::linear",
                       .backend = "kgen::_linear",
                       .train = "kgen::_linear_train",
                       .noperands = 3,
                       .rank = 2,
                       .see = see_linear};
static front matmul = {.name = "matmul",
                       .aten = "aten::matmul",
                       .backend = "kgen::_matmul",
                       .train = "kgen::_matmul_train",
                       .noperands = 2,
                       .rank = 3,
                       .see = see_matmul};

/* The operands of a stack that stays as it is, since torch's own may have to take it. */
static int see(const front *f, const StableIValue *stack, product *p, kg_error *err) {
    kg_call *call = &p->call;
    int rc = KG_OK;
    call->nargs = f->noperands + 3;
    call->ncaptured = 0;
    call->nscalars = 0;
    call->program = NULL;
    call->skip_outputs = 0;
    call->device = KG_CPU;
    call->device_index = 0;
    for (size_t i = 0; i < call->nargs; i++)
        call->args[i].present = i < BIAS || (i < f->noperands && stack[i] != 0);
    for (size_t i = 0; rc == KG_OK && i < f->noperands; i++) {
        int32_t device, index;
        if (!call->args[i].present)
            continue;
        StableIValue slot = i == BIAS ? kg_slot_peek(stack[i]) : stack[i];
        rc = kg_torch_view(kg_slot_tensor(slot), &call->args[i].u.t, &device, &index, err);
        if (rc == KG_OK && i == INPUT)
            call->device = device, call->device_index = index;
        else if (rc == KG_OK && (device != call->device || index != call->device_index))
            rc = KG_ENOTFOUND; /* torch's own message says which device is which */
    }
    return rc == KG_OK ? f->see(p, err) : rc;
}

/* The contract's output in the dims that the user sees. */
static int show(const front *f, const product *p, void **out, kg_error *err) {
    int64_t stride[KG_MAX_RANK], next = 1;
    AtenTensorHandle made = NULL;
    if (p->nshown == f->rank && (f->rank == 2 || p->nbatch == 1))
        return KG_OK;
    for (int32_t d = p->nshown - 1; d >= 0; d--) {
        stride[d] = next;
        next *= p->shown[d];
    }
    int bad = kg_th.aoti_torch__reinterpret_tensor(*out, p->nshown, p->shown, stride, 0, &made);
    kg_tensor_drop(*out);
    *out = made;
    return bad ? kg_torch_failed("the output's shape", err) : KG_OK;
}

static int run(const front *f, product *p, void **out, kg_error *err) {
    void *outs[KG_MAX_OUTPUTS];
    int rc = kg_rt_run(f->op, &p->call, outs, err);
    if (rc == KG_OK) {
        *out = outs[0];
        rc = show(f, p, out, err);
    }
    return rc;
}

/* ---- without a Program ---- */

static void drop_operands(const front *f, const StableIValue *stack) {
    for (size_t i = 0; i < f->noperands; i++)
        if (i != BIAS)
            kg_tensor_drop(kg_slot_tensor(stack[i]));
        else if (stack[i] != 0)
            kg_tensor_drop(kg_slot_tensor(kg_slot_take(stack[i])));
}

static int body(const front *f, StableIValue *stack, kg_error *err) {
    product p;
    void *out = NULL;
    int rc = see(f, stack, &p, err);
    if (rc == KG_OK)
        rc = run(f, &p, &out, err);
    if (rc == KG_ENOTFOUND || rc == KG_EUNSUPPORTED)
        return kg_torch_call(f->aten, "", stack, err);
    drop_operands(f, stack);
    if (rc == KG_OK)
        stack[0] = kg_tensor_slot(out);
    return rc;
}

static void run_public(const front *f, StableIValue *stack) {
    kg_error e;
    bool grad = kg_th.aoti_torch_grad_mode_is_enabled();
    kg_shim_raise(kg_torch_call(grad ? f->train : f->backend, "", stack, &e), &e);
}

static void run_backend(const front *f, StableIValue *stack) {
    kg_error e;
    kg_shim_raise(body(f, stack, &e), &e);
}

/* ---- with a Program ---- */

/* What a stack came to; inputs: the operands that there are, then the captured tensors, owned. */
typedef struct mod_call {
    AtenTensorHandle inputs[3 + KG_MAX_CAPTURED];
    size_t noperands, ninputs;
    StringHandle text_handle;
    const char *text;
    size_t text_size;
    product p;
} mod_call;

static int mod_text(const front *f, mod_call *m, StableIValue slot, kg_error *err) {
    uintptr_t address = (uintptr_t)slot;
    memcpy(&m->text_handle, &address, sizeof(m->text_handle));
    if (kg_th.torch_string_c_str(m->text_handle, &m->text) ||
        kg_th.torch_string_length(m->text_handle, &m->text_size))
        return kg_fail(err, KG_EINVAL, "%s_mod: the program could not be read", f->name);
    return KG_OK;
}

/* Empties the stack. What the contract does not have is KG_ENOTFOUND or KG_EUNSUPPORTED, for the
 * reference to serve or to refuse; anything else ends the call. */
static int mod_take(const front *f, StableIValue *stack, mod_call *m, kg_error *err) {
    StableIValue numbers[KG_MAX_SCALARS];
    size_t n = 0, at = f->noperands;
    int seen = see(f, stack, &m->p, err);
    m->noperands = 0;
    for (size_t i = 0; i < at; i++)
        if (i != BIAS)
            m->inputs[m->noperands++] = kg_slot_tensor(stack[i]);
        else if (stack[i] != 0)
            m->inputs[m->noperands++] = kg_slot_tensor(kg_slot_take(stack[i]));
    m->ninputs = m->noperands;
    int rc = kg_list_take(stack[at], m->inputs + m->noperands, KG_MAX_CAPTURED, &n, err);
    m->ninputs += rc == KG_OK ? n : 0;
    m->p.call.ncaptured = m->ninputs - m->noperands;
    int rc2 = kg_list_numbers(stack[at + 1], numbers, KG_MAX_SCALARS, &n, rc == KG_OK ? err : NULL);
    m->p.call.nscalars = rc2 == KG_OK ? n : 0;
    for (size_t i = 0; i < m->p.call.nscalars; i++)
        m->p.call.scalars[i] = kg_f64_slot(numbers[i]);
    rc = rc == KG_OK ? rc2 : rc;
    rc2 = mod_text(f, m, stack[at + 2], rc == KG_OK ? err : NULL);
    rc = rc == KG_OK ? rc2 : rc;
    return rc == KG_OK ? seen : rc;
}

static void mod_drop(mod_call *m, bool inputs) {
    for (size_t i = 0; inputs && i < m->ninputs; i++)
        kg_tensor_drop(m->inputs[i]);
    kg_th.torch_delete_string(m->text_handle);
}

/* A captured tensor as the Program reads it, in the dims of the contract's output. */
static int spread(const front *f, const product *p, kg_tensor *t) {
    int64_t stride[KG_MAX_RANK], size[3], step[3] = {0, 0, 0};
    const int32_t parts[3] = {p->nbatch, p->nrows, p->ncols}, first = 3 - f->rank;
    if (t->ndim > p->nshown)
        return KG_ENOTFOUND;
    for (int32_t d = 0; d < p->nshown; d++) {
        int32_t at = d - (p->nshown - t->ndim);
        int64_t n = at < 0 ? 1 : t->size[at];
        if (n != 1 && n != p->shown[d])
            return KG_ENOTFOUND;
        stride[d] = n == 1 ? 0 : t->stride[at];
    }
    for (int32_t i = 0, from = 0; i < 3; from += parts[i++])
        if (!fold_one(p->shown + from, parts[i], stride + from, &size[i], &step[i]))
            return KG_ENOTFOUND;
    t->ndim = f->rank;
    for (int32_t i = first; i < 3; i++)
        set_dim(t, i - first, size[i], step[i]);
    return KG_OK;
}

static int mod_captured(const front *f, mod_call *m, kg_error *err) {
    kg_call *c = &m->p.call;
    int32_t dtypes[KG_MAX_CAPTURED], ranks[KG_MAX_CAPTURED];
    size_t n = kg_program_captured(c->program, dtypes, ranks);
    int rc = KG_OK;
    for (size_t i = 0; rc == KG_OK && i < c->ncaptured; i++) {
        int32_t device, index;
        rc = kg_torch_view(m->inputs[m->noperands + i], &c->captured[i], &device, &index, err);
        if (rc == KG_OK && (device != c->device || index != c->device_index))
            rc = kg_fail(err, KG_EINVAL,
                         "%s_mod: captured tensor %zu is on another device than input", f->name, i);
        if (rc == KG_OK && i < n && ranks[i] != 0 && ranks[i] != f->rank)
            rc = kg_fail(err, KG_EINVAL,
                         "%s_mod: the program reads captured tensor %zu with %d indices; it has "
                         "%d, or none for a tensor of no dims",
                         f->name, i, (int)ranks[i], (int)f->rank);
        if (rc == KG_OK && i < n && ranks[i] != 0)
            rc = spread(f, &m->p, &c->captured[i]);
    }
    return rc;
}

static int mod_serve(const front *f, mod_call *m, bool seen, void **out, kg_error *err) {
    kg_call *c = &m->p.call;
    int rc = KG_OK;
    if (m->text_size > 0) {
        rc = kg_rt_program(m->text, m->text_size, &c->program, err);
        if (rc == KG_OK && !kg_program_has(c->program, "EPILOGUE"))
            rc = kg_fail(err, KG_EINVAL, "%s_mod: the program has no epilogue section", f->name);
        c->args[c->nargs - 1].present = true;
    } else if (c->ncaptured > 0 || c->nscalars > 0) {
        rc = kg_fail(err, KG_EINVAL,
                     "%s_mod: an empty program takes no captured tensors and no scalars", f->name);
    }
    if (rc == KG_OK && !seen)
        rc = KG_ENOTFOUND;
    if (rc == KG_OK)
        rc = mod_captured(f, m, err);
    if (rc == KG_OK && c->program != NULL)
        rc = kg_program_check(c->program, c, err);
    return rc == KG_OK ? run(f, &m->p, out, err) : rc;
}

static bool for_torch(int rc) {
    return rc == KG_ENOTFOUND || rc == KG_EUNSUPPORTED;
}

static int mod_body(const front *f, StableIValue *stack, kg_error *err) {
    mod_call m;
    void *out = NULL;
    AtenTensorHandle result = NULL;
    int rc = mod_take(f, stack, &m, err);
    if (rc == KG_OK || for_torch(rc))
        rc = mod_serve(f, &m, rc == KG_OK, &out, err);
    bool fall_back = for_torch(rc);
    if (fall_back) {
        rc = kg_shim_python(f->op, &m.p.call, m.text, m.inputs, m.ninputs, &result, 1, err);
        out = result;
    }
    mod_drop(&m, !fall_back);
    if (rc == KG_OK)
        stack[0] = kg_tensor_slot(out);
    return rc;
}

static void run_mod(const front *f, StableIValue *stack) {
    kg_error e;
    kg_shim_raise(mod_body(f, stack, &e), &e);
}

/* ---- the boxed functions ---- */

#define BOXED(name, call)                                                                          \
    static void name(StableIValue *stack, uint64_t nin, uint64_t nout) {                           \
        (void)nin;                                                                                 \
        (void)nout;                                                                                \
        call;                                                                                      \
    }

BOXED(linear_public, run_public(&linear, stack))
BOXED(linear_backend, run_backend(&linear, stack))
BOXED(linear_mod, run_mod(&linear, stack))
BOXED(matmul_public, run_public(&matmul, stack))
BOXED(matmul_backend, run_backend(&matmul, stack))
BOXED(matmul_mod, run_mod(&matmul, stack))

/* ---- registration ---- */

#define LINEAR "(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor"
#define MATMUL "(Tensor input, Tensor other) -> Tensor"
#define OF_PROGRAM "Tensor[] captured, float[] scalars, str program"
#define LINEAR_MOD "(Tensor input, Tensor weight, Tensor? bias, " OF_PROGRAM ") -> Tensor"
#define MATMUL_MOD "(Tensor input, Tensor other, " OF_PROGRAM ") -> Tensor"

static const char *const schemas[] = {
    "linear" LINEAR,
    "_linear" LINEAR,
    "_linear_train" LINEAR,
    "matmul" MATMUL,
    "_matmul" MATMUL,
    "_matmul_train" MATMUL,
    "linear_mod" LINEAR_MOD,
    "linear_mod_train" LINEAR_MOD,
    "matmul_mod" MATMUL_MOD,
    "matmul_mod_train" MATMUL_MOD,
    /* Implemented in Python: torch's own, differentiated again. */
    "_linear_mod_backward(Tensor grad, Tensor input, Tensor weight, Tensor? bias, " OF_PROGRAM
    ", bool[] wanted) -> Tensor[]",
    "_matmul_mod_backward(Tensor grad, Tensor input, Tensor other, " OF_PROGRAM
    ", bool[] wanted) -> Tensor[]",
};

static const struct {
    const char *name;
    kg_torch_boxed fn;
} impls[] = {
    {"_linear", linear_backend}, {"_linear_train", linear_backend},
    {"linear_mod", linear_mod},  {"linear_mod_train", linear_mod},
    {"_matmul", matmul_backend}, {"_matmul_train", matmul_backend},
    {"matmul_mod", matmul_mod},  {"matmul_mod_train", matmul_mod},
};

int kg_shim_linear(kg_error *err) {
    int rc = kg_rt_find_op("linear", &linear.op, err);
    if (rc == KG_OK)
        rc = kg_rt_find_op("matmul", &matmul.op, err);
    for (size_t i = 0; rc == KG_OK && i < sizeof(schemas) / sizeof(schemas[0]); i++)
        rc = kg_shim_define(schemas[i], err);
    if (rc == KG_OK)
        rc = kg_shim_impl("CompositeImplicitAutograd", "linear", linear_public, err);
    if (rc == KG_OK)
        rc = kg_shim_impl("CompositeImplicitAutograd", "matmul", matmul_public, err);
    for (size_t i = 0; rc == KG_OK && i < sizeof(impls) / sizeof(impls[0]); i++) {
        rc = kg_shim_impl("CPU", impls[i].name, impls[i].fn, err);
        if (rc == KG_OK)
            rc = kg_shim_impl("CUDA", impls[i].name, impls[i].fn, err);
    }
    return rc;
}
