/* Gives dims, tunables, attributes, tensors' fields and device constants to expressions. What a
 * name may be was checked when the contract or plan was read; here a name that is not there is
 * still an error, since a flat index may say anything: KG_EFORMAT, never the KG_ENOTFOUND of a plan
 * that is only not for this call.
 */
#include "runtime/scope.h"

#include <string.h>

#include "runtime/program.h"

/* Kernels may count on these where kgen itself allocates: torch's allocators and the judge's both
 * give at least as much. */
#define ALIGN_CPU_OUTPUT 64
#define ALIGN_CUDA_OUTPUT 256

const char *const kg_constant_names[] = {"NUM_SMS",   "MAX_SHARED", "NUM_THREADS",  "ARCH",
                                         "HAS_AMX",   "HAS_SCORE",  "HAS_MASK",     "MASK_OF_B",
                                         "MASK_OF_H", "MASK_WIDTH", "HAS_EPILOGUE", NULL};

static bool same(const char *a, const char *b) {
    return strcmp(a, b) == 0;
}

static bool constant(const kg_scope *s, const char *name, int64_t *out) {
    const kg_constants *c = s->constants;
    if (c == NULL)
        return false;
    if (same(name, "NUM_THREADS"))
        *out = c->num_threads;
    else if (same(name, "NUM_SMS"))
        *out = c->num_sms;
    else if (same(name, "MAX_SHARED"))
        *out = c->max_shared;
    else if (same(name, "ARCH"))
        *out = c->arch;
    else if (same(name, "HAS_AMX"))
        *out = c->has_amx;
    else if (same(name, "HAS_SCORE"))
        *out = kg_program_has(s->call->program, "SCORE");
    else if (same(name, "HAS_MASK"))
        *out = kg_program_has(s->call->program, "MASK");
    else if (same(name, "MASK_OF_B"))
        *out = kg_program_mask_reads(s->call->program, 'b');
    else if (same(name, "MASK_OF_H"))
        *out = kg_program_mask_reads(s->call->program, 'h');
    else if (same(name, "MASK_WIDTH"))
        *out = kg_program_mask_width(s->call->program, s->call);
    else if (same(name, "HAS_EPILOGUE"))
        *out = kg_program_has(s->call->program, "EPILOGUE");
    else
        return false;
    return true;
}

static bool tunable(const kg_scope *s, const char *name, int64_t *out) {
    if (s->plan == NULL || s->tuning == NULL)
        return false;
    for (size_t i = 0; i < s->plan->ntunables; i++)
        if (same(s->plan->tunables[i].name, name)) {
            *out = s->tuning->value[i];
            return true;
        }
    return false;
}

static int attribute(const kg_scope *s, int i, int64_t *out, kg_error *err) {
    const kg_op_arg *arg = &s->op->args[i];
    const kg_value *v = &s->call->args[i];
    switch (arg->type) {
    case KG_ARG_INT_OPT:
        if (!v->present)
            return kg_fail(err, KG_EINVAL, "%s is None; guard with present(%s)", arg->name,
                           arg->name);
        *out = v->u.i;
        return KG_OK;
    case KG_ARG_INT:
        *out = v->u.i;
        return KG_OK;
    case KG_ARG_BOOL:
        *out = v->u.b;
        return KG_OK;
    default:
        return kg_fail(err, KG_EINVAL,
                       "%s has type %s; only int and bool attributes are numbers here", arg->name,
                       kg_arg_type_name(arg->type));
    }
}

static int by_name(const kg_scope *s, const char *name, int64_t *out, kg_error *err) {
    int i = kg_op_dim_index(s->op, name);
    if (i >= 0) {
        if ((s->bound >> i & 1) == 0)
            return kg_fail(err, KG_EINVAL, "dim %s has no value yet", name);
        *out = s->dims.value[i];
        return KG_OK;
    }
    if (tunable(s, name, out) || constant(s, name, out))
        return KG_OK;
    i = kg_op_arg_index(s->op, name);
    if (i >= 0)
        return attribute(s, i, out, err);
    i = kg_dtype_parse(name);
    if (i >= 0) {
        *out = i;
        return KG_OK;
    }
    return kg_fail(err, KG_EFORMAT, "unknown name %s", name);
}

static int list_of(const kg_scope *s, const char *name, const kg_value **out, kg_error *err) {
    int i = kg_op_arg_index(s->op, name);
    if (i < 0 || s->op->args[i].type != KG_ARG_INT_LIST)
        return kg_fail(err, KG_EFORMAT, "%s is no int[] attribute", name);
    *out = &s->call->args[i];
    if ((*out)->u.list.n > KG_MAX_LIST)
        return kg_fail(err, KG_EINVAL, "%s has more than %d elements", name, KG_MAX_LIST);
    return KG_OK;
}

static int element(const kg_scope *s, const kg_ref *ref, int64_t *out, kg_error *err) {
    const kg_value *v = NULL;
    int rc = list_of(s, ref->name, &v, err);
    if (rc < 0)
        return rc;
    int64_t i = ref->args[0], n = (int64_t)v->u.list.n;
    if (i < -n || i >= n)
        return kg_fail(err, KG_EINVAL, "%s[%lld] is out of range: it has %lld elements", ref->name,
                       (long long)i, (long long)n);
    *out = v->u.list.v[i < 0 ? i + n : i];
    return KG_OK;
}

static int is_present(const kg_scope *s, const char *name, int64_t *out, kg_error *err) {
    int i = kg_op_arg_index(s->op, name);
    if (i >= 0) {
        *out = s->call->args[i].present;
        return KG_OK;
    }
    i = kg_op_output_index(s->op, name);
    if (i < 0)
        return kg_fail(err, KG_EFORMAT, "%s is no argument and no output", name);
    *out = (s->call->skip_outputs >> i & 1) == 0;
    return KG_OK;
}

/* A tensor by name, and the alignment that align() gives. */
static int tensor_of(const kg_scope *s, const char *name, const kg_tensor **out, int64_t *align,
                     kg_error *err) {
    int i = kg_op_arg_index(s->op, name);
    if (i >= 0 && kg_arg_is_tensor(s->op->args[i].type)) {
        const kg_value *v = &s->call->args[i];
        if (!v->present)
            return kg_fail(err, KG_EINVAL, "%s is absent; guard with present(%s)", name, name);
        *out = &v->u.t;
        bool recorded = v->u.t.data == NULL && s->call->align[i] > 0;
        *align = recorded ? s->call->align[i] : kg_tensor_align(&v->u.t);
        return KG_OK;
    }
    i = kg_op_output_index(s->op, name);
    if (i >= 0 && s->outputs != NULL) {
        *out = &s->outputs[i];
        *align = s->call->device == KG_CUDA ? ALIGN_CUDA_OUTPUT : ALIGN_CPU_OUTPUT;
        return KG_OK;
    }
    return kg_fail(err, KG_EFORMAT, "%s is no tensor here", name);
}

static int dim_number(const char *name, const char *what, int64_t i, int ndim, int *out,
                      kg_error *err) {
    if (i < -(int64_t)ndim || i >= ndim)
        return kg_fail(err, KG_EINVAL, "%s.%s(%lld) is out of range: %s has %d dims", name, what,
                       (long long)i, name, ndim);
    *out = (int)(i < 0 ? i + ndim : i);
    return KG_OK;
}

static int prod(const kg_tensor *t, const kg_ref *ref, int64_t *out, kg_error *err) {
    int64_t from = ref->args[0], to = ref->args[1], n = 1;
    if (from < 0 || to < 0 || from > t->ndim || to > t->ndim)
        return kg_fail(err, KG_EINVAL, "%s.prod(%lld, %lld) is out of range: %s has %d dims",
                       ref->object, (long long)from, (long long)to, ref->object, t->ndim);
    for (int64_t i = from; i < to; i++)
        if (__builtin_mul_overflow(n, t->size[i], &n))
            return kg_fail(err, KG_EOVERFLOW, "%s.prod(%lld, %lld) is out of range", ref->object,
                           (long long)from, (long long)to);
    *out = n;
    return KG_OK;
}

static int method(const kg_tensor *t, const kg_ref *ref, int64_t *out, kg_error *err) {
    if (same(ref->name, "prod") && ref->nargs == 2)
        return prod(t, ref, out, err);
    bool size = same(ref->name, "size");
    if (ref->nargs != 1 || !(size || same(ref->name, "stride")))
        return kg_fail(err, KG_EFORMAT, "%s has no %s with %zu arguments", ref->object, ref->name,
                       ref->nargs);
    int i = 0, rc = dim_number(ref->object, ref->name, ref->args[0], t->ndim, &i, err);
    if (rc == KG_OK)
        *out = size ? t->size[i] : t->stride[i];
    return rc;
}

static int field(const kg_tensor *t, const kg_ref *ref, int64_t *out, kg_error *err) {
    if (same(ref->name, "ndim"))
        *out = t->ndim;
    else if (same(ref->name, "dtype"))
        *out = t->dtype;
    else if (same(ref->name, "numel"))
        *out = kg_tensor_numel(t);
    else if (same(ref->name, "contiguous"))
        *out = kg_tensor_contiguous(t);
    else
        return kg_fail(err, KG_EFORMAT, "%s has no field %s", ref->object, ref->name);
    return KG_OK;
}

static int of_object(const kg_scope *s, const kg_ref *ref, int64_t *out, kg_error *err) {
    const kg_tensor *t = NULL;
    const kg_value *list = NULL;
    int64_t align = 0;
    int rc = KG_OK;
    if (ref->kind == KG_REF_CALL && same(ref->name, "present"))
        return is_present(s, ref->object, out, err);
    if (ref->kind == KG_REF_CALL && same(ref->name, "len")) {
        rc = list_of(s, ref->object, &list, err);
        if (rc == KG_OK)
            *out = (int64_t)list->u.list.n;
        return rc;
    }
    rc = tensor_of(s, ref->object, &t, &align, err);
    if (rc < 0)
        return rc;
    if (ref->kind == KG_REF_METHOD)
        return method(t, ref, out, err);
    if (ref->kind == KG_REF_FIELD)
        return field(t, ref, out, err);
    if (!same(ref->name, "align"))
        return kg_fail(err, KG_EFORMAT, "no function %s", ref->name);
    *out = align;
    return KG_OK;
}

int kg_scope_resolve(void *scope, const kg_ref *ref, int64_t *out, kg_error *err) {
    const kg_scope *s = scope;
    switch (ref->kind) {
    case KG_REF_NAME:
        return by_name(s, ref->name, out, err);
    case KG_REF_INDEX:
        return ref->nargs == 1 ? element(s, ref, out, err)
                               : kg_fail(err, KG_EINVAL, "%s takes one index", ref->name);
    default:
        return of_object(s, ref, out, err);
    }
}

int kg_scope_eval(kg_scope *scope, const kg_expr *e, int64_t otherwise, int64_t *out,
                  kg_error *err) {
    if (e == NULL) {
        *out = otherwise;
        return KG_OK;
    }
    return kg_expr_eval(e, kg_scope_resolve, scope, out, err);
}
