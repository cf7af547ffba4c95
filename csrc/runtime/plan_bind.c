/* Evaluates a plan for one call: the only way from expressions to the numbers of a launch. Runs at
 * the first call of a shape, so it makes one allocation; messages are only built when something is
 * wrong. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/program.h"
#include "runtime/scope.h"
#include "runtime/scope_explain.h"

typedef struct binder {
    const kg_plan *p;
    kg_scope s;
    kg_instance *inst;
    bool empty; /* every output that is wanted has no elements */
    kg_error *err;
} binder;

/* A plan from an index may say anything: its indices into the Op are held against it. */
static int check_arg(const kg_op *op, const kg_plan_arg *a, kg_error *err) {
    bool ok = true;
    if (a->kind == KG_PA_TENSOR)
        ok = (size_t)a->index < op->nargs && kg_arg_is_tensor(op->args[a->index].type);
    else if (a->kind == KG_PA_OUTPUT)
        ok = (size_t)a->index < op->noutputs;
    else if (a->attr != NULL)
        ok = kg_op_arg_index(op, a->attr) >= 0;
    return ok ? KG_OK
              : kg_fail(err, KG_EFORMAT, "the plan does not belong to the contract of %s",
                        op->name);
}

static int check_fit(const kg_plan *p, const kg_op *op, kg_error *err) {
    int rc = KG_OK;
    if (strcmp(p->op, op->name) != 0)
        return kg_fail(err, KG_EINVAL, "the plan is for %s, not for %s", p->op, op->name);
    for (size_t i = 0; i < p->nlaunches; i++)
        for (size_t k = 0; k < p->launches[i].nargs && rc == KG_OK; k++)
            rc = check_arg(op, &p->launches[i].args[k], err);
    for (size_t i = 0; i < p->nmaps && rc == KG_OK; i++) {
        const kg_plan_map *m = &p->maps[i];
        kg_plan_arg a = {.kind = m->tensor_is_output ? KG_PA_OUTPUT : KG_PA_TENSOR,
                         .index = m->tensor};
        rc = check_arg(op, &a, err);
    }
    return rc;
}

static int check_device(const kg_plan *p, const kg_constants *c, const kg_call *call,
                        kg_error *err) {
    static const char *const devices[] = {"cpu", "cuda"};
    if (call->device != p->target)
        return kg_fail(err, KG_ENOTFOUND, "the plan's target is %s", devices[p->target == KG_CUDA]);
    if (p->min_arch == NULL)
        return KG_OK;
    int64_t needed = kg_arch_code(p->min_arch);
    bool fits = needed == 0 ? c->arch == 0 : c->arch >= needed;
    if (fits)
        return KG_OK;
    if (p->target == KG_CUDA)
        return kg_fail(err, KG_ENOTFOUND, "min_arch is %s, this device is sm_%lld", p->min_arch,
                       (long long)c->arch);
    if (c->arch == 0)
        return kg_fail(err, KG_ENOTFOUND, "min_arch is %s, this machine is none", p->min_arch);
    return kg_fail(err, KG_ENOTFOUND, "min_arch is %s, this machine is x86-64-v%lld", p->min_arch,
                   (long long)c->arch);
}

/* A Program that the source has no place for would be left out silently. */
static int check_holes(const kg_plan *p, const kg_op *op, const kg_call *call, kg_error *err) {
    int rc = call->program != NULL ? kg_program_fits(call->program, op, err) : KG_OK;
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < op->nholes && call->program != NULL; i++) {
        bool has = !kg_program_has(call->program, op->holes[i]);
        for (size_t k = 0; k < p->nholes; k++)
            has = has || strcmp(p->holes[k], op->holes[i]) == 0;
        if (!has)
            return kg_fail(err, KG_ENOTFOUND,
                           "holes: the call has a %s, for which there is no hole", op->holes[i]);
    }
    return KG_OK;
}

static int check_require(binder *b) {
    int64_t holds = 1;
    int rc = kg_scope_eval(&b->s, b->p->require, 1, &holds, b->err);
    if (rc < 0)
        return kg_fail_prefix(b->err, rc, "require");
    return holds != 0 ? KG_OK : kg_explain_false(&b->s, b->p->require, "require", b->err);
}

static int bind_workspace(binder *b, size_t i) {
    const kg_plan_workspace *w = &b->p->workspace[i];
    int64_t bytes = (int64_t)kg_dtype_size(w->dtype), size = 0;
    bool over = false;
    for (size_t d = 0; d < w->rank; d++) {
        int rc = kg_scope_eval(&b->s, w->shape[d], 1, &size, b->err);
        if (rc < 0)
            return kg_fail_prefix(b->err, rc, "workspace.%s.shape[%zu]", w->name, d);
        if (size < 0)
            return kg_fail(b->err, KG_EINVAL, "workspace.%s.shape[%zu]: %s is %lld", w->name, d,
                           kg_expr_text(w->shape[d]), (long long)size);
        over = over || __builtin_mul_overflow(bytes, size, &bytes);
    }
    if (over)
        return kg_fail(b->err, KG_EOVERFLOW, "workspace.%s has more bytes than 64 bits can count",
                       w->name);
    b->inst->workspace_bytes[i] = bytes;
    return KG_OK;
}

/* One number of launch i, in [min, max]. */
static int number(binder *b, size_t i, const char *key, const kg_expr *e, int64_t otherwise,
                  int64_t min, int64_t max, int64_t *out) {
    int rc = kg_scope_eval(&b->s, e, otherwise, out, b->err);
    if (rc < 0)
        return kg_fail_prefix(b->err, rc, "launches[%zu].%s", i, key);
    if (*out >= min && *out <= max)
        return KG_OK;
    kg_explain_value(&b->s, e, *out, b->err);
    return kg_fail_prefix(b->err, KG_EINVAL, "launches[%zu].%s must be in [%lld, %lld]", i, key,
                          (long long)min, (long long)max);
}

/* A range or grid of 0 leaves outputs unwritten, unless there is nothing to write. */
static int zero_work(binder *b, size_t i, const char *key, const kg_expr *e) {
    if (b->empty)
        return KG_OK;
    kg_explain_value(&b->s, e, 0, b->err);
    return kg_fail_prefix(b->err, KG_EINVAL,
                          "launches[%zu].%s is 0 though an output is not empty (\"when\" skips)", i,
                          key);
}

static int bind_cpu(binder *b, size_t i, kg_launch *l, bool *skip) {
    const kg_plan_launch *pl = &b->p->launches[i];
    int rc = number(b, i, "range", pl->range, 0, 0, INT64_MAX, &l->range);
    if (rc == KG_OK && l->range == 0) {
        *skip = true;
        return zero_work(b, i, "range", pl->range);
    }
    return rc < 0 ? rc : number(b, i, "grain", pl->grain, 1, 1, INT64_MAX, &l->grain);
}

static int triple(binder *b, size_t i, const char *key, kg_expr *const e[3], const int64_t min,
                  const int64_t max[3], int64_t out[3]) {
    int rc = KG_OK;
    for (size_t k = 0; k < 3 && rc == KG_OK; k++)
        rc = number(b, i, key, e[k], 1, min, max[k], &out[k]);
    return rc;
}

static int check_cuda(binder *b, size_t i, const kg_launch *l) {
    int64_t threads = l->block[0] * l->block[1] * l->block[2];
    int64_t blocks = l->cluster[0] * l->cluster[1] * l->cluster[2];
    if (threads > 1024)
        return kg_fail(b->err, KG_EINVAL, "launches[%zu].block: %lld threads; 1024 is the limit", i,
                       (long long)threads);
    if (blocks > 16)
        return kg_fail(b->err, KG_EINVAL, "launches[%zu].cluster: %lld blocks; 16 is the limit", i,
                       (long long)blocks);
    if (blocks > 1 && b->s.constants->arch < 90)
        return kg_fail(b->err, KG_EINVAL,
                       "launches[%zu].cluster: %lld blocks; clusters need sm_90, this device is "
                       "sm_%lld (min_arch)",
                       i, (long long)blocks, (long long)b->s.constants->arch);
    for (size_t k = 0; k < 3; k++)
        if (l->grid[k] % l->cluster[k] != 0)
            return kg_fail(b->err, KG_EINVAL,
                           "launches[%zu].grid[%zu] is %lld, no multiple of the cluster's %lld", i,
                           k, (long long)l->grid[k], (long long)l->cluster[k]);
    return KG_OK;
}

static int bind_cuda(binder *b, size_t i, kg_launch *l, bool *skip) {
    static const int64_t grid[3] = {INT32_MAX, 65535, 65535}, block[3] = {1024, 1024, 64};
    static const int64_t cluster[3] = {16, 16, 16};
    const kg_plan_launch *pl = &b->p->launches[i];
    int64_t shared = b->s.constants->max_shared > 0 ? b->s.constants->max_shared : INT32_MAX;
    int rc = triple(b, i, "grid", pl->grid, 0, grid, l->grid);
    for (size_t k = 0; k < 3 && rc == KG_OK; k++)
        if (l->grid[k] == 0) {
            *skip = true;
            return zero_work(b, i, "grid", pl->grid[k]);
        }
    if (rc == KG_OK)
        rc = triple(b, i, "block", pl->block, 1, block, l->block);
    if (rc == KG_OK)
        rc = triple(b, i, "cluster", pl->cluster, 1, cluster, l->cluster);
    if (rc == KG_OK)
        rc = number(b, i, "shared", pl->shared, 0, 0, shared, &l->shared);
    return rc < 0 ? rc : check_cuda(b, i, l);
}

static int bind_float(binder *b, const kg_plan_arg *a, double *out) {
    *out = a->literal;
    if (a->attr == NULL)
        return KG_OK;
    int i = kg_op_arg_index(b->s.op, a->attr);
    return kg_op_float(b->s.op, b->s.call, &b->inst->dims, (size_t)i, out, b->err);
}

static int bind_scalar(binder *b, const kg_plan_arg *a, kg_launch_arg *out) {
    int64_t v = 0;
    double f = 0;
    bool real = a->dtype == KG_F32 || a->dtype == KG_F64;
    int rc = real ? bind_float(b, a, &f) : kg_scope_eval(&b->s, a->expr, 0, &v, b->err);
    if (rc < 0)
        return rc;
    switch (a->dtype) {
    case KG_F32:
        out->u.f32 = (float)f;
        return KG_OK;
    case KG_F64:
        out->u.f64 = f;
        return KG_OK;
    case KG_I64:
        out->u.i64 = v;
        return KG_OK;
    default:
        if (v < INT32_MIN || v > INT32_MAX)
            return kg_fail(b->err, KG_EOVERFLOW, "%s is %lld, which does not fit an i32",
                           kg_expr_text(a->expr), (long long)v);
        out->u.i32 = (int32_t)v;
        return KG_OK;
    }
}

static int bind_args(binder *b, size_t i, kg_launch *l) {
    const kg_plan_launch *pl = &b->p->launches[i];
    l->nargs = pl->nargs;
    for (size_t k = 0; k < pl->nargs; k++) {
        const kg_plan_arg *a = &pl->args[k];
        l->args[k].kind = a->kind;
        l->args[k].index = a->index;
        l->args[k].dtype = a->dtype;
        int rc = a->kind == KG_PA_SCALAR ? bind_scalar(b, a, &l->args[k]) : KG_OK;
        if (rc < 0)
            return kg_fail_prefix(b->err, rc, "launches[%zu].args[%zu]", i, k);
    }
    return KG_OK;
}

static int bind_launch(binder *b, size_t i) {
    const kg_plan_launch *pl = &b->p->launches[i];
    kg_launch *l = &b->inst->launches[b->inst->nlaunches];
    int64_t when = 1;
    bool skip = false;
    int rc = kg_scope_eval(&b->s, pl->when, 1, &when, b->err);
    if (rc < 0)
        return kg_fail_prefix(b->err, rc, "launches[%zu].when", i);
    if (when == 0)
        return KG_OK;
    l->plan_launch = (int)i;
    rc = b->p->target == KG_CPU ? bind_cpu(b, i, l, &skip) : bind_cuda(b, i, l, &skip);
    if (rc < 0 || skip) {
        *l = (kg_launch){0};
        return rc;
    }
    b->inst->nlaunches++;
    return bind_args(b, i, l);
}

static int map_number(binder *b, const kg_plan_map *m, const char *key, size_t i, const kg_expr *e,
                      int64_t max, int64_t *out) {
    int rc = kg_scope_eval(&b->s, e, 0, out, b->err);
    if (rc == KG_OK && *out >= 1 && *out <= max)
        return KG_OK;
    if (rc == KG_OK) {
        rc = KG_EINVAL;
        kg_explain_value(&b->s, e, *out, b->err);
        kg_fail_prefix(b->err, rc, "must be in [1, %lld]", (long long)max);
    }
    return kg_fail_prefix(b->err, rc, "tensor_maps.%s.%s[%zu]", m->name, key, i);
}

static int check_map(binder *b, const kg_plan_map *m, const kg_map *out) {
    int64_t inner = out->box[0] * (int64_t)kg_dtype_size(out->dtype);
    for (size_t i = 0; i + 1 < out->rank; i++)
        if (out->strides[i] % 16 != 0)
            return kg_fail(b->err, KG_EINVAL,
                           "tensor_maps.%s.strides[%zu] is %lld bytes, no multiple of 16", m->name,
                           i, (long long)out->strides[i]);
    if (inner % 16 != 0 || (out->swizzle > 0 && inner > out->swizzle))
        return kg_fail(
            b->err, KG_EINVAL,
            "tensor_maps.%s.box[0] is %lld bytes; it must be a multiple of 16 and at most "
            "the swizzle (%d)",
            m->name, (long long)inner, out->swizzle);
    return KG_OK;
}

static int bind_map(binder *b, size_t i) {
    const kg_plan_map *m = &b->p->maps[i];
    kg_map *out = &b->inst->maps[i];
    int rc = KG_OK;
    if (b->s.constants->arch < 90)
        return kg_fail(b->err, KG_EINVAL,
                       "tensor_maps.%s: tensor maps need sm_90, this device is sm_%lld (min_arch)",
                       m->name, (long long)b->s.constants->arch);
    out->tensor = m->tensor;
    out->tensor_is_output = m->tensor_is_output;
    out->swizzle = m->swizzle;
    out->l2 = m->l2;
    out->rank = m->rank;
    out->dtype = m->tensor_is_output ? b->inst->outputs[m->tensor].dtype
                                     : kg_op_arg_dtype(b->s.op, b->s.call, (size_t)m->tensor);
    for (size_t d = 0; d < m->rank && rc == KG_OK; d++) {
        rc = map_number(b, m, "dims", d, m->dims[d], INT64_C(1) << 32, &out->dims[d]);
        if (rc == KG_OK)
            rc = map_number(b, m, "box", d, m->box[d], 256, &out->box[d]);
        if (rc == KG_OK && d + 1 < m->rank)
            rc = map_number(b, m, "strides", d, m->strides[d], INT64_C(1) << 40, &out->strides[d]);
    }
    return rc < 0 ? rc : check_map(b, m, out);
}

static bool wanted(const binder *b, size_t output) {
    return (b->s.call->skip_outputs >> output & 1) == 0 || !b->s.op->outputs[output].optional;
}

/* With no launch left, an output that is not cleared either would be what was in memory before. */
static int check_written(binder *b) {
    if (b->inst->nlaunches > 0)
        return KG_OK;
    for (size_t i = 0; i < b->inst->noutputs; i++)
        if (wanted(b, i) && (b->p->zero_outputs >> i & 1) == 0 &&
            kg_tensor_numel(&b->inst->outputs[i]) > 0)
            return kg_fail(b->err, KG_EINVAL,
                           "launches: \"when\" skips all of them, and output %s is not empty",
                           b->s.op->outputs[i].name);
    return KG_OK;
}

static int bind_all(binder *b) {
    kg_instance *inst = b->inst;
    int rc = kg_op_outputs(b->s.op, b->s.call, &inst->dims, inst->outputs, b->err);
    if (rc < 0)
        return rc;
    inst->noutputs = b->s.op->noutputs;
    b->s.outputs = inst->outputs;
    b->empty = true;
    for (size_t i = 0; i < inst->noutputs; i++)
        b->empty = b->empty && (!wanted(b, i) || kg_tensor_numel(&inst->outputs[i]) == 0);
    rc = check_require(b);
    inst->nworkspace = b->p->nworkspace;
    for (size_t i = 0; i < b->p->nworkspace && rc == KG_OK; i++)
        rc = bind_workspace(b, i);
    for (size_t i = 0; i < b->p->nlaunches && rc == KG_OK; i++)
        rc = bind_launch(b, i);
    if (rc == KG_OK)
        rc = check_written(b);
    if (rc == KG_OK && inst->nlaunches > 0)
        inst->nmaps = b->p->nmaps;
    for (size_t i = 0; i < inst->nmaps && rc == KG_OK; i++)
        rc = bind_map(b, i);
    return rc;
}

int kg_plan_bind(const kg_plan *p, const kg_op *op, const kg_tuning *t, const kg_constants *c,
                 const kg_call *call, kg_instance **out, kg_error *err) {
    kg_dims dims;
    int rc = check_fit(p, op, err);
    if (rc == KG_OK)
        rc = check_device(p, c, call, err);
    if (rc == KG_OK)
        rc = check_holes(p, op, call, err);
    if (rc == KG_OK)
        rc = kg_op_dims(op, call, &dims, err);
    if (rc < 0)
        return rc;
    kg_instance *inst = calloc(1, sizeof *inst);
    if (inst == NULL)
        return kg_fail(err, KG_ENOMEM, "%s: out of memory", op->name);
    inst->dims = dims;
    binder b = {.p = p, .inst = inst, .err = err};
    b.s = (kg_scope){.op = op, .call = call, .dims = dims, .plan = p, .tuning = t, .constants = c};
    b.s.bound = op->ndims >= 32 ? UINT32_MAX : (1U << op->ndims) - 1;
    rc = bind_all(&b);
    if (rc < 0) {
        kg_instance_free(inst);
        return rc;
    }
    *out = inst;
    return KG_OK;
}
