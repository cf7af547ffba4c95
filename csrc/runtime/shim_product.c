/* What linear, matmul and conv2d have in common between torch's dispatcher and the runtime: reading
 * a stack, a Kernel or torch's own, epilogues with their captured tensors in the dims of the
 * contract's output. What the calls of the contracts are, the fronts' own files say. */
#include "runtime/shim_product.h"

#include <string.h>

#include "runtime/program.h"

/* ---- folding dims ---- */

bool kg_product_fold(const int64_t *size, int32_t n, const int64_t *const *strides, int ntensors,
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

bool kg_product_fold_one(const int64_t *size, int32_t n, const int64_t *stride, int64_t *count,
                         int64_t *step) {
    return kg_product_fold(size, n, &stride, 1, count, step);
}

void kg_product_set_dim(kg_tensor *t, int32_t d, int64_t size, int64_t stride) {
    t->size[d] = size;
    t->stride[d] = stride;
}

/* ---- reading a stack ---- */

static void see_attribute(kg_arg_type type, StableIValue slot, kg_value *v) {
    StableIValue numbers[KG_MAX_LIST];
    kg_error ignored; /* a list too long is torch's to refuse */
    v->present = true;
    if (type != KG_ARG_INT_LIST) {
        v->u.i = (int64_t)slot;
        return;
    }
    v->u.list.n = 0;
    if (kg_list_peek(slot, numbers, KG_MAX_LIST, &v->u.list.n, &ignored) != KG_OK)
        v->u.list.n = 0;
    for (size_t i = 0; i < v->u.list.n; i++)
        v->u.list.v[i] = (int64_t)numbers[i];
}

/* The operands and attributes of a stack that stays as it is, since torch's own may have to take
 * it. */
static int see(const kg_product_front *f, const StableIValue *stack, kg_product *p, kg_error *err) {
    kg_call *call = &p->call;
    int rc = KG_OK;
    call->nargs = f->noperands + f->nattrs + f->nmore + 3;
    call->ncaptured = 0;
    call->nscalars = 0;
    call->program = NULL;
    call->skip_outputs = 0;
    call->device = KG_CPU;
    call->device_index = 0;
    for (size_t i = 0; i < call->nargs; i++)
        call->args[i].present = i < KG_BIAS || (i < f->noperands && stack[i] != 0);
    for (size_t i = 0; i < f->nattrs; i++)
        see_attribute(f->attrs[i], stack[f->noperands + i], &call->args[f->noperands + i]);
    for (int32_t d = 0; d < KG_MAX_RANK; d++)
        p->order[d] = d;
    for (size_t i = 0; rc == KG_OK && i < f->noperands; i++) {
        int32_t device, index;
        if (!call->args[i].present)
            continue;
        StableIValue slot = i == KG_BIAS ? kg_slot_peek(stack[i]) : stack[i];
        rc = kg_torch_view(kg_slot_tensor(slot), &call->args[i].u.t, &device, &index, err);
        if (rc == KG_OK && i == KG_INPUT)
            call->device = device, call->device_index = index;
        else if (rc == KG_OK && (device != call->device || index != call->device_index))
            rc = KG_ENOTFOUND; /* torch's own message says which device is which */
    }
    return rc == KG_OK ? f->see(p, err) : rc;
}

/* The contract's output in the dims that the user sees. */
static int show(const kg_product_front *f, const kg_product *p, void **out, kg_error *err) {
    int64_t size[KG_MAX_RANK], stride[KG_MAX_RANK], next = 1;
    AtenTensorHandle made = NULL;
    bool alike = f->rank == 2 || (p->nbatch == 1 && p->nrows == 1 && p->ncols == 1);
    if (p->nshown == f->rank && alike)
        return KG_OK;
    for (int32_t d = p->nshown - 1; d >= 0; d--) {
        size[p->order[d]] = p->shown[d];
        stride[p->order[d]] = next;
        next *= p->shown[d];
    }
    int bad = kg_th.aoti_torch__reinterpret_tensor(*out, p->nshown, size, stride, 0, &made);
    kg_tensor_drop(*out);
    *out = made;
    return bad ? kg_torch_failed("the output's shape", err) : KG_OK;
}

static int run(const kg_product_front *f, kg_product *p, void **out, kg_error *err) {
    void *outs[KG_MAX_OUTPUTS];
    int rc = kg_rt_run(f->op, &p->call, outs, err);
    if (rc == KG_OK) {
        *out = outs[0];
        rc = show(f, p, out, err);
    }
    return rc;
}

/* ---- without a Program ---- */

static void drop_attributes(const kg_product_front *f, const StableIValue *stack) {
    for (size_t i = 0; i < f->nattrs; i++)
        if (f->attrs[i] == KG_ARG_INT_LIST)
            kg_list_drop(stack[f->noperands + i]);
}

static void drop_operands(const kg_product_front *f, const StableIValue *stack) {
    for (size_t i = 0; i < f->noperands; i++)
        if (i != KG_BIAS)
            kg_tensor_drop(kg_slot_tensor(stack[i]));
        else if (stack[i] != 0)
            kg_tensor_drop(kg_slot_tensor(kg_slot_take(stack[i])));
    drop_attributes(f, stack);
}

static int body(const kg_product_front *f, StableIValue *stack, kg_error *err) {
    kg_product p;
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

void kg_product_public(const kg_product_front *f, StableIValue *stack) {
    kg_error e;
    bool grad = kg_th.aoti_torch_grad_mode_is_enabled();
    kg_shim_raise(kg_torch_call(grad ? f->train : f->backend, "", stack, &e), &e);
}

void kg_product_backend(const kg_product_front *f, StableIValue *stack) {
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
    kg_product p;
} mod_call;

static int mod_text(const kg_product_front *f, mod_call *m, StableIValue slot, kg_error *err) {
    uintptr_t address = (uintptr_t)slot;
    memcpy(&m->text_handle, &address, sizeof(m->text_handle));
    if (kg_th.torch_string_c_str(m->text_handle, &m->text) ||
        kg_th.torch_string_length(m->text_handle, &m->text_size))
        return kg_fail(err, KG_EINVAL, "%s_mod: the program could not be read", f->name);
    return KG_OK;
}

/* Empties the stack. What the contract does not have is KG_ENOTFOUND or KG_EUNSUPPORTED, for the
 * reference to serve or to refuse; anything else ends the call. */
static int mod_take(const kg_product_front *f, StableIValue *stack, mod_call *m, kg_error *err) {
    StableIValue numbers[KG_MAX_SCALARS];
    size_t n = 0, at = f->noperands + f->nattrs;
    int seen = see(f, stack, &m->p, err);
    m->noperands = 0;
    drop_attributes(f, stack);
    for (size_t i = 0; i < f->noperands; i++)
        if (i != KG_BIAS)
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
static int spread(const kg_product_front *f, const kg_product *p, kg_tensor *t) {
    int64_t stride[KG_MAX_RANK], size[3], step[3] = {0, 0, 0};
    const int32_t parts[3] = {p->nbatch, p->nrows, p->ncols}, first = 3 - f->rank;
    if (t->ndim > p->nshown)
        return KG_ENOTFOUND;
    for (int32_t d = 0; d < p->nshown; d++) {
        int32_t at = p->order[d] - (p->nshown - t->ndim);
        int64_t n = at < 0 ? 1 : t->size[at];
        if (n != 1 && n != p->shown[d])
            return KG_ENOTFOUND;
        stride[d] = n == 1 ? 0 : t->stride[at];
    }
    for (int32_t i = 0, from = 0; i < 3; from += parts[i++])
        if (!kg_product_fold_one(p->shown + from, parts[i], stride + from, &size[i], &step[i]))
            return KG_ENOTFOUND;
    t->ndim = f->rank;
    for (int32_t i = first; i < 3; i++)
        kg_product_set_dim(t, i - first, size[i], step[i]);
    return KG_OK;
}

static int mod_captured(const kg_product_front *f, mod_call *m, kg_error *err) {
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

static int mod_serve(const kg_product_front *f, mod_call *m, bool seen, void **out, kg_error *err) {
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

static int mod_body(const kg_product_front *f, StableIValue *stack, kg_error *err) {
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

void kg_product_mod(const kg_product_front *f, StableIValue *stack) {
    kg_error e;
    kg_shim_raise(mod_body(f, stack, &e), &e);
}

/* ---- registration ---- */

int kg_product_register(const char *const *schemas, size_t nschemas, const kg_product_impl *impls,
                        size_t nimpls, kg_error *err) {
    int rc = KG_OK;
    for (size_t i = 0; rc == KG_OK && i < nschemas; i++)
        rc = kg_shim_define(schemas[i], err);
    for (size_t i = 0; rc == KG_OK && i < nimpls; i++) {
        rc = kg_shim_impl("CPU", impls[i].name, impls[i].fn, err);
        if (rc == KG_OK)
            rc = kg_shim_impl("CUDA", impls[i].name, impls[i].fn, err);
    }
    return rc;
}
