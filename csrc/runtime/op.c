/* Look-ups in a contract, and what a call's outputs and float attributes come to. Reads no JSON. */
#include "runtime/op.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/scope.h"

void kg_op_free(kg_op *op) {
    if (op == NULL)
        return;
    for (size_t i = 0; i < op->nargs; i++) {
        free(op->args[i].name);
        kg_expr_free(op->args[i].none_rsqrt);
        for (size_t d = 0; d < KG_MAX_RANK; d++)
            kg_expr_free(op->args[i].shape[d]);
    }
    for (size_t i = 0; i < op->ndims; i++) {
        free(op->dims[i].name);
        kg_expr_free(op->dims[i].expr);
    }
    for (size_t i = 0; i < op->nchecks; i++) {
        free(op->checks[i].message);
        kg_expr_free(op->checks[i].expr);
    }
    for (size_t i = 0; i < op->noutputs; i++) {
        free(op->outputs[i].name);
        for (size_t d = 0; d < KG_MAX_RANK; d++)
            kg_expr_free(op->outputs[i].shape[d]);
    }
    for (size_t i = 0; i < op->nholes; i++)
        free(op->holes[i]);
    kg_expr_free(op->flops);
    kg_expr_free(op->reduction);
    free(op->name);
    free(op->schema);
    free(op);
}

int kg_op_arg_index(const kg_op *op, const char *name) {
    for (size_t i = 0; i < op->nargs; i++)
        if (strcmp(op->args[i].name, name) == 0)
            return (int)i;
    return -1;
}

int kg_op_dim_index(const kg_op *op, const char *name) {
    for (size_t i = 0; i < op->ndims; i++)
        if (strcmp(op->dims[i].name, name) == 0)
            return (int)i;
    return -1;
}

int kg_op_output_index(const kg_op *op, const char *name) {
    for (size_t i = 0; i < op->noutputs; i++)
        if (strcmp(op->outputs[i].name, name) == 0)
            return (int)i;
    return -1;
}

bool kg_arg_is_tensor(kg_arg_type type) {
    return type == KG_ARG_TENSOR || type == KG_ARG_TENSOR_OPT;
}

bool kg_arg_is_attr(kg_arg_type type) {
    return type == KG_ARG_INT || type == KG_ARG_INT_OPT || type == KG_ARG_FLOAT ||
           type == KG_ARG_FLOAT_OPT || type == KG_ARG_BOOL || type == KG_ARG_INT_LIST;
}

const char *kg_arg_type_name(kg_arg_type type) {
    static const char *const names[] = {[KG_ARG_TENSOR] = "Tensor",
                                        [KG_ARG_TENSOR_OPT] = "Tensor?",
                                        [KG_ARG_TENSOR_LIST] = "Tensor[]",
                                        [KG_ARG_INT] = "int",
                                        [KG_ARG_INT_OPT] = "int?",
                                        [KG_ARG_FLOAT] = "float",
                                        [KG_ARG_FLOAT_OPT] = "float?",
                                        [KG_ARG_BOOL] = "bool",
                                        [KG_ARG_STR] = "str",
                                        [KG_ARG_INT_LIST] = "int[]",
                                        [KG_ARG_FLOAT_LIST] = "float[]"};
    return (unsigned)type < sizeof names / sizeof *names ? names[type] : NULL;
}

int kg_op_arg_dtype(const kg_op *op, const kg_call *call, size_t arg) {
    const kg_op_arg *a = &op->args[arg];
    if (call->args[arg].present)
        return call->args[arg].u.t.dtype;
    if (a->same_dtype_as >= 0 && (size_t)a->same_dtype_as < arg)
        return kg_op_arg_dtype(op, call, (size_t)a->same_dtype_as);
    return a->dtypes == 0 ? KG_F32 : __builtin_ctz(a->dtypes);
}

int kg_op_output_dtype(const kg_op *op, const kg_call *call, size_t output) {
    const kg_op_output *o = &op->outputs[output];
    return o->dtype >= 0 ? o->dtype : kg_op_arg_dtype(op, call, (size_t)o->dtype_of);
}

void kg_op_link(kg_op *op) {
    for (size_t i = 0; i < op->nargs; i++)
        for (size_t d = 0; d < KG_MAX_RANK; d++) {
            const kg_expr *e = op->args[i].shape[d];
            int dim = e == NULL ? -1 : kg_op_dim_index(op, kg_expr_text(e));
            op->args[i].shape_dim[d] = dim >= 0 && op->dims[dim].expr == NULL ? dim : -1;
        }
}

static kg_scope scope_of(const kg_op *op, const kg_call *call, const kg_dims *dims) {
    kg_scope s = {.op = op, .call = call, .dims = *dims};
    s.bound = op->ndims >= 32 ? UINT32_MAX : (1U << op->ndims) - 1;
    return s;
}

static int output_like(const kg_op *op, const kg_op_output *o, const kg_call *call, kg_tensor *t,
                       kg_error *err) {
    const kg_value *v = &call->args[o->like];
    if (!v->present)
        return kg_fail(err, KG_EINVAL, "%s: output %s is like %s, which is absent", op->name,
                       o->name, op->args[o->like].name);
    t->ndim = v->u.t.ndim;
    memcpy(t->size, v->u.t.size, sizeof t->size);
    memcpy(t->stride, v->u.t.stride, sizeof t->stride);
    /* An empty tensor's strides say nothing worth keeping. */
    if (kg_tensor_numel(t) != 0 && kg_tensor_dense(t))
        return KG_OK;
    return kg_tensor_set_contiguous(t) < 0
               ? kg_fail(err, KG_EOVERFLOW, "%s: output %s is too large", op->name, o->name)
               : KG_OK;
}

static int output_shaped(const kg_op_output *o, kg_scope *s, kg_tensor *t, kg_error *err) {
    const char *op = s->op->name;
    t->ndim = (int32_t)o->rank;
    for (size_t d = 0; d < o->rank; d++) {
        int rc = kg_scope_eval(s, o->shape[d], 0, &t->size[d], err);
        if (rc < 0)
            return kg_fail_prefix(err, rc, "%s: output %s, dim %zu", op, o->name, d);
        if (t->size[d] < 0)
            return kg_fail(err, KG_EINVAL, "%s: output %s would have size %lld in dim %zu (%s)", op,
                           o->name, (long long)t->size[d], d, kg_expr_text(o->shape[d]));
    }
    return kg_tensor_set_contiguous(t) < 0
               ? kg_fail(err, KG_EOVERFLOW, "%s: output %s is too large", op, o->name)
               : KG_OK;
}

int kg_op_outputs(const kg_op *op, const kg_call *call, const kg_dims *dims,
                  kg_tensor out[KG_MAX_OUTPUTS], kg_error *err) {
    kg_scope s = scope_of(op, call, dims);
    for (size_t i = 0; i < op->noutputs; i++) {
        const kg_op_output *o = &op->outputs[i];
        kg_tensor t = {.dtype = kg_op_output_dtype(op, call, i)};
        int rc = o->like >= 0 ? output_like(op, o, call, &t, err) : output_shaped(o, &s, &t, err);
        if (rc < 0)
            return rc;
        out[i] = t;
    }
    return KG_OK;
}

int kg_op_float(const kg_op *op, const kg_call *call, const kg_dims *dims, size_t arg, double *out,
                kg_error *err) {
    const kg_op_arg *a = &op->args[arg];
    const kg_value *v = &call->args[arg];
    if (a->type != KG_ARG_FLOAT && a->type != KG_ARG_FLOAT_OPT)
        return kg_fail(err, KG_EINVAL, "%s: %s has type %s, not float", op->name, a->name,
                       kg_arg_type_name(a->type));
    if (v->present) {
        *out = v->u.f;
        return KG_OK;
    }
    if (a->none_rsqrt == NULL)
        return kg_fail(err, KG_EINVAL, "%s: %s is None, and the contract gives no value for that",
                       op->name, a->name);
    kg_scope s = scope_of(op, call, dims);
    int64_t n = 0;
    int rc = kg_scope_eval(&s, a->none_rsqrt, 0, &n, err);
    if (rc < 0)
        return kg_fail_prefix(err, rc, "%s: %s of None", op->name, a->name);
    if (n < 0)
        return kg_fail(err, KG_EINVAL, "%s: %s of None is 1 / sqrt(%lld)", op->name, a->name,
                       (long long)n);
    /* torch gives inf for an empty head, and the output is empty then. */
    *out = 1.0 / sqrt((double)n);
    return KG_OK;
}
