/* Checks one call against a contract and binds its dims. A call that does not fit is told which
 * argument, what came and what would be right. */
#include <stdio.h>
#include <string.h>

#include "runtime/scope.h"

/* What the message of a failing check says of the names in its expression. */
typedef struct mentions {
    const kg_scope *scope;
    int last,
        hide; /* the last dim named that a shape binds; the dim whose value is not listed; or -1 */
    char values[160];
} mentions;

static void dtype_names(uint32_t set, char *out, size_t n) {
    size_t at = 0;
    out[0] = '\0';
    for (int i = 0; i < KG_DTYPE_COUNT && at < n; i++)
        if ((set >> i & 1) != 0) {
            int w = snprintf(out + at, n - at, "%s%s", at > 0 ? ", " : "", kg_dtype_name(i));
            at += w > 0 ? (size_t)w : 0;
        }
}

static void shape_names(const kg_op_arg *a, char *out, size_t n) {
    size_t at = 0;
    out[0] = '\0';
    for (size_t d = 0; d < a->rank && at < n; d++) {
        int w = snprintf(out + at, n - at, "%s%s", d > 0 ? ", " : "", kg_expr_text(a->shape[d]));
        at += w > 0 ? (size_t)w : 0;
    }
}

static int check_dtype(const kg_op *op, const kg_call *call, size_t i, kg_error *err) {
    const kg_op_arg *a = &op->args[i];
    const kg_tensor *t = &call->args[i].u.t;
    const char *found = kg_dtype_name(t->dtype);
    char allowed[160];
    if (found == NULL)
        return kg_fail(err, KG_EUNSUPPORTED, "%s: %s has an unknown dtype (%d)", op->name, a->name,
                       (int)t->dtype);
    if (a->same_dtype_as >= 0) {
        int want = kg_op_arg_dtype(op, call, (size_t)a->same_dtype_as);
        if (t->dtype != want)
            return kg_fail(err, KG_EINVAL, "%s: %s is %s, but %s is %s; they must be the same",
                           op->name, a->name, found, op->args[a->same_dtype_as].name,
                           kg_dtype_name(want));
        return KG_OK;
    }
    if ((a->dtypes >> t->dtype & 1) != 0)
        return KG_OK;
    dtype_names(a->dtypes, allowed, sizeof allowed);
    return kg_fail(err, KG_EUNSUPPORTED, "%s: %s is %s; it may be %s", op->name, a->name, found,
                   allowed);
}

static int check_tensor(const kg_op *op, const kg_call *call, size_t i, kg_error *err) {
    const kg_op_arg *a = &op->args[i];
    const kg_tensor *t = &call->args[i].u.t;
    char shape[160];
    if (t->ndim < 0 || t->ndim > KG_MAX_RANK)
        return kg_fail(err, KG_EUNSUPPORTED, "%s: %s has %d dims; at most %d are supported",
                       op->name, a->name, t->ndim, KG_MAX_RANK);
    for (int d = 0; d < t->ndim; d++)
        if (t->size[d] < 0)
            return kg_fail(err, KG_EINVAL, "%s: %s has size %lld in dim %d", op->name, a->name,
                           (long long)t->size[d], d);
    if (!a->shaped || (size_t)t->ndim == a->rank)
        return check_dtype(op, call, i, err);
    shape_names(a, shape, sizeof shape);
    return kg_fail(err, KG_EINVAL, "%s: %s has %d dims; it must have %zu (%s)", op->name, a->name,
                   t->ndim, a->rank, shape);
}

static int check_arg(const kg_op *op, const kg_call *call, size_t i, kg_error *err) {
    const kg_op_arg *a = &op->args[i];
    bool optional =
        a->type == KG_ARG_TENSOR_OPT || a->type == KG_ARG_INT_OPT || a->type == KG_ARG_FLOAT_OPT;
    if (!kg_arg_is_tensor(a->type) && !kg_arg_is_attr(a->type))
        return KG_OK;
    if (!call->args[i].present)
        return optional ? KG_OK
                        : kg_fail(err, KG_EINVAL, "%s: %s is missing; it must be a %s", op->name,
                                  a->name, kg_arg_type_name(a->type));
    return kg_arg_is_tensor(a->type) ? check_tensor(op, call, i, err) : KG_OK;
}

/* The argument and dim of it that bound dim `dim`, or false. */
static bool binder(const kg_op *op, const kg_call *call, int dim, size_t *arg, size_t *at) {
    for (size_t i = 0; i < op->nargs; i++) {
        const kg_op_arg *a = &op->args[i];
        if (!kg_arg_is_tensor(a->type) || !a->shaped || !call->args[i].present)
            continue;
        for (size_t d = 0; d < a->rank; d++)
            if (a->shape_dim[d] == dim) {
                *arg = i;
                *at = d;
                return true;
            }
    }
    return false;
}

static int wrong_size(const kg_scope *s, size_t i, size_t d, int64_t want, kg_error *err) {
    const kg_op_arg *a = &s->op->args[i];
    size_t from = 0, at = 0;
    long long size = (long long)s->call->args[i].u.t.size[d];
    if (a->shape_dim[d] >= 0 && binder(s->op, s->call, a->shape_dim[d], &from, &at))
        return kg_fail(err, KG_EINVAL,
                       "%s: %s has size %lld in dim %zu (%s), but %s has %lld in dim %zu",
                       s->op->name, a->name, size, d, kg_expr_text(a->shape[d]),
                       s->op->args[from].name, (long long)want, at);
    return kg_fail(err, KG_EINVAL, "%s: %s has size %lld in dim %zu; %s is %lld", s->op->name,
                   a->name, size, d, kg_expr_text(a->shape[d]), (long long)want);
}

static int bind_shape(kg_scope *s, size_t i, kg_error *err) {
    const kg_op_arg *a = &s->op->args[i];
    const kg_tensor *t = &s->call->args[i].u.t;
    for (size_t d = 0; d < a->rank; d++) {
        int dim = a->shape_dim[d];
        int64_t want = 0;
        if (dim >= 0 && (s->bound >> dim & 1) == 0) {
            s->dims.value[dim] = t->size[d];
            s->bound |= 1U << dim;
            continue;
        }
        int rc = kg_scope_eval(s, a->shape[d], 0, &want, err);
        if (rc < 0)
            return kg_fail_prefix(err, rc, "%s: %s, dim %zu", s->op->name, a->name, d);
        if (want != t->size[d])
            return wrong_size(s, i, d, want, err);
    }
    return KG_OK;
}

static int mention(void *ctx, const kg_ref *ref, kg_error *err) {
    mentions *m = ctx;
    int64_t value = 0;
    char text[96];
    (void)err;
    if (ref->kind != KG_REF_NAME || kg_scope_resolve((void *)m->scope, ref, &value, NULL) < 0)
        return KG_OK;
    int dim = kg_op_dim_index(m->scope->op, ref->name);
    if (dim >= 0 && m->scope->op->dims[dim].expr == NULL)
        m->last = dim;
    size_t at = strlen(m->values);
    snprintf(text, sizeof text, "%s = %lld", ref->name, (long long)value);
    if ((dim < 0 || dim != m->hide) && strstr(m->values, text) == NULL)
        snprintf(m->values + at, sizeof m->values - at, "%s%s", at > 0 ? ", " : " (", text);
    return KG_OK;
}

/* "attention: key has size 3 in dim 1 (HKV), but HQ % HKV == 0 must hold (HQ = 8): why" */
static int check_failed(const kg_scope *s, const kg_op_check *check, kg_error *err) {
    mentions m = {.scope = s, .last = -1, .hide = -1};
    size_t arg = 0, at = 0;
    char where[256] = "";
    kg_expr_visit(check->expr, mention, &m, NULL);
    if (m.last >= 0 && binder(s->op, s->call, m.last, &arg, &at)) {
        snprintf(where, sizeof where, "%.100s has size %lld in dim %zu (%.100s), but ",
                 s->op->args[arg].name, (long long)s->call->args[arg].u.t.size[at], at,
                 s->op->dims[m.last].name);
        m = (mentions){.scope = s, .last = -1, .hide = m.last};
        kg_expr_visit(check->expr, mention, &m, NULL);
    }
    const char *message = check->message != NULL ? check->message : "";
    return kg_fail(err, KG_EINVAL, "%s: %s%s must hold%s%s%s%s", s->op->name, where,
                   kg_expr_text(check->expr), m.values, *m.values != '\0' ? ")" : "",
                   *message != '\0' ? ": " : "", message);
}

static int run_checks(kg_scope *s, kg_error *err) {
    for (size_t i = 0; i < s->op->nchecks; i++) {
        int64_t holds = 0;
        int rc = kg_scope_eval(s, s->op->checks[i].expr, 1, &holds, err);
        if (rc < 0)
            return kg_fail_prefix(err, rc, "%s: checks[%zu]", s->op->name, i);
        if (holds == 0)
            return check_failed(s, &s->op->checks[i], err);
    }
    return KG_OK;
}

/* A dim that cannot be computed is mostly a call that a check refuses with a better message. */
static int derive_failed(kg_scope *s, size_t dim, int rc, kg_error *err) {
    kg_fail_prefix(err, rc, "%s: dim %s", s->op->name, s->op->dims[dim].name);
    for (size_t i = 0; i < s->op->nchecks; i++) {
        int64_t holds = 0;
        if (kg_scope_eval(s, s->op->checks[i].expr, 1, &holds, NULL) == KG_OK && holds == 0)
            return check_failed(s, &s->op->checks[i], err);
    }
    return rc;
}

static int derive(kg_scope *s, kg_error *err) {
    for (size_t i = 0; i < s->op->ndims; i++) {
        const kg_op_dim *d = &s->op->dims[i];
        if (d->expr == NULL)
            continue;
        int rc = kg_scope_eval(s, d->expr, 0, &s->dims.value[i], err);
        if (rc < 0)
            return derive_failed(s, i, rc, err);
        s->bound |= 1U << i;
    }
    return KG_OK;
}

int kg_op_dims(const kg_op *op, const kg_call *call, kg_dims *dims, kg_error *err) {
    kg_scope s = {.op = op, .call = call};
    int rc = KG_OK;
    if (call->nargs != op->nargs)
        return kg_fail(err, KG_EINVAL, "%s: %zu arguments given; it takes %zu", op->name,
                       call->nargs, op->nargs);
    for (size_t i = 0; i < op->nargs && rc == KG_OK; i++)
        rc = check_arg(op, call, i, err);
    for (size_t i = 0; i < op->nargs && rc == KG_OK; i++)
        if (kg_arg_is_tensor(op->args[i].type) && op->args[i].shaped && call->args[i].present)
            rc = bind_shape(&s, i, err);
    if (rc == KG_OK)
        rc = derive(&s, err);
    if (rc == KG_OK)
        rc = run_checks(&s, err);
    if (rc == KG_OK)
        *dims = s.dims;
    return rc;
}
