/* The plan in a Candidate's opening comment into a kg_plan (docs/formats.md, "The plan"). Every
 * key, type and name is checked against the contract; what depends on sizes is left to
 * kg_plan_bind. */
#include "tune/contract_plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "tune/contract.h"

/* A name of the plan's own, which must not hide one of the Op's: both reach the source as macros or
 * types. */
static int check_free(const kg_plan_reader *r, const char *name, const char *what, const char *at,
                      kg_error *err) {
    const kg_op *op = r->op;
    const kg_plan *p = r->plan;
    const char *has = kg_op_dim_index(op, name) >= 0        ? "a dim of the Op"
                      : kg_op_arg_index(op, name) >= 0      ? "an argument of the Op"
                      : kg_op_output_index(op, name) >= 0   ? "an output of the Op"
                      : kg_plan_tunable_index(p, name) >= 0 ? "a tunable"
                      : kg_workspace_index(p, name) >= 0    ? "a workspace"
                                                            : NULL;
    if (has != NULL)
        return kg_fail(err, KG_EFORMAT, "%s: %s is the name of %s already", at, name, has);
    return kg_check_word(name, what, at, err);
}

static int read_tunable(kg_plan_reader *r, const kg_json *j, kg_error *err) {
    kg_plan_tunable *t = &r->plan->tunables[r->plan->ntunables];
    const char *name = kg_json_key(j);
    kg_at_text at = kg_at("tunables.%s", name);
    int rc = kg_check_key(name, at.text, err);
    if (rc == KG_OK)
        rc = check_free(r, name, "tunable", at.text, err);
    if (rc == KG_OK)
        rc = kg_read_array(j, at.text, 1, KG_MAX_TUNABLE_VALUES, err);
    for (size_t i = 0; rc == KG_OK && i < kg_json_size(j); i++) {
        rc = kg_json_int(kg_json_at(j, i), kg_at("%s[%zu]", at.text, i).text, &t->values[i], err);
        for (size_t k = 0; rc == KG_OK && k < i; k++)
            if (t->values[k] == t->values[i])
                rc =
                    kg_fail(err, KG_EFORMAT, "%s has %lld twice", at.text, (long long)t->values[i]);
        t->n = i + 1;
    }
    if (rc < 0)
        return rc;
    t->name = strdup(name);
    if (t->name == NULL)
        return kg_fail(err, KG_ENOMEM, "%s: out of memory", at.text);
    r->plan->ntunables++;
    return KG_OK;
}

static int read_workspace(kg_plan_reader *r, const kg_json *j, kg_error *err) {
    static const char *const keys[] = {"dtype", "shape", "zero", NULL};
    kg_plan_workspace *w = &r->plan->workspace[r->plan->nworkspace];
    const char *name = kg_json_key(j);
    const kg_json *dtype = NULL, *shape = NULL;
    kg_at_text at = kg_at("workspace.%s", name);
    int rc = kg_check_key(name, at.text, err);
    if (rc == KG_OK)
        rc = check_free(r, name, "workspace", at.text, err);
    if (rc < 0)
        return rc;
    w->name = strdup(name);
    if (w->name == NULL)
        return kg_fail(err, KG_ENOMEM, "%s: out of memory", at.text);
    r->plan->nworkspace++;
    rc = kg_json_only(j, at.text, keys, err);
    if (rc == KG_OK)
        rc = kg_need(j, at.text, "dtype", &dtype, err);
    if (rc == KG_OK)
        rc = kg_read_dtype(dtype, kg_at("%s.dtype", at.text).text, &w->dtype, err);
    if (rc == KG_OK)
        rc = kg_need(j, at.text, "shape", &shape, err);
    if (rc == KG_OK)
        rc = kg_read_array(shape, kg_at("%s.shape", at.text).text, 0, KG_MAX_RANK, err);
    for (size_t d = 0; rc == KG_OK && d < kg_json_size(shape); d++) {
        rc = kg_read_checked(&r->names, kg_json_at(shape, d),
                             kg_at("%s.shape[%zu]", at.text, d).text, &w->shape[d], err);
        w->rank = d + 1;
    }
    return rc < 0 ? rc : kg_read_flag(j, at.text, "zero", &w->zero, err);
}

static int read_specialize(kg_plan_reader *r, const kg_json *j, kg_error *err) {
    kg_at_text at = kg_at("specialize[%zu]", r->plan->nspecialize);
    char known[300];
    kg_names dims = {.op = r->op, .dims = r->names.dims};
    const char *s = NULL;
    int rc = kg_json_str(j, at.text, &s, err);
    if (rc < 0)
        return rc;
    if (kg_op_dim_index(r->op, s) < 0) {
        kg_known_names(&dims, known, sizeof known);
        return kg_fail(err, KG_EFORMAT, "%s is \"%.60s\", which is no dim of %s; known are %s",
                       at.text, s, r->op->name, known);
    }
    for (size_t i = 0; i < r->plan->nspecialize; i++)
        if (strcmp(r->plan->specialize[i], s) == 0)
            return kg_fail(err, KG_EFORMAT, "%s names %s twice", at.text, s);
    rc = kg_read_text(j, at.text, &r->plan->specialize[r->plan->nspecialize], err);
    r->plan->nspecialize += rc == KG_OK;
    return rc;
}

static int read_zero(kg_plan_reader *r, const kg_json *j, kg_error *err) {
    const char *s = NULL;
    int rc = kg_json_str(j, "zero", &s, err);
    if (rc < 0)
        return rc;
    int i = kg_op_output_index(r->op, s);
    if (i < 0)
        return kg_fail(err, KG_EFORMAT, "zero names \"%.60s\", which is no output of %s", s,
                       r->op->name);
    if ((r->plan->zero_outputs >> i & 1) != 0)
        return kg_fail(err, KG_EFORMAT, "zero names %s twice", s);
    r->plan->zero_outputs |= 1U << i;
    return KG_OK;
}

static int read_hole(kg_plan_reader *r, const kg_json *j, kg_error *err) {
    kg_at_text at = kg_at("holes[%zu]", r->plan->nholes);
    const char *s = NULL;
    int rc = kg_json_str(j, at.text, &s, err);
    bool found = false;
    for (size_t i = 0; rc == KG_OK && i < r->op->nholes; i++)
        found = found || strcmp(r->op->holes[i], s) == 0;
    if (rc == KG_OK && !found)
        return kg_fail(err, KG_EFORMAT, "%s is \"%.40s\", which is no hole of %s", at.text, s,
                       r->op->name);
    for (size_t i = 0; rc == KG_OK && i < r->plan->nholes; i++)
        if (strcmp(r->plan->holes[i], s) == 0)
            return kg_fail(err, KG_EFORMAT, "%s names %s twice", at.text, s);
    if (rc == KG_OK)
        rc = kg_read_text(j, at.text, &r->plan->holes[r->plan->nholes], err);
    r->plan->nholes += rc == KG_OK;
    return rc;
}

static int read_flag_name(kg_plan_reader *r, const kg_json *j, kg_error *err) {
    const char *s = NULL;
    int rc = kg_json_str(j, "flags", &s, err);
    if (rc < 0)
        return rc;
    uint32_t flag = strcmp(s, "fast_math") == 0     ? KG_FLAG_FAST_MATH
                    : strcmp(s, "no_contract") == 0 ? KG_FLAG_NO_CONTRACT
                                                    : 0;
    if (flag == 0)
        return kg_fail(err, KG_EFORMAT, "flags has \"%.40s\"; known are fast_math, no_contract", s);
    r->plan->flags |= flag;
    return KG_OK;
}

typedef int (*item_reader)(kg_plan_reader *r, const kg_json *j, kg_error *err);

/* Each element of an array or member of an object. */
static int each(kg_plan_reader *r, const char *key, bool object, size_t min, size_t max,
                item_reader read, kg_error *err) {
    const kg_json *j = kg_json_get(r->root, key);
    if (j == NULL)
        return KG_OK;
    int rc = object ? kg_read_object(j, key, err) : kg_read_array(j, key, min, max, err);
    if (rc == KG_OK && object && kg_json_size(j) > max)
        rc = kg_fail(err, KG_EFORMAT, "%s has %zu members; at most %zu are known", key,
                     kg_json_size(j), max);
    for (size_t i = 0; rc == KG_OK && i < kg_json_size(j); i++)
        rc = read(r, kg_json_at(j, i), err);
    return rc;
}

static int read_target(kg_plan_reader *r, kg_error *err) {
    const kg_json *j = NULL;
    const char *s = NULL;
    int rc = kg_need(r->root, "", "target", &j, err);
    if (rc == KG_OK)
        rc = kg_json_str(j, "target", &s, err);
    if (rc < 0)
        return rc;
    if (strcmp(s, "cpu") != 0 && strcmp(s, "cuda") != 0)
        return kg_fail(err, KG_EFORMAT, "target is \"%.40s\"; it must be cpu or cuda", s);
    r->plan->target = strcmp(s, "cpu") == 0 ? KG_CPU : KG_CUDA;
    return KG_OK;
}

static int read_min_arch(kg_plan_reader *r, kg_error *err) {
    const kg_json *j = kg_json_get(r->root, "min_arch");
    const char *s = NULL;
    int rc = j == NULL ? KG_OK : kg_json_str(j, "min_arch", &s, err);
    if (rc < 0 || j == NULL)
        return rc;
    bool plain = *s == '\0' || s[strlen(s) - 1] != 'a';
    int target = plain ? kg_arch_target(s) : -1;
    if (target < 0)
        return kg_fail(err, KG_EFORMAT,
                       "min_arch is \"%.40s\"; known are x86-64-v1 to x86-64-v4, aarch64, sm_80, "
                       "sm_90 and so on (sm_90a is a flag of the compiler, say sm_90)",
                       s);
    if (target != r->plan->target)
        return kg_fail(err, KG_EFORMAT, "min_arch is %s, but target is %s", s,
                       r->plan->target == KG_CPU ? "cpu" : "cuda");
    return kg_read_text(j, "min_arch", &r->plan->min_arch, err);
}

static int check_op_name(kg_plan_reader *r, kg_error *err) {
    const kg_json *j = NULL;
    int rc = kg_need(r->root, "", "op", &j, err);
    if (rc == KG_OK)
        rc = kg_read_name(j, "op", &r->plan->op, err);
    if (rc == KG_OK && strcmp(r->plan->op, r->op->name) != 0)
        return kg_fail(err, KG_EFORMAT, "op is \"%s\", but the contract is that of %s", r->plan->op,
                       r->op->name);
    return rc;
}

static int read_head(kg_plan_reader *r, kg_error *err) {
    static const char *const keys[] = {
        "format",    "op",   "target",      "min_arch", "tunables", "specialize", "require",
        "workspace", "zero", "tensor_maps", "launches", "holes",    "flags",      NULL};
    if (kg_json_get(r->root, "prepare") != NULL)
        return kg_fail(
            err, KG_EUNSUPPORTED,
            "prepare is reserved for weights laid out ahead of time; it cannot be used yet");
    int rc = kg_json_only(r->root, "plan", keys, err);
    if (rc == KG_OK)
        rc = check_op_name(r, err);
    if (rc == KG_OK)
        rc = read_target(r, err);
    return rc < 0 ? rc : read_min_arch(r, err);
}

static int check_programs(const kg_plan *p, kg_error *err) {
    bool taken = false;
    for (size_t i = 0; i < p->nlaunches; i++)
        for (size_t k = 0; k < p->launches[i].nargs; k++)
            taken = taken || p->launches[i].args[k].kind == KG_PA_PROGRAMS;
    if (taken && p->nholes == 0)
        return kg_fail(err, KG_EFORMAT, "a launch takes \"programs\", but holes is empty");
    if (!taken && p->nholes > 0)
        return kg_fail(err, KG_EFORMAT, "holes are declared, but no launch takes \"programs\"");
    return KG_OK;
}

static int read_plan(kg_plan_reader *r, kg_error *err) {
    const kg_json *j = NULL;
    int rc = read_head(r, err);
    if (rc == KG_OK)
        rc = each(r, "tunables", true, 0, KG_MAX_TUNABLES, read_tunable, err);
    if (rc == KG_OK)
        rc = each(r, "specialize", false, 0, KG_MAX_DIMS, read_specialize, err);
    if (rc == KG_OK && (j = kg_json_get(r->root, "require")) != NULL)
        rc = kg_read_checked(&r->names, j, "require", &r->plan->require, err);
    if (rc == KG_OK)
        rc = each(r, "workspace", true, 0, KG_MAX_WORKSPACE, read_workspace, err);
    if (rc == KG_OK)
        rc = each(r, "zero", false, 0, KG_MAX_OUTPUTS, read_zero, err);
    if (rc == KG_OK && r->plan->target != KG_CUDA && kg_json_get(r->root, "tensor_maps") != NULL)
        rc = kg_fail(err, KG_EFORMAT, "tensor_maps is for target cuda");
    if (rc == KG_OK)
        rc = each(r, "tensor_maps", true, 0, KG_MAX_MAPS, kg_plan_read_map, err);
    if (rc == KG_OK)
        rc = each(r, "holes", false, 0, 4, read_hole, err);
    if (rc == KG_OK)
        rc = each(r, "flags", false, 0, 8, read_flag_name, err);
    if (rc == KG_OK)
        rc = kg_need(r->root, "", "launches", &j, err);
    if (rc == KG_OK)
        rc = each(r, "launches", false, 1, KG_MAX_LAUNCHES, kg_plan_read_launch, err);
    return rc < 0 ? rc : check_programs(r->plan, err);
}

/* The bytes of the opening comment, or why there is none. A byte order mark and white space may
 * precede. */
static int find_comment(const char *text, size_t n, const char *what, size_t *from, size_t *to,
                        kg_error *err) {
    static const char opening[] = "/* kgen";
    size_t at = n >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    while (at < n && memchr(" \t\r\n", text[at], 4) != NULL)
        at++;
    size_t body = at + sizeof opening - 1;
    bool opens = n >= body && memcmp(text + at, opening, sizeof opening - 1) == 0;
    if (!opens || (body < n && memchr(" \t\r\n{", text[body], 5) == NULL))
        return kg_fail(err, KG_EFORMAT,
                       "%s: a Candidate must open with its plan: /* kgen {\"format\": 1, ...} */",
                       what);
    const char *end = memmem(text + body, n - body, "*/", 2);
    if (end == NULL)
        return kg_fail(err, KG_EFORMAT, "%s: the plan's comment does not end: */ is missing", what);
    *from = body;
    *to = (size_t)(end - text);
    return KG_OK;
}

/* Parsed with what precedes it blanked, so that lines and columns in messages are those of the
 * file. */
static int parse_comment(const char *text, size_t n, const char *what, kg_json **root,
                         kg_error *err) {
    size_t from = 0, to = 0;
    int rc = find_comment(text, n, what, &from, &to, err);
    if (rc < 0)
        return rc;
    char *copy = malloc(to);
    if (copy == NULL)
        return kg_fail(err, KG_ENOMEM, "%s: out of memory", what);
    for (size_t i = 0; i < to; i++)
        copy[i] = i < from && text[i] != '\n' ? ' ' : text[i];
    char name[200];
    snprintf(name, sizeof name, "plan of %s", what);
    rc = kg_json_parse(copy, to, name, root, err);
    free(copy);
    if (rc == KG_OK && (rc = kg_json_format(*root, name, 1, err)) < 0)
        kg_json_free(*root);
    return rc;
}

int kg_source_op(const char *text, size_t n, const char *what, char op[128], kg_error *err) {
    kg_json *root = NULL;
    const char *s = NULL;
    int rc = parse_comment(text, n, what, &root, err);
    if (rc < 0)
        return rc;
    rc = kg_json_str(kg_json_get(root, "op"), "op", &s, err);
    if (rc == KG_OK && (!kg_is_name(s) || strlen(s) > 120))
        rc = kg_fail(err, KG_EFORMAT, "op is \"%.60s\", which is no name", s);
    if (rc == KG_OK)
        snprintf(op, 128, "%s", s);
    else
        kg_fail_prefix(err, rc, "plan of %s", what);
    kg_json_free(root);
    return rc;
}

int kg_plan_from_source(const char *text, size_t n, const char *what, const kg_op *op,
                        kg_plan **out, kg_error *err) {
    kg_json *root = NULL;
    int rc = parse_comment(text, n, what, &root, err);
    if (rc < 0)
        return rc;
    kg_plan *p = calloc(1, sizeof *p);
    kg_plan_reader r = {.op = op, .plan = p, .root = root};
    r.names = (kg_names){.op = op, .outputs = true, .plan = p};
    r.names.dims = op->ndims >= 32 ? UINT32_MAX : (1U << op->ndims) - 1;
    rc = p == NULL ? kg_fail(err, KG_ENOMEM, "out of memory") : read_plan(&r, err);
    kg_json_free(root);
    if (rc < 0) {
        kg_plan_free(p);
        return kg_fail_prefix(err, rc, "plan of %s", what);
    }
    *out = p;
    return KG_OK;
}
