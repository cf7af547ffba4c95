/* Launches, their arguments and tensor maps of a plan. Literal numbers that can never be right (a
 * range of 0, a block of 2048) are refused here; the rest when a call is bound. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tune/contract_plan.h"

int kg_workspace_index(const kg_plan *p, const char *name) {
    for (size_t i = 0; i < p->nworkspace; i++)
        if (strcmp(p->workspace[i].name, name) == 0)
            return (int)i;
    return -1;
}

static int map_index(const kg_plan *p, const char *name) {
    for (size_t i = 0; i < p->nmaps; i++)
        if (strcmp(p->maps[i].name, name) == 0)
            return (int)i;
    return -1;
}

int kg_check_key(const char *name, const char *at, kg_error *err) {
    if (kg_is_name(name) && strlen(name) <= 100)
        return KG_OK;
    return kg_fail(err, KG_EFORMAT,
                   "%s: the key is no name (a letter or _, then up to 99 letters, digits and _)",
                   at);
}

/* An expression whose value no call changes must be in [min, max]. */
static int check_literal(const kg_expr *e, const char *at, int64_t min, int64_t max,
                         kg_error *err) {
    int64_t v = 0;
    if (kg_expr_eval(e, NULL, NULL, &v, NULL) < 0 || (v >= min && v <= max))
        return KG_OK;
    if (v < min)
        return kg_fail(err, KG_EFORMAT, "%s is %lld; it must be at least %lld", at, (long long)v,
                       (long long)min);
    return kg_fail(err, KG_EFORMAT, "%s is %lld; it must be at most %lld", at, (long long)v,
                   (long long)max);
}

static int read_number(kg_plan_reader *r, const kg_json *j, const char *at, int64_t min,
                       int64_t max, kg_expr **out, kg_error *err) {
    int rc = kg_read_checked(&r->names, j, at, out, err);
    return rc < 0 ? rc : check_literal(*out, at, min, max, err);
}

static int read_dims(kg_plan_reader *r, const kg_json *j, const char *at, int64_t max,
                     kg_expr *out[3], kg_error *err) {
    int rc = kg_read_array(j, at, 1, 3, err);
    for (size_t i = 0; rc == KG_OK && i < kg_json_size(j); i++)
        rc = read_number(r, kg_json_at(j, i), kg_at("%s[%zu]", at, i).text, 1, max, &out[i], err);
    return rc;
}

/* Which things an argument's name may be, for the message. */
static int unknown_arg(const kg_plan_reader *r, const char *name, const char *at, kg_error *err) {
    char known[300] = "";
    for (size_t i = 0; i < r->op->nargs; i++)
        if (kg_arg_is_tensor(r->op->args[i].type))
            snprintf(known + strlen(known), sizeof known - strlen(known), "%s, ",
                     r->op->args[i].name);
    for (size_t i = 0; i < r->op->noutputs; i++)
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s, ",
                 r->op->outputs[i].name);
    for (size_t i = 0; i < r->plan->nworkspace; i++)
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s, ",
                 r->plan->workspace[i].name);
    int arg = kg_op_arg_index(r->op, name);
    if (arg >= 0 && kg_arg_is_attr(r->op->args[arg].type)) {
        bool real =
            r->op->args[arg].type == KG_ARG_FLOAT || r->op->args[arg].type == KG_ARG_FLOAT_OPT;
        return kg_fail(err, KG_EFORMAT, "%s: %s has type %s: pass {\"%s\": \"%s\"}", at, name,
                       kg_arg_type_name(r->op->args[arg].type), real ? "f32" : "i64", name);
    }
    if (kg_op_dim_index(r->op, name) >= 0 || kg_plan_tunable_index(r->plan, name) >= 0)
        return kg_fail(err, KG_EFORMAT, "%s: %s is a number: pass {\"i64\": \"%s\"}", at, name,
                       name);
    return kg_fail(err, KG_EFORMAT,
                   "%s is \"%.60s\", which is no tensor, output or workspace; known are %sprograms",
                   at, name, known);
}

static int read_pointer(const kg_plan_reader *r, const char *name, const char *at, kg_plan_arg *out,
                        kg_error *err) {
    int arg = kg_op_arg_index(r->op, name), output = kg_op_output_index(r->op, name);
    int work = kg_workspace_index(r->plan, name);
    if (strcmp(name, "programs") == 0)
        *out = (kg_plan_arg){.kind = KG_PA_PROGRAMS};
    else if (arg >= 0 && kg_arg_is_tensor(r->op->args[arg].type))
        *out = (kg_plan_arg){.kind = KG_PA_TENSOR, .index = arg};
    else if (output >= 0)
        *out = (kg_plan_arg){.kind = KG_PA_OUTPUT, .index = output};
    else if (work >= 0)
        *out = (kg_plan_arg){.kind = KG_PA_WORKSPACE, .index = work};
    else
        return unknown_arg(r, name, at, err);
    return KG_OK;
}

static int read_float(kg_plan_reader *r, const kg_json *j, const char *at, kg_plan_arg *out,
                      kg_error *err) {
    const char *s = NULL;
    if (kg_json_is_number(j))
        return kg_json_double(j, at, &out->literal, err);
    int rc = kg_json_str(j, at, &s, err);
    if (rc < 0)
        return rc;
    int i = kg_op_arg_index(r->op, s);
    if (i < 0 || (r->op->args[i].type != KG_ARG_FLOAT && r->op->args[i].type != KG_ARG_FLOAT_OPT)) {
        char known[200] = "";
        for (size_t k = 0; k < r->op->nargs; k++)
            if (r->op->args[k].type == KG_ARG_FLOAT || r->op->args[k].type == KG_ARG_FLOAT_OPT)
                snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s",
                         *known != '\0' ? ", " : "", r->op->args[k].name);
        return kg_fail(err, KG_EFORMAT,
                       "%s is \"%.60s\"; it must be a number or a float attribute (%s has %s)", at,
                       s, r->op->name, *known != '\0' ? known : "none");
    }
    return kg_read_text(j, at, &out->attr, err);
}

static int read_map_arg(kg_plan_reader *r, const kg_json *j, const char *at, kg_plan_arg *out,
                        kg_error *err) {
    const char *s = NULL;
    int rc = kg_json_str(j, at, &s, err);
    if (rc < 0)
        return rc;
    int i = map_index(r->plan, s);
    if (i < 0)
        return kg_fail(err, KG_EFORMAT, "%s is \"%.60s\", which is not in tensor_maps", at, s);
    *out = (kg_plan_arg){.kind = KG_PA_MAP, .index = i};
    return KG_OK;
}

static int read_arg(kg_plan_reader *r, const kg_json *j, const char *at, kg_plan_arg *out,
                    kg_error *err) {
    static const char *const kinds[] = {"i32", "i64", "f32", "f64", "map"};
    static const int dtypes[] = {KG_I32, KG_I64, KG_F32, KG_F64};
    const char *s = NULL;
    size_t k = 0;
    if (kg_json_is_string(j)) {
        int rc = kg_json_str(j, at, &s, err);
        return rc < 0 ? rc : read_pointer(r, s, at, out, err);
    }
    if (kg_json_is_object(j) && kg_json_size(j) == 1)
        s = kg_json_key(kg_json_at(j, 0));
    while (s != NULL && k < 5 && strcmp(s, kinds[k]) != 0)
        k++;
    if (s == NULL || k == 5)
        return kg_fail(err, KG_EFORMAT,
                       "%s must be a name, or an object of one of i32, i64, f32, f64, map", at);
    kg_at_text here = kg_at("%s.%s", at, s);
    if (k == 4)
        return read_map_arg(r, kg_json_at(j, 0), here.text, out, err);
    *out = (kg_plan_arg){.kind = KG_PA_SCALAR, .dtype = dtypes[k]};
    if (k >= 2)
        return read_float(r, kg_json_at(j, 0), here.text, out, err);
    return kg_read_checked(&r->names, kg_json_at(j, 0), here.text, &out->expr, err);
}

static int read_args(kg_plan_reader *r, kg_plan_launch *l, const kg_json *launch, const char *at,
                     kg_error *err) {
    const kg_json *j = NULL;
    kg_at_text args = kg_at("%s.args", at);
    int rc = kg_need(launch, at, "args", &j, err);
    if (rc == KG_OK)
        rc = kg_read_array(j, args.text, 1, KG_MAX_LAUNCH_ARGS, err);
    for (size_t i = 0; rc == KG_OK && i < kg_json_size(j); i++) {
        l->nargs = i + 1;
        rc = read_arg(r, kg_json_at(j, i), kg_at("%s[%zu]", args.text, i).text, &l->args[i], err);
    }
    return rc;
}

static int read_cpu(kg_plan_reader *r, kg_plan_launch *l, const kg_json *j, const char *at,
                    kg_error *err) {
    const kg_json *range = NULL, *grain = kg_json_get(j, "grain");
    int rc = kg_need(j, at, "range", &range, err);
    if (rc == KG_OK)
        rc = read_number(r, range, kg_at("%s.range", at).text, 1, INT64_MAX, &l->range, err);
    if (rc == KG_OK && grain != NULL)
        rc = read_number(r, grain, kg_at("%s.grain", at).text, 1, INT64_MAX, &l->grain, err);
    return rc;
}

static int read_cuda(kg_plan_reader *r, kg_plan_launch *l, const kg_json *j, const char *at,
                     kg_error *err) {
    const kg_json *grid = NULL, *block = NULL, *cluster = kg_json_get(j, "cluster");
    const kg_json *shared = kg_json_get(j, "shared");
    int rc = kg_need(j, at, "grid", &grid, err);
    if (rc == KG_OK)
        rc = read_dims(r, grid, kg_at("%s.grid", at).text, INT32_MAX, l->grid, err);
    if (rc == KG_OK)
        rc = kg_need(j, at, "block", &block, err);
    if (rc == KG_OK)
        rc = read_dims(r, block, kg_at("%s.block", at).text, 1024, l->block, err);
    if (rc == KG_OK && cluster != NULL)
        rc = read_dims(r, cluster, kg_at("%s.cluster", at).text, 16, l->cluster, err);
    if (rc == KG_OK && shared != NULL)
        rc = read_number(r, shared, kg_at("%s.shared", at).text, 0, INT32_MAX, &l->shared, err);
    if (rc == KG_OK)
        rc = kg_read_flag(j, at, "cooperative", &l->cooperative, err);
    return rc < 0 ? rc : kg_read_flag(j, at, "pdl", &l->pdl, err);
}

/* A key of the other target is told as such; one of neither as unknown. */
static int check_keys(const kg_plan *p, const kg_json *j, const char *at, kg_error *err) {
    static const char *const cpu[] = {"kernel", "range", "grain", "when", "args", NULL};
    static const char *const cuda[] = {"kernel",      "grid", "block", "cluster", "shared",
                                       "cooperative", "pdl",  "when",  "args",    NULL};
    const char *const *other = p->target == KG_CPU ? cuda : cpu;
    for (size_t i = 0; i < kg_json_size(j); i++) {
        const char *key = kg_json_key(kg_json_at(j, i));
        bool shared =
            strcmp(key, "kernel") == 0 || strcmp(key, "when") == 0 || strcmp(key, "args") == 0;
        for (size_t k = 0; !shared && other[k] != NULL; k++)
            if (strcmp(key, other[k]) == 0)
                return kg_fail(err, KG_EFORMAT, "%s.%s is for target %s; this plan's is %s", at,
                               key, p->target == KG_CPU ? "cuda" : "cpu",
                               p->target == KG_CPU ? "cpu" : "cuda");
    }
    return kg_json_only(j, at, p->target == KG_CPU ? cpu : cuda, err);
}

static int read_kernel(kg_plan_reader *r, kg_plan_launch *l, const kg_json *j, const char *at,
                       kg_error *err) {
    const kg_json *kernel = NULL;
    kg_at_text here = kg_at("%s.kernel", at);
    int rc = kg_need(j, at, "kernel", &kernel, err);
    if (rc == KG_OK)
        rc = kg_read_name(kernel, here.text, &l->kernel, err);
    if (rc == KG_OK)
        rc = kg_check_word(l->kernel, "kernel", here.text, err);
    if (rc == KG_OK &&
        (kg_plan_tunable_index(r->plan, l->kernel) >= 0 || kg_op_dim_index(r->op, l->kernel) >= 0))
        rc = kg_fail(err, KG_EFORMAT, "%s: %s is the name of a tunable or dim", here.text,
                     l->kernel);
    return rc;
}

int kg_plan_read_launch(kg_plan_reader *r, const kg_json *j, kg_error *err) {
    kg_at_text at = kg_at("launches[%zu]", r->plan->nlaunches);
    kg_plan_launch *l = &r->plan->launches[r->plan->nlaunches++];
    const kg_json *when = kg_json_get(j, "when");
    int rc = kg_read_object(j, at.text, err);
    if (rc == KG_OK)
        rc = check_keys(r->plan, j, at.text, err);
    if (rc == KG_OK)
        rc = read_kernel(r, l, j, at.text, err);
    if (rc == KG_OK)
        rc = r->plan->target == KG_CPU ? read_cpu(r, l, j, at.text, err)
                                       : read_cuda(r, l, j, at.text, err);
    if (rc == KG_OK && when != NULL)
        rc = kg_read_checked(&r->names, when, kg_at("%s.when", at.text).text, &l->when, err);
    return rc < 0 ? rc : read_args(r, l, j, at.text, err);
}

static int read_number_choice(const kg_json *object, const char *at, const char *key,
                              const int *allowed, size_t n, int *out, kg_error *err) {
    const kg_json *j = kg_json_get(object, key);
    kg_at_text here = kg_at("%s.%s", at, key);
    char text[64] = "";
    int64_t v = 0;
    int rc = j == NULL ? KG_OK : kg_json_int(j, here.text, &v, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < n; i++) {
        if (allowed[i] == v) {
            *out = (int)v;
            return KG_OK;
        }
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%d", i > 0 ? ", " : "",
                 allowed[i]);
    }
    return kg_fail(err, KG_EFORMAT, "%s is %lld; it may be %s", here.text, (long long)v, text);
}

static int read_list(kg_plan_reader *r, const kg_json *object, const char *at, const char *key,
                     size_t min, size_t max, int64_t limit, kg_expr **out, size_t *n,
                     kg_error *err) {
    const kg_json *j = NULL;
    kg_at_text here = kg_at("%s.%s", at, key);
    int rc = kg_need(object, at, key, &j, err);
    if (rc == KG_OK)
        rc = kg_read_array(j, here.text, min, max, err);
    for (size_t i = 0; rc == KG_OK && i < kg_json_size(j); i++)
        rc = read_number(r, kg_json_at(j, i), kg_at("%s[%zu]", here.text, i).text, 1, limit,
                         &out[i], err);
    *n = kg_json_size(j);
    return rc;
}

static int read_map_tensor(const kg_plan_reader *r, const kg_json *object, const char *at,
                           kg_plan_map *m, kg_error *err) {
    const kg_json *j = NULL;
    const char *s = NULL;
    kg_at_text here = kg_at("%s.tensor", at);
    int rc = kg_need(object, at, "tensor", &j, err);
    if (rc == KG_OK)
        rc = kg_json_str(j, here.text, &s, err);
    if (rc < 0)
        return rc;
    int arg = kg_op_arg_index(r->op, s), output = kg_op_output_index(r->op, s);
    bool input = arg >= 0 && kg_arg_is_tensor(r->op->args[arg].type);
    if (!input && output < 0)
        return kg_fail(err, KG_EFORMAT, "%s is \"%.60s\", which is no tensor or output of %s",
                       here.text, s, r->op->name);
    m->tensor = input ? arg : output;
    m->tensor_is_output = !input;
    return KG_OK;
}

int kg_plan_read_map(kg_plan_reader *r, const kg_json *j, kg_error *err) {
    static const char *const keys[] = {"tensor", "dims", "strides", "box", "swizzle", "l2", NULL};
    static const int swizzles[] = {0, 32, 64, 128}, l2[] = {0, 64, 128, 256};
    const char *name = kg_json_key(j);
    kg_at_text at = kg_at("tensor_maps.%s", name);
    kg_plan_map *m = &r->plan->maps[r->plan->nmaps];
    size_t n = 0;
    int rc = kg_check_key(name, at.text, err);
    if (rc == KG_OK)
        rc = kg_json_only(j, at.text, keys, err);
    if (rc < 0)
        return rc;
    m->name = strdup(name);
    if (m->name == NULL)
        return kg_fail(err, KG_ENOMEM, "%s: out of memory", at.text);
    r->plan->nmaps++;
    rc = read_map_tensor(r, j, at.text, m, err);
    if (rc == KG_OK)
        rc = read_list(r, j, at.text, "dims", 1, 5, INT64_C(1) << 32, m->dims, &m->rank, err);
    if (rc == KG_OK)
        rc = read_list(r, j, at.text, "box", m->rank, m->rank, 256, m->box, &n, err);
    if (rc == KG_OK)
        rc = read_list(r, j, at.text, "strides", m->rank - 1, m->rank - 1, INT64_C(1) << 40,
                       m->strides, &n, err);
    if (rc == KG_OK)
        rc = read_number_choice(j, at.text, "swizzle", swizzles, 4, &m->swizzle, err);
    return rc < 0 ? rc : read_number_choice(j, at.text, "l2", l2, 4, &m->l2, err);
}
