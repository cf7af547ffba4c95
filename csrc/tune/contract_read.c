/* Reading JSON values with their key paths, and checking what expressions name. Knows nothing of
 * where the values go. */
#include "tune/contract_read.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/scope.h"

kg_at_text kg_at(const char *fmt, ...) {
    kg_at_text at;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(at.text, sizeof at.text, fmt, ap);
    va_end(ap);
    return at;
}

int kg_need(const kg_json *object, const char *at, const char *key, const kg_json **out,
            kg_error *err) {
    const kg_json *j = kg_json_get(object, key);
    if (j == NULL)
        return kg_fail(err, KG_EFORMAT, "%s%s%s is missing", at, *at ? "." : "", key);
    *out = j;
    return KG_OK;
}

int kg_read_object(const kg_json *j, const char *at, kg_error *err) {
    if (kg_json_is_object(j))
        return KG_OK;
    return kg_fail(err, KG_EFORMAT, "%s must be an object, found %s", at, kg_json_type(j));
}

int kg_read_array(const kg_json *j, const char *at, size_t min, size_t max, kg_error *err) {
    if (!kg_json_is_array(j))
        return kg_fail(err, KG_EFORMAT, "%s must be an array, found %s", at, kg_json_type(j));
    size_t n = kg_json_size(j);
    if (min == max && n != min)
        return kg_fail(err, KG_EFORMAT, "%s has %zu elements; it must have %zu", at, n, min);
    if (n < min || n > max)
        return kg_fail(err, KG_EFORMAT, "%s has %zu elements; it may have %zu to %zu", at, n, min,
                       max);
    return KG_OK;
}

int kg_read_text(const kg_json *j, const char *at, char **out, kg_error *err) {
    const char *s = NULL;
    int rc = kg_json_str(j, at, &s, err);
    if (rc < 0)
        return rc;
    char *copy = strdup(s);
    if (copy == NULL)
        return kg_fail(err, KG_ENOMEM, "%s: out of memory", at);
    free(*out);
    *out = copy;
    return KG_OK;
}

int kg_read_name(const kg_json *j, const char *at, char **out, kg_error *err) {
    const char *s = NULL;
    int rc = kg_json_str(j, at, &s, err);
    if (rc < 0)
        return rc;
    if (!kg_is_name(s) || strlen(s) > 120)
        return kg_fail(
            err, KG_EFORMAT,
            "%s is \"%.60s\"; a name is a letter or _, then up to 119 letters, digits and _", at,
            s);
    return kg_read_text(j, at, out, err);
}

int kg_read_flag(const kg_json *object, const char *at, const char *key, bool *out, kg_error *err) {
    const kg_json *j = kg_json_get(object, key);
    return j == NULL ? KG_OK
                     : kg_json_bool(j, kg_at("%s%s%s", at, *at ? "." : "", key).text, out, err);
}

int kg_read_dtype(const kg_json *j, const char *at, int *out, kg_error *err) {
    const char *s = NULL;
    int rc = kg_json_str(j, at, &s, err);
    if (rc < 0)
        return rc;
    int dtype = kg_dtype_parse(s);
    if (dtype < 0)
        return kg_fail(
            err, KG_EFORMAT,
            "%s is \"%.40s\"; dtypes are float32, float64, float16, bfloat16, int8, uint8, "
            "int16, int32, int64, bool",
            at, s);
    *out = dtype;
    return KG_OK;
}

/* White space around an expression is dropped, so that a bare name is recognised as one. */
static char *trimmed(const char *s) {
    while (isspace((unsigned char)*s))
        s++;
    size_t n = strlen(s);
    while (n > 0 && isspace((unsigned char)s[n - 1]))
        n--;
    return strndup(s, n);
}

int kg_read_expr(const kg_json *j, const char *at, kg_expr **out, kg_error *err) {
    char number[32];
    const char *s = number;
    int64_t i = 0;
    int rc = KG_OK;
    if (kg_json_is_number(j)) {
        rc = kg_json_int(j, at, &i, err);
        snprintf(number, sizeof number, "%lld", (long long)i);
    } else if (kg_json_is_string(j)) {
        rc = kg_json_str(j, at, &s, err);
    } else {
        return kg_fail(err, KG_EFORMAT,
                       "%s must be an expression (a string or an integer), found %s", at,
                       kg_json_type(j));
    }
    if (rc < 0)
        return rc;
    char *text = trimmed(s);
    kg_expr *e = NULL;
    if (text == NULL)
        return kg_fail(err, KG_ENOMEM, "%s: out of memory", at);
    rc = kg_expr_parse(text, &e, err);
    free(text);
    if (rc < 0)
        return kg_fail_prefix(err, rc, "%s", at);
    kg_expr_free(*out);
    *out = e;
    return KG_OK;
}

static bool in_list(const char *name, const char *const *list) {
    for (; *list != NULL; list++)
        if (name[0] == (*list)[0] && strcmp(name, *list) == 0)
            return true;
    return false;
}

int kg_check_word(const char *name, const char *what, const char *at, kg_error *err) {
    static const char *const c_words[] = {
        "auto",     "break",   "case",     "char",      "const",    "continue", "default",
        "do",       "double",  "else",     "enum",      "extern",   "float",    "for",
        "goto",     "if",      "inline",   "int",       "long",     "register", "restrict",
        "return",   "short",   "signed",   "sizeof",    "static",   "struct",   "switch",
        "typedef",  "union",   "unsigned", "void",      "volatile", "while",    "defined",
        "asm",      "typeof",  "bool",     "true",      "false",    "class",    "template",
        "typename", "this",    "operator", "namespace", "using",    "new",      "delete",
        "int64_t",  "int32_t", "uint32_t", "uint64_t",  "size_t",   NULL};
    static const char *const words[] = {"min",   "max",     "ceil_div", "align_up",
                                        "align", "present", "len",      "log2_ceil",
                                        "abs",   "numel",   NULL};
    const char *why = NULL;
    if (in_list(name, c_words))
        why = "a word of C";
    else if (in_list(name, words))
        why = "a function of expressions";
    else if (in_list(name, kg_constant_names))
        why = "a device constant";
    else if (kg_dtype_parse(name) >= 0)
        why = "a dtype";
    else if (strncmp(name, "KG_", 3) == 0 || strncmp(name, "kg_", 3) == 0)
        why = "kgen's own (KG_, kg_)";
    else if (name[0] == '_' && (name[1] == '_' || isupper((unsigned char)name[1])))
        why = "reserved to the compiler";
    if (why == NULL)
        return KG_OK;
    return kg_fail(err, KG_EFORMAT, "%s: %s cannot be the name of a %s: it is %s", at, name, what,
                   why);
}

static void add_name(char *out, size_t n, const char *name) {
    size_t at = strlen(out);
    snprintf(out + at, n - at, "%s%s", at > 0 ? ", " : "", name);
}

void kg_known_names(const kg_names *names, char *out, size_t n) {
    const kg_op *op = names->op;
    out[0] = '\0';
    for (size_t i = 0; i < op->ndims; i++)
        if ((names->dims >> i & 1) != 0)
            add_name(out, n, op->dims[i].name);
    for (size_t i = 0; i < op->nargs; i++)
        if (op->args[i].type == KG_ARG_INT || op->args[i].type == KG_ARG_INT_OPT ||
            op->args[i].type == KG_ARG_BOOL)
            add_name(out, n, op->args[i].name);
    for (size_t i = 0; names->plan != NULL && i < names->plan->ntunables; i++)
        add_name(out, n, names->plan->tunables[i].name);
    if (out[0] == '\0')
        add_name(out, n, "nothing");
}

static bool is_tunable(const kg_plan *plan, const char *name) {
    for (size_t i = 0; plan != NULL && i < plan->ntunables; i++)
        if (strcmp(plan->tunables[i].name, name) == 0)
            return true;
    return false;
}

static int unknown(const kg_names *names, const char *name, kg_error *err) {
    char known[300];
    kg_known_names(names, known, sizeof known);
    return kg_fail(err, KG_EFORMAT, "unknown name %s; known are %s", name, known);
}

static int check_arg_name(const kg_op_arg *a, kg_error *err) {
    switch (a->type) {
    case KG_ARG_INT:
    case KG_ARG_INT_OPT:
    case KG_ARG_BOOL:
        return KG_OK;
    case KG_ARG_TENSOR:
    case KG_ARG_TENSOR_OPT:
        return kg_fail(err, KG_EFORMAT, "%s is a tensor: ask for %s.size(0) or %s.numel", a->name,
                       a->name, a->name);
    case KG_ARG_INT_LIST:
        return kg_fail(err, KG_EFORMAT, "%s is an int[]: write %s[0] or len(%s)", a->name, a->name,
                       a->name);
    default:
        return kg_fail(err, KG_EFORMAT, "%s has type %s; expressions are integers", a->name,
                       kg_arg_type_name(a->type));
    }
}

static int check_name(const kg_names *names, const char *name, kg_error *err) {
    int i = kg_op_dim_index(names->op, name);
    if (i >= 0)
        return (names->dims >> i & 1) != 0
                   ? KG_OK
                   : kg_fail(err, KG_EFORMAT, "dim %s is not known yet here: it is %s", name,
                             names->op->dims[i].expr != NULL ? "derived later" : "bound later");
    if (is_tunable(names->plan, name) || kg_dtype_parse(name) >= 0)
        return KG_OK;
    if (in_list(name, kg_constant_names))
        return names->plan != NULL ? KG_OK
                                   : kg_fail(err, KG_EFORMAT, "%s is known in plans only", name);
    i = kg_op_arg_index(names->op, name);
    return i >= 0 ? check_arg_name(&names->op->args[i], err) : unknown(names, name, err);
}

static int check_list(const kg_names *names, const char *name, kg_error *err) {
    char known[200] = "";
    int i = kg_op_arg_index(names->op, name);
    if (i >= 0 && names->op->args[i].type == KG_ARG_INT_LIST)
        return KG_OK;
    if (i >= 0)
        return kg_fail(err, KG_EFORMAT, "%s has type %s, not int[]", name,
                       kg_arg_type_name(names->op->args[i].type));
    for (size_t k = 0; k < names->op->nargs; k++)
        if (names->op->args[k].type == KG_ARG_INT_LIST)
            add_name(known, sizeof known, names->op->args[k].name);
    return kg_fail(err, KG_EFORMAT, "%s is no int[] attribute; %s has %s", name, names->op->name,
                   known[0] != '\0' ? known : "none");
}

static int check_tensor(const kg_names *names, const char *name, kg_error *err) {
    char known[200] = "";
    int i = kg_op_arg_index(names->op, name);
    if (i >= 0 && kg_arg_is_tensor(names->op->args[i].type))
        return KG_OK;
    if (names->outputs && kg_op_output_index(names->op, name) >= 0)
        return KG_OK;
    for (size_t k = 0; k < names->op->nargs; k++)
        if (kg_arg_is_tensor(names->op->args[k].type))
            add_name(known, sizeof known, names->op->args[k].name);
    for (size_t k = 0; names->outputs && k < names->op->noutputs; k++)
        add_name(known, sizeof known, names->op->outputs[k].name);
    return kg_fail(err, KG_EFORMAT, "%s is no tensor here; tensors are %s", name, known);
}

static int check_member(const kg_names *names, const kg_ref *ref, kg_error *err) {
    static const char *const fields[] = {"ndim", "dtype", "numel", "contiguous", NULL};
    int rc = check_tensor(names, ref->object, err);
    if (rc < 0)
        return rc;
    if (ref->kind == KG_REF_FIELD) {
        if (in_list(ref->name, fields))
            return KG_OK;
        return kg_fail(err, KG_EFORMAT,
                       "%s has no field %s; fields are ndim, dtype, numel, contiguous", ref->object,
                       ref->name);
    }
    bool one = strcmp(ref->name, "size") == 0 || strcmp(ref->name, "stride") == 0;
    if ((one && ref->nargs == 1) || (strcmp(ref->name, "prod") == 0 && ref->nargs == 2))
        return KG_OK;
    return kg_fail(err, KG_EFORMAT,
                   "%s has no %s with %zu arguments; there are size(i), stride(i), prod(i, j)",
                   ref->object, ref->name, ref->nargs);
}

static int check_call(const kg_names *names, const kg_ref *ref, kg_error *err) {
    if (strcmp(ref->name, "len") == 0)
        return check_list(names, ref->object, err);
    if (strcmp(ref->name, "align") == 0)
        return check_tensor(names, ref->object, err);
    if (strcmp(ref->name, "numel") == 0)
        return kg_fail(err, KG_EFORMAT, "write %s.numel", ref->object);
    if (kg_op_arg_index(names->op, ref->object) >= 0 ||
        (names->outputs && kg_op_output_index(names->op, ref->object) >= 0))
        return KG_OK;
    return kg_fail(err, KG_EFORMAT, "%s is no argument%s of %s", ref->object,
                   names->outputs ? " and no output" : "", names->op->name);
}

static int check_ref(void *ctx, const kg_ref *ref, kg_error *err) {
    const kg_names *names = ctx;
    switch (ref->kind) {
    case KG_REF_NAME:
        return check_name(names, ref->name, err);
    case KG_REF_INDEX:
        return check_list(names, ref->name, err);
    case KG_REF_CALL:
        return check_call(names, ref, err);
    default:
        return check_member(names, ref, err);
    }
}

int kg_check_names(const kg_names *names, const kg_expr *e, const char *at, kg_error *err) {
    int rc = kg_expr_visit(e, check_ref, (void *)names, err);
    return rc < 0 ? kg_fail_prefix(err, rc, "%s", at) : KG_OK;
}

int kg_read_checked(const kg_names *names, const kg_json *j, const char *at, kg_expr **out,
                    kg_error *err) {
    int rc = kg_read_expr(j, at, out, err);
    return rc < 0 ? rc : kg_check_names(names, *out, at, err);
}
