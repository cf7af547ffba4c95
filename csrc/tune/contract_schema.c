/* Holds a contract's args against its torch schema: the same names and types in the same order, as
 * many tensors out. Knows only the types that contracts know. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tune/contract_read.h"

typedef struct scanner {
    const char *text, *at;
    kg_error *err;
} scanner;

static void skip_space(scanner *s) {
    while (*s->at == ' ')
        s->at++;
}

static bool take(scanner *s, const char *word) {
    size_t n = strlen(word);
    skip_space(s);
    if (strncmp(s->at, word, n) != 0)
        return false;
    s->at += n;
    return true;
}

static int expected(scanner *s, const char *what) {
    return kg_fail(s->err, KG_EFORMAT, "schema, column %zu: expected %s, found \"%.20s\"",
                   (size_t)(s->at - s->text) + 1, what, s->at);
}

/* A run of characters that may make a name, or a type with its suffix. */
static size_t word(scanner *s, const char *extra, char *out, size_t n) {
    size_t len = 0;
    skip_space(s);
    while (isalnum((unsigned char)s->at[len]) || s->at[len] == '_' ||
           (s->at[len] != '\0' && strchr(extra, s->at[len]) != NULL))
        len++;
    snprintf(out, n, "%.*s", (int)(len < 200 ? len : 200), s->at);
    s->at += len;
    return len;
}

/* "=1", "=None", "=[1, 1]", "=\"\"": a number is kept, the rest is only passed over. */
static int default_value(scanner *s, kg_op_arg *a) {
    char text[64];
    const char *close = NULL;
    char *end = NULL;
    skip_space(s);
    if (*s->at == '[' || *s->at == '"') {
        close = strchr(s->at + 1, *s->at == '[' ? ']' : '"');
        if (close == NULL)
            return expected(s, "a default that ends");
        s->at = close + 1;
        return KG_OK;
    }
    if (word(s, "+-.", text, sizeof text) == 0)
        return expected(s, "a default");
    if (a->type == KG_ARG_INT_LIST || a->type == KG_ARG_STR || strcmp(text, "None") == 0)
        return KG_OK;
    bool truth = strcmp(text, "True") == 0;
    double v = truth || strcmp(text, "False") == 0 ? (double)truth : strtod(text, &end);
    if (end != NULL && *end != '\0')
        return kg_fail(s->err, KG_EFORMAT, "schema: the default %s of %s is no number", text,
                       a->name);
    if (a->has_default && (a->default_number < v || a->default_number > v))
        return kg_fail(s->err, KG_EFORMAT, "schema: %s has default %s, but args say %.17g", a->name,
                       text, a->default_number);
    a->has_default = true;
    a->default_number = v;
    return KG_OK;
}

static int one_arg(scanner *s, kg_op *op, size_t i) {
    char type[208], name[208];
    if (word(s, "[]?", type, sizeof type) == 0)
        return expected(s, "a type");
    if (word(s, "", name, sizeof name) == 0)
        return expected(s, "a name");
    if (i >= op->nargs)
        return kg_fail(s->err, KG_EFORMAT, "schema has an argument %s that args lacks", name);
    kg_op_arg *a = &op->args[i];
    if (strcmp(name, a->name) != 0)
        return kg_fail(s->err, KG_EFORMAT, "args[%zu].name is \"%s\", but the schema has %s there",
                       i, a->name, name);
    if (strcmp(type, kg_arg_type_name(a->type)) != 0)
        return kg_fail(s->err, KG_EFORMAT, "args[%zu].type is \"%s\", but the schema has %s %s", i,
                       kg_arg_type_name(a->type), type, name);
    return take(s, "=") ? default_value(s, a) : KG_OK;
}

static int all_args(scanner *s, kg_op *op) {
    size_t n = 0;
    if (!take(s, "("))
        return expected(s, "(");
    if (!take(s, ")")) {
        do {
            if (take(s, "*"))
                continue;
            int rc = one_arg(s, op, n++);
            if (rc < 0)
                return rc;
        } while (take(s, ","));
        if (!take(s, ")"))
            return expected(s, ", or )");
    }
    if (n < op->nargs)
        return kg_fail(s->err, KG_EFORMAT, "args[%zu] (%s) is not in the schema", n,
                       op->args[n].name);
    return KG_OK;
}

static int one_result(scanner *s) {
    char name[208];
    if (!take(s, "Tensor"))
        return expected(s, "Tensor");
    word(s, "", name, sizeof name);
    return KG_OK;
}

static int results(scanner *s, const kg_op *op) {
    size_t n = 0;
    int rc = KG_OK;
    if (!take(s, "->"))
        return expected(s, "->");
    if (!take(s, "(")) {
        rc = one_result(s);
        n = 1;
    } else if (!take(s, ")")) {
        do {
            rc = one_result(s);
            n++;
        } while (rc == KG_OK && take(s, ","));
        if (rc == KG_OK && !take(s, ")"))
            return expected(s, ", or )");
    }
    skip_space(s);
    if (rc == KG_OK && *s->at != '\0')
        return expected(s, "the end");
    if (rc == KG_OK && n != op->noutputs)
        return kg_fail(s->err, KG_EFORMAT, "the schema returns %zu tensors, but outputs has %zu", n,
                       op->noutputs);
    return rc;
}

int kg_check_schema(kg_op *op, kg_error *err) {
    scanner s = {.text = op->schema, .at = op->schema, .err = err};
    char name[208];
    if (word(&s, "", name, sizeof name) == 0)
        return expected(&s, "the Op's name");
    if (strcmp(name, op->name) != 0)
        return kg_fail(err, KG_EFORMAT, "schema names %s, but op is \"%s\"", name, op->name);
    int rc = all_args(&s, op);
    return rc < 0 ? rc : results(&s, op);
}
