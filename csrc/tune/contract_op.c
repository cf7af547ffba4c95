/* op.json into a kg_op (docs/formats.md, "op.json"). Everything that can be known to be wrong
 * without a call is refused here, so that binding a call fails only on the call's account. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "tune/contract.h"
#include "tune/contract_read.h"

static kg_names names_of(const kg_op *op) {
    return (kg_names){.op = op, .dims = op->ndims >= 32 ? UINT32_MAX : (1U << op->ndims) - 1};
}

static int read_type(const kg_json *j, const char *at, kg_arg_type *out, kg_error *err) {
    const char *s = NULL;
    int rc = kg_json_str(j, at, &s, err);
    if (rc < 0)
        return rc;
    for (int t = 0; t <= KG_ARG_FLOAT_LIST; t++)
        if (strcmp(s, kg_arg_type_name((kg_arg_type)t)) == 0) {
            *out = (kg_arg_type)t;
            return KG_OK;
        }
    return kg_fail(
        err, KG_EFORMAT,
        "%s is \"%.40s\"; types are Tensor, Tensor?, Tensor[], int, int?, float, float?, "
        "bool, str, int[], float[]",
        at, s);
}

/* A name that nothing in the contract has yet. */
static int read_new_name(const kg_op *op, const kg_json *j, const char *at, const char *what,
                         char **out, kg_error *err) {
    int rc = kg_read_name(j, at, out, err);
    if (rc < 0)
        return rc;
    const char *has = kg_op_arg_index(op, *out) >= 0      ? "an argument"
                      : kg_op_dim_index(op, *out) >= 0    ? "a dim"
                      : kg_op_output_index(op, *out) >= 0 ? "an output"
                                                          : NULL;
    if (has != NULL)
        return kg_fail(err, KG_EFORMAT, "%s: %s is the name of %s already", at, *out, has);
    return kg_check_word(*out, what, at, err);
}

static int read_dtypes(kg_op *op, size_t i, const kg_json *j, kg_error *err) {
    kg_at_text at = kg_at("args[%zu].dtypes", i);
    int rc = kg_read_array(j, at.text, 1, KG_DTYPE_COUNT, err);
    for (size_t k = 0; rc == KG_OK && k < kg_json_size(j); k++) {
        int dtype = 0;
        rc = kg_read_dtype(kg_json_at(j, k), kg_at("%s[%zu]", at.text, k).text, &dtype, err);
        if (rc == KG_OK && (op->args[i].dtypes >> dtype & 1) != 0)
            rc = kg_fail(err, KG_EFORMAT, "%s names %s twice", at.text, kg_dtype_name(dtype));
        if (rc == KG_OK)
            op->args[i].dtypes |= 1U << dtype;
    }
    return rc;
}

/* An earlier tensor argument by name; at most `before` of them are known. */
static int read_tensor_ref(const kg_op *op, size_t before, const kg_json *j, const char *at,
                           int *out, kg_error *err) {
    const char *s = NULL;
    int rc = kg_json_str(j, at, &s, err);
    if (rc < 0)
        return rc;
    int i = kg_op_arg_index(op, s);
    if (i < 0 || (size_t)i >= before || !kg_arg_is_tensor(op->args[i].type))
        return kg_fail(err, KG_EFORMAT, "%s is \"%.60s\", which is no tensor argument before it",
                       at, s);
    *out = i;
    return KG_OK;
}

/* A bare new name in a shape becomes a dim; an absent optional tensor cannot be the one to give it.
 */
static int bind_dim(kg_op *op, size_t i, const kg_expr *e, const char *at, kg_error *err) {
    const char *name = kg_expr_text(e);
    if (op->args[i].type == KG_ARG_TENSOR_OPT)
        return kg_fail(err, KG_EFORMAT,
                       "%s: %s would be bound by %s, which may be absent; bind it in a Tensor", at,
                       name, op->args[i].name);
    if (kg_op_arg_index(op, name) >= 0)
        return kg_fail(err, KG_EFORMAT, "%s: %s is the name of an argument already", at, name);
    int rc = kg_check_word(name, "dim", at, err);
    if (rc < 0)
        return rc;
    if (op->ndims == KG_MAX_DIMS)
        return kg_fail(err, KG_EFORMAT, "%s: more than %d dims", at, KG_MAX_DIMS);
    char *copy = strdup(name);
    if (copy == NULL)
        return kg_fail(err, KG_ENOMEM, "%s: out of memory", at);
    op->dims[op->ndims++] = (kg_op_dim){.name = copy, .key = true};
    return KG_OK;
}

static bool is_new_name(const kg_op *op, const char *text) {
    if (!kg_is_name(text) || kg_op_dim_index(op, text) >= 0)
        return false;
    int i = kg_op_arg_index(op, text);
    return i < 0 || (op->args[i].type != KG_ARG_INT && op->args[i].type != KG_ARG_BOOL &&
                     op->args[i].type != KG_ARG_INT_OPT);
}

static int read_shape(kg_op *op, size_t i, const kg_json *j, kg_error *err) {
    kg_op_arg *a = &op->args[i];
    kg_at_text at = kg_at("args[%zu].shape", i);
    int rc = kg_read_array(j, at.text, 0, KG_MAX_RANK, err);
    a->shaped = rc == KG_OK;
    for (size_t d = 0; rc == KG_OK && d < kg_json_size(j); d++) {
        kg_at_text here = kg_at("%s[%zu]", at.text, d);
        rc = kg_read_expr(kg_json_at(j, d), here.text, &a->shape[d], err);
        if (rc < 0)
            break;
        a->rank = d + 1;
        kg_names names = names_of(op);
        rc = is_new_name(op, kg_expr_text(a->shape[d]))
                 ? bind_dim(op, i, a->shape[d], here.text, err)
                 : kg_check_names(&names, a->shape[d], here.text, err);
    }
    return rc;
}

static int read_tensor_arg(kg_op *op, size_t i, const kg_json *j, kg_error *err) {
    static const char *const keys[] = {"name", "type", "dtypes", "dtype_as", "shape", NULL};
    kg_at_text at = kg_at("args[%zu]", i);
    kg_op_arg *a = &op->args[i];
    const kg_json *dtypes = kg_json_get(j, "dtypes"), *as = kg_json_get(j, "dtype_as");
    const kg_json *shape = kg_json_get(j, "shape");
    int rc = kg_json_only(j, at.text, keys, err);
    if (rc < 0)
        return rc;
    if ((dtypes == NULL) == (as == NULL))
        return kg_fail(err, KG_EFORMAT, "%s must have one of dtypes and dtype_as", at.text);
    if (dtypes != NULL)
        rc = read_dtypes(op, i, dtypes, err);
    else
        rc = read_tensor_ref(op, i, as, kg_at("%s.dtype_as", at.text).text, &a->same_dtype_as, err);
    return rc == KG_OK && shape != NULL ? read_shape(op, i, shape, err) : rc;
}

static int read_default(kg_op_arg *a, const kg_json *j, const char *at, kg_error *err) {
    int64_t i = 0;
    bool b = false;
    double d = 0;
    int rc = KG_OK;
    bool optional = a->type == KG_ARG_INT_OPT || a->type == KG_ARG_FLOAT_OPT;
    if (optional && kg_json_is_null(j))
        return KG_OK;
    if (a->type == KG_ARG_INT_LIST) {
        rc = kg_json_is_number(j) ? kg_json_int(j, at, &i, err)
                                  : kg_read_array(j, at, 0, KG_MAX_LIST, err);
        for (size_t k = 0; rc == KG_OK && kg_json_is_array(j) && k < kg_json_size(j); k++)
            rc = kg_json_int(kg_json_at(j, k), at, &i, err);
        return rc;
    }
    if (a->type == KG_ARG_BOOL)
        rc = kg_json_bool(j, at, &b, err);
    else if (a->type == KG_ARG_FLOAT || a->type == KG_ARG_FLOAT_OPT)
        rc = kg_json_double(j, at, &d, err);
    else
        rc = kg_json_int(j, at, &i, err);
    if (rc < 0)
        return rc;
    a->has_default = true;
    a->default_number = a->type == KG_ARG_BOOL                                   ? (double)b
                        : a->type == KG_ARG_FLOAT || a->type == KG_ARG_FLOAT_OPT ? d
                                                                                 : (double)i;
    return KG_OK;
}

static int read_attr(kg_op *op, size_t i, const kg_json *j, kg_error *err) {
    static const char *const keys[] = {"name", "type", "default", "key", "none", NULL};
    static const char *const none_keys[] = {"rsqrt", NULL};
    kg_at_text at = kg_at("args[%zu]", i);
    kg_op_arg *a = &op->args[i];
    const kg_json *none = kg_json_get(j, "none"), *given = kg_json_get(j, "default");
    int rc = kg_json_only(j, at.text, keys, err);
    if (rc == KG_OK)
        rc = kg_read_flag(j, at.text, "key", &a->key, err);
    if (rc == KG_OK && given != NULL)
        rc = read_default(a, given, kg_at("%s.default", at.text).text, err);
    if (rc < 0 || none == NULL)
        return rc;
    if (a->type != KG_ARG_FLOAT_OPT)
        return kg_fail(err, KG_EFORMAT, "%s.none is for a float?, and %s has type %s", at.text,
                       a->name, kg_arg_type_name(a->type));
    kg_at_text where = kg_at("%s.none", at.text);
    rc = kg_read_object(none, where.text, err);
    if (rc == KG_OK)
        rc = kg_json_only(none, where.text, none_keys, err);
    if (rc == KG_OK)
        rc = kg_need(none, where.text, "rsqrt", &none, err);
    /* Its names are checked when all dims are known. */
    return rc < 0 ? rc
                  : kg_read_expr(none, kg_at("%s.rsqrt", where.text).text, &a->none_rsqrt, err);
}

/* What a Program travels in: at most one of each. */
static int check_single(const kg_op *op, size_t i, kg_error *err) {
    if (kg_arg_is_tensor(op->args[i].type) || kg_arg_is_attr(op->args[i].type))
        return KG_OK;
    for (size_t k = 0; k < i; k++)
        if (op->args[k].type == op->args[i].type)
            return kg_fail(err, KG_EFORMAT, "args[%zu]: an Op has at most one %s, and %s is one", i,
                           kg_arg_type_name(op->args[i].type), op->args[k].name);
    return KG_OK;
}

/* Names and types first: a shape may ask for an attribute that comes later. */
static int read_arg_head(kg_op *op, const kg_json *j, size_t i, kg_error *err) {
    kg_at_text at = kg_at("args[%zu]", i);
    kg_op_arg *a = &op->args[i];
    const kg_json *name = NULL, *type = NULL;
    *a = (kg_op_arg){.same_dtype_as = -1, .key = true};
    int rc = kg_read_object(j, at.text, err);
    if (rc == KG_OK)
        rc = kg_need(j, at.text, "name", &name, err);
    if (rc == KG_OK)
        rc = kg_need(j, at.text, "type", &type, err);
    if (rc == KG_OK)
        rc = read_type(type, kg_at("%s.type", at.text).text, &a->type, err);
    if (rc == KG_OK)
        rc = read_new_name(op, name, kg_at("%s.name", at.text).text, "argument", &a->name, err);
    if (rc < 0) {
        free(a->name);
        a->name = NULL;
        return rc;
    }
    op->nargs++;
    return check_single(op, i, err);
}

static int read_arg_body(kg_op *op, const kg_json *j, size_t i, kg_error *err) {
    static const char *const bare_keys[] = {"name", "type", NULL};
    if (kg_arg_is_tensor(op->args[i].type))
        return read_tensor_arg(op, i, j, err);
    if (kg_arg_is_attr(op->args[i].type))
        return read_attr(op, i, j, err);
    return kg_json_only(j, kg_at("args[%zu]", i).text, bare_keys, err);
}

static int read_dim(kg_op *op, const kg_json *j, size_t i, kg_error *err) {
    static const char *const keys[] = {"name", "expr", "key", NULL};
    kg_at_text at = kg_at("dims[%zu]", i);
    kg_op_dim d = {.key = true};
    kg_names names = names_of(op);
    const kg_json *name = NULL, *expr = NULL;
    int rc = kg_read_object(j, at.text, err);
    if (rc == KG_OK)
        rc = kg_json_only(j, at.text, keys, err);
    if (rc == KG_OK)
        rc = kg_need(j, at.text, "name", &name, err);
    if (rc == KG_OK)
        rc = kg_need(j, at.text, "expr", &expr, err);
    if (rc == KG_OK && op->ndims == KG_MAX_DIMS)
        rc = kg_fail(err, KG_EFORMAT, "%s: more than %d dims", at.text, KG_MAX_DIMS);
    if (rc == KG_OK)
        rc = read_new_name(op, name, kg_at("%s.name", at.text).text, "dim", &d.name, err);
    if (rc == KG_OK)
        rc = kg_read_checked(&names, expr, kg_at("%s.expr", at.text).text, &d.expr, err);
    if (rc == KG_OK)
        rc = kg_read_flag(j, at.text, "key", &d.key, err);
    if (rc < 0) {
        free(d.name);
        kg_expr_free(d.expr);
        return rc;
    }
    op->dims[op->ndims++] = d;
    return KG_OK;
}

static int read_dynamic(kg_op *op, const kg_json *j, kg_error *err) {
    int rc = kg_read_array(j, "dynamic", 0, KG_MAX_DIMS, err);
    for (size_t i = 0; rc == KG_OK && i < kg_json_size(j); i++) {
        kg_at_text at = kg_at("dynamic[%zu]", i);
        kg_names names = names_of(op);
        char known[300];
        const char *s = NULL;
        rc = kg_json_str(kg_json_at(j, i), at.text, &s, err);
        if (rc < 0)
            break;
        int d = kg_op_dim_index(op, s);
        kg_known_names(&names, known, sizeof known);
        if (d < 0)
            return kg_fail(err, KG_EFORMAT, "%s is \"%.60s\", which is no dim; known are %s",
                           at.text, s, known);
        if (!op->dims[d].key)
            return kg_fail(err, KG_EFORMAT, "%s: %s has \"key\": false, so no pin holds it",
                           at.text, s);
        if (op->dims[d].dynamic)
            return kg_fail(err, KG_EFORMAT, "%s names %s twice", at.text, s);
        op->dims[d].dynamic = true;
    }
    return rc;
}

static int read_check(kg_op *op, const kg_json *j, size_t i, kg_error *err) {
    static const char *const keys[] = {"expr", "message", NULL};
    kg_at_text at = kg_at("checks[%zu]", i);
    kg_op_check *c = &op->checks[op->nchecks++];
    kg_names names = names_of(op);
    const kg_json *expr = NULL, *message = kg_json_get(j, "message");
    int rc = kg_read_object(j, at.text, err);
    if (rc == KG_OK)
        rc = kg_json_only(j, at.text, keys, err);
    if (rc == KG_OK)
        rc = kg_need(j, at.text, "expr", &expr, err);
    if (rc == KG_OK)
        rc = kg_read_checked(&names, expr, kg_at("%s.expr", at.text).text, &c->expr, err);
    if (rc == KG_OK && message != NULL)
        rc = kg_read_text(message, kg_at("%s.message", at.text).text, &c->message, err);
    return rc;
}

static int output_dtype(kg_op *op, kg_op_output *o, const kg_json *j, const char *at,
                        kg_error *err) {
    const kg_json *dtype = kg_json_get(j, "dtype"), *as = kg_json_get(j, "dtype_as");
    if (dtype != NULL && as != NULL)
        return kg_fail(err, KG_EFORMAT, "%s must have one of dtype and dtype_as", at);
    if (dtype != NULL)
        return kg_read_dtype(dtype, kg_at("%s.dtype", at).text, &o->dtype, err);
    if (as != NULL)
        return read_tensor_ref(op, op->nargs, as, kg_at("%s.dtype_as", at).text, &o->dtype_of, err);
    if (o->like < 0)
        return kg_fail(err, KG_EFORMAT, "%s must have one of dtype and dtype_as", at);
    o->dtype_of = o->like;
    return KG_OK;
}

static int output_shape(const kg_op *op, kg_op_output *o, const kg_json *j, const char *at,
                        kg_error *err) {
    kg_names names = names_of(op);
    int rc = kg_read_array(j, kg_at("%s.shape", at).text, 0, KG_MAX_RANK, err);
    for (size_t d = 0; rc == KG_OK && d < kg_json_size(j); d++) {
        rc = kg_read_checked(&names, kg_json_at(j, d), kg_at("%s.shape[%zu]", at, d).text,
                             &o->shape[d], err);
        if (rc == KG_OK)
            o->rank = d + 1;
    }
    return rc;
}

static int output_body(kg_op *op, kg_op_output *o, const kg_json *j, const char *at,
                       kg_error *err) {
    static const char *const keys[] = {"name",     "like",     "shape", "dtype",
                                       "dtype_as", "optional", NULL};
    const kg_json *like = kg_json_get(j, "like"), *shape = kg_json_get(j, "shape");
    int rc = kg_json_only(j, at, keys, err);
    if (rc < 0)
        return rc;
    if ((like == NULL) == (shape == NULL))
        return kg_fail(err, KG_EFORMAT, "%s must have one of like and shape", at);
    if (like != NULL) {
        rc = read_tensor_ref(op, op->nargs, like, kg_at("%s.like", at).text, &o->like, err);
        if (rc == KG_OK && op->args[o->like].type != KG_ARG_TENSOR)
            rc = kg_fail(err, KG_EFORMAT, "%s.like: %s may be absent", at, op->args[o->like].name);
    } else {
        rc = output_shape(op, o, shape, at, err);
    }
    if (rc == KG_OK)
        rc = output_dtype(op, o, j, at, err);
    return rc < 0 ? rc : kg_read_flag(j, at, "optional", &o->optional, err);
}

static int read_output(kg_op *op, const kg_json *j, size_t i, kg_error *err) {
    kg_at_text at = kg_at("outputs[%zu]", i);
    kg_op_output o = {.dtype = -1, .dtype_of = -1, .like = -1};
    const kg_json *name = NULL;
    int rc = kg_read_object(j, at.text, err);
    if (rc == KG_OK)
        rc = kg_need(j, at.text, "name", &name, err);
    if (rc == KG_OK)
        rc = read_new_name(op, name, kg_at("%s.name", at.text).text, "output", &o.name, err);
    if (rc < 0) {
        free(o.name);
        return rc;
    }
    op->outputs[op->noutputs++] = o;
    return output_body(op, &op->outputs[op->noutputs - 1], j, at.text, err);
}

static int read_holes(kg_op *op, const kg_json *j, kg_error *err) {
    int rc = kg_read_array(j, "holes", 0, 2, err);
    for (size_t i = 0; rc == KG_OK && i < kg_json_size(j); i++) {
        kg_at_text at = kg_at("holes[%zu]", i);
        rc = kg_read_text(kg_json_at(j, i), at.text, &op->holes[op->nholes], err);
        if (rc < 0)
            break;
        const char *hole = op->holes[op->nholes++];
        if (strcmp(hole, "SCORE") != 0 && strcmp(hole, "MASK") != 0 &&
            strcmp(hole, "EPILOGUE") != 0)
            return kg_fail(err, KG_EFORMAT, "%s is \"%.40s\"; holes are SCORE, MASK and EPILOGUE",
                           at.text, hole);
        if (i == 1 && strcmp(hole, op->holes[0]) == 0)
            return kg_fail(err, KG_EFORMAT, "%s names %s twice", at.text, hole);
    }
    return rc;
}

/* Read for its errors alone: only the Python side follows a reference. */
static int check_reference(const kg_json *j, kg_error *err) {
    static const char *const keys[][4] = {
        {"kind", "call", NULL}, {"kind", "file", NULL}, {"kind", "file", "name", NULL}};
    static const char *const kinds[] = {"torch", "export", "source"};
    const kg_json *kind = NULL, *value = NULL;
    const char *s = NULL;
    int rc = kg_read_object(j, "reference", err);
    if (rc == KG_OK)
        rc = kg_need(j, "reference", "kind", &kind, err);
    if (rc == KG_OK)
        rc = kg_json_str(kind, "reference.kind", &s, err);
    size_t k = 0;
    while (rc == KG_OK && k < 3 && strcmp(s, kinds[k]) != 0)
        k++;
    if (rc == KG_OK && k == 3)
        return kg_fail(err, KG_EFORMAT,
                       "reference.kind is \"%.40s\"; kinds are torch, export, source", s);
    if (rc == KG_OK)
        rc = kg_json_only(j, "reference", keys[k], err);
    for (size_t i = 1; rc == KG_OK && keys[k][i] != NULL; i++) {
        kg_at_text at = kg_at("reference.%s", keys[k][i]);
        rc = kg_need(j, "reference", keys[k][i], &value, err);
        if (rc == KG_OK)
            rc = kg_json_str(value, at.text, &s, err);
        if (rc == KG_OK && strcmp(keys[k][i], "file") == 0 && (strchr(s, '/') || *s == '\0'))
            rc = kg_fail(err, KG_EFORMAT, "%s must be a file's name beside op.json, without /",
                         at.text);
    }
    return rc;
}

typedef int (*item_reader)(kg_op *op, const kg_json *j, size_t i, kg_error *err);

static int read_items(kg_op *op, const kg_json *root, const char *key, size_t max, item_reader read,
                      kg_error *err) {
    const kg_json *j = kg_json_get(root, key);
    int rc = j == NULL ? KG_OK : kg_read_array(j, key, 0, max, err);
    for (size_t i = 0; rc == KG_OK && j != NULL && i < kg_json_size(j); i++)
        rc = read(op, kg_json_at(j, i), i, err);
    return rc;
}

static int check_none(const kg_op *op, kg_error *err) {
    kg_names names = names_of(op);
    int rc = KG_OK;
    for (size_t i = 0; i < op->nargs && rc == KG_OK; i++)
        if (op->args[i].none_rsqrt != NULL)
            rc = kg_check_names(&names, op->args[i].none_rsqrt,
                                kg_at("args[%zu].none.rsqrt", i).text, err);
    return rc;
}

static int read_optional_expr(const kg_op *op, const kg_json *root, const char *key, kg_expr **out,
                              kg_error *err) {
    kg_names names = names_of(op);
    const kg_json *j = kg_json_get(root, key);
    return j == NULL || kg_json_is_null(j) ? KG_OK : kg_read_checked(&names, j, key, out, err);
}

static int read_kind(const kg_json *root, kg_error *err) {
    const kg_json *j = kg_json_get(root, "kind");
    const char *s = "kernel";
    int rc = j == NULL ? KG_OK : kg_json_str(j, "kind", &s, err);
    if (rc < 0 || strcmp(s, "kernel") == 0)
        return rc;
    if (strcmp(s, "graph") == 0)
        return kg_fail(err, KG_EUNSUPPORTED,
                       "kind \"graph\" is reserved; this kgen knows contracts of kind \"kernel\"");
    return kg_fail(err, KG_EFORMAT, "kind is \"%.40s\"; it must be \"kernel\"", s);
}

static int read_head(kg_op *op, const kg_json *root, kg_error *err) {
    static const char *const keys[] = {"format",    "op",      "kind",      "schema",  "args",
                                       "dims",      "dynamic", "checks",    "outputs", "holes",
                                       "reduction", "flops",   "reference", NULL};
    const kg_json *name = NULL, *schema = NULL;
    int rc = read_kind(root, err);
    if (rc == KG_OK)
        rc = kg_json_only(root, "contract", keys, err);
    if (rc == KG_OK)
        rc = kg_need(root, "", "op", &name, err);
    if (rc == KG_OK)
        rc = kg_read_name(name, "op", &op->name, err);
    if (rc == KG_OK)
        rc = kg_need(root, "", "schema", &schema, err);
    return rc < 0 ? rc : kg_read_text(schema, "schema", &op->schema, err);
}

static int read_op(kg_op *op, const kg_json *root, kg_error *err) {
    const kg_json *j = NULL;
    int rc = read_head(op, root, err);
    if (rc == KG_OK)
        rc = kg_need(root, "", "args", &j, err);
    if (rc == KG_OK)
        rc = read_items(op, root, "args", KG_MAX_ARGS, read_arg_head, err);
    if (rc == KG_OK)
        rc = read_items(op, root, "args", KG_MAX_ARGS, read_arg_body, err);
    if (rc == KG_OK)
        rc = read_items(op, root, "dims", KG_MAX_DIMS, read_dim, err);
    if (rc == KG_OK && (j = kg_json_get(root, "dynamic")) != NULL)
        rc = read_dynamic(op, j, err);
    if (rc == KG_OK)
        rc = check_none(op, err);
    if (rc == KG_OK)
        rc = read_items(op, root, "checks", KG_MAX_DIMS, read_check, err);
    if (rc == KG_OK)
        rc = kg_need(root, "", "outputs", &j, err);
    if (rc == KG_OK)
        rc = read_items(op, root, "outputs", KG_MAX_OUTPUTS, read_output, err);
    if (rc == KG_OK && op->noutputs == 0)
        rc = kg_fail(err, KG_EFORMAT, "outputs is empty; an Op gives at least one tensor");
    if (rc == KG_OK && (j = kg_json_get(root, "holes")) != NULL)
        rc = read_holes(op, j, err);
    if (rc == KG_OK)
        rc = read_optional_expr(op, root, "flops", &op->flops, err);
    if (rc == KG_OK)
        rc = read_optional_expr(op, root, "reduction", &op->reduction, err);
    if (rc == KG_OK)
        rc = kg_need(root, "", "reference", &j, err);
    if (rc == KG_OK)
        rc = check_reference(j, err);
    return rc < 0 ? rc : kg_check_schema(op, err);
}

static int hash_json(const kg_json *root, char out[65], kg_error *err) {
    kg_buf text;
    kg_buf_init(&text, 0);
    kg_json_canonical(root, &text);
    int rc = kg_buf_check(&text, "canonical text", err);
    if (rc == KG_OK)
        kg_sha256_hex(text.data, text.len, out);
    kg_buf_free(&text);
    return rc;
}

int kg_op_from_json(const char *text, size_t n, const char *what, kg_op **out, kg_error *err) {
    kg_json *root = NULL;
    int rc = kg_json_parse(text, n, what, &root, err);
    if (rc < 0)
        return rc;
    kg_op *op = calloc(1, sizeof *op);
    rc = op == NULL ? kg_fail(err, KG_ENOMEM, "%s: out of memory", what)
                    : kg_json_format(root, what, 1, err);
    if (rc == KG_OK && (rc = read_op(op, root, err)) < 0)
        kg_fail_prefix(err, rc, "%s", what);
    if (rc == KG_OK)
        rc = hash_json(root, op->hash, err);
    kg_json_free(root);
    if (rc < 0) {
        kg_op_free(op);
        return rc;
    }
    kg_op_link(op);
    *out = op;
    return KG_OK;
}
