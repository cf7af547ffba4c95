/* Names the part of an expression that did not hold, with the values of what it mentions. Works on
 * the text, which is all that an expression shows of itself. */
#include "runtime/scope_explain.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

static bool word_char(char c) {
    return isalnum((unsigned char)c) || c == '_';
}

static size_t word_length(const char *s) {
    size_t n = 0;
    while (word_char(s[n]))
        n++;
    return n;
}

/* Past the bracket that closes the one at s. */
static size_t group_length(const char *s) {
    int depth = 0;
    for (size_t i = 0; s[i] != '\0'; i++) {
        depth += (s[i] == '(' || s[i] == '[') - (s[i] == ')' || s[i] == ']');
        if (depth == 0)
            return i + 1;
    }
    return strlen(s);
}

/* The length of the reference that starts at s: "N", "x.stride(1)", "padding[0]", "align(x)". 0 for
 * a function of numbers, whose arguments are looked at instead. */
static size_t reference_length(const char *s) {
    size_t n = word_length(s);
    bool of_name = strncmp(s, "align(", 6) == 0 || strncmp(s, "present(", 8) == 0 ||
                   strncmp(s, "len(", 4) == 0;
    if (s[n] == '.') {
        n += 1 + word_length(s + n + 1);
        return s[n] == '(' ? n + group_length(s + n) : n;
    }
    if (s[n] == '[' || (of_name && s[n] == '('))
        return n + group_length(s + n);
    return s[n] == '(' ? 0 : n;
}

static bool value_of(kg_scope *s, const char *text, size_t n, int64_t *out) {
    char copy[1024];
    kg_expr *e = NULL;
    if (n >= sizeof copy)
        return false;
    memcpy(copy, text, n);
    copy[n] = '\0';
    if (kg_expr_parse(copy, &e, NULL) < 0)
        return false;
    bool ok = kg_expr_eval(e, kg_scope_resolve, s, out, NULL) == KG_OK;
    kg_expr_free(e);
    return ok;
}

/* Whether the list "a = 1, b = 2" has the item. */
static bool listed(const char *list, const char *item) {
    size_t n = strlen(item);
    for (const char *at = list; (at = strstr(at, item)) != NULL; at++)
        if ((at == list || at[-1] == ' ') && (at[n] == '\0' || at[n] == ','))
            return true;
    return false;
}

static void add_value(kg_scope *s, const char *text, size_t n, char *out, size_t size) {
    char item[200];
    int64_t v = 0;
    char name[40];
    snprintf(name, sizeof name, "%.*s", n < 39 ? (int)n : 39, text);
    if (kg_dtype_parse(name) >= 0 || !value_of(s, text, n, &v))
        return;
    size_t len = n, at = strlen(out);
    if (len > 6 && memcmp(text + len - 6, ".dtype", 6) == 0 && kg_dtype_name((int)v))
        snprintf(item, sizeof item, "%.*s = %s", (int)len, text, kg_dtype_name((int)v));
    else
        snprintf(item, sizeof item, "%.*s = %lld", (int)len, text, (long long)v);
    if (!listed(out, item))
        snprintf(out + at, size - at, "%s%s", at > 0 ? ", " : "", item);
}

static void values_in(kg_scope *s, const char *text, size_t n, char *out, size_t size) {
    out[0] = '\0';
    for (size_t i = 0; i < n;) {
        if (!word_char(text[i])) {
            i++;
            continue;
        }
        size_t len = reference_length(text + i);
        if (!isdigit((unsigned char)text[i]) && len > 0 && i + len <= n)
            add_value(s, text + i, len, out, size);
        i += len > 0 ? len : word_length(text + i);
    }
}

/* Whether the text has || or ? outside brackets, so that && does not split it. */
static bool splits(const char *text) {
    int depth = 0;
    for (size_t i = 0; text[i] != '\0'; i++) {
        depth += (text[i] == '(' || text[i] == '[') - (text[i] == ')' || text[i] == ']');
        if (depth == 0 && (text[i] == '?' || (text[i] == '|' && text[i + 1] == '|')))
            return false;
    }
    return true;
}

static size_t conjunct_length(const char *text) {
    int depth = 0;
    size_t i = 0;
    for (; text[i] != '\0'; i++) {
        depth += (text[i] == '(' || text[i] == '[') - (text[i] == ')' || text[i] == ']');
        if (depth == 0 && text[i] == '&' && text[i + 1] == '&')
            break;
    }
    return i;
}

/* Drops white space around [*at, *at + *n), and brackets around the whole. */
static void trim(const char **at, size_t *n) {
    while (*n > 0 && isspace((unsigned char)**at)) {
        ++*at;
        --*n;
    }
    while (*n > 0 && isspace((unsigned char)(*at)[*n - 1]))
        --*n;
    if (*n > 2 && **at == '(' && group_length(*at) == *n) {
        ++*at;
        *n -= 2;
    }
}

int kg_explain_false(kg_scope *s, const kg_expr *e, const char *key, kg_error *err) {
    const char *text = kg_expr_text(e), *at = text;
    size_t n = strlen(text);
    char values[240];
    if (err == NULL)
        return KG_ENOTFOUND;
    for (const char *next = text; splits(text) && *next != '\0';) {
        const char *part = next;
        size_t len = conjunct_length(next);
        int64_t v = 1;
        next += next[len] == '\0' ? len : len + 2;
        trim(&part, &len);
        if (value_of(s, part, len, &v) && v == 0) {
            at = part;
            n = len;
            break;
        }
    }
    values_in(s, at, n, values, sizeof values);
    return kg_fail(err, KG_ENOTFOUND, "%s: %.*s%s%s", key, n < 200 ? (int)n : 200, at,
                   *values != '\0' ? ": " : " is false", values);
}

void kg_explain_value(kg_scope *s, const kg_expr *e, int64_t value, kg_error *err) {
    char values[240] = "";
    const char *text = e == NULL ? "the default" : kg_expr_text(e);
    if (err == NULL)
        return;
    if (e != NULL)
        values_in(s, text, strlen(text), values, sizeof values);
    kg_fail(err, KG_EINVAL, "%.160s is %lld%s%s%s", text, (long long)value,
            *values != '\0' ? " (" : "", values, *values != '\0' ? ")" : "");
}
