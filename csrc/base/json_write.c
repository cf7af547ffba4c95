/* JSON's writers, one text a value: canonical, which is hashed and sent, and pretty, which people
 * read. Refuses what was lost while it was built, and what lies too deep to be read again. */
#include <stdlib.h>
#include <string.h>

#include "base/json_node.h"
#include "base/json_text.h"

static int spoil(kg_buf *out, int status) {
    if (out->status == KG_OK)
        out->status = status;
    return out->status;
}

/* What was lost while building, or nested so deeply that it could not be read back, is not written.
 */
static int check_node(const kg_json *j, size_t depth, kg_buf *out) {
    if (!j || (j->type & (LOST_MEMORY | LOST_RANGE)))
        return spoil(out, j && (j->type & LOST_RANGE) ? KG_EOVERFLOW : KG_ENOMEM);
    return kg_json_holds(j) && depth >= DEPTH_MAX ? spoil(out, KG_EOVERFLOW) : out->status;
}

static int write_scalar(const kg_json *j, kg_buf *out) {
    if (cJSON_IsNumber(j))
        return kg_json_put_double(out, j->valuedouble);
    if (cJSON_IsString(j))
        return kg_json_put_string(out, j->valuestring);
    return kg_buf_puts(out, cJSON_IsTrue(j) ? "true" : cJSON_IsFalse(j) ? "false" : "null");
}

static int write_canonical(const kg_json *j, size_t depth, kg_buf *out);

static int compare_members(const void *a, const void *b) {
    return strcmp((*(const kg_json *const *)a)->string, (*(const kg_json *const *)b)->string);
}

static int write_sorted(const kg_json *object, size_t depth, kg_buf *out) {
    size_t n = kg_json_size(object), i = 0;
    const kg_json **members = malloc((n + 1) * sizeof *members);
    if (!members)
        return spoil(out, KG_ENOMEM);
    for (const kg_json *c = object->child; c; c = c->next)
        members[i++] = c;
    if (n > 1)
        qsort(members, n, sizeof *members, compare_members);
    for (i = 0; i < n; i++) {
        if (i)
            kg_buf_putc(out, ',');
        kg_json_put_string(out, members[i]->string);
        kg_buf_putc(out, ':');
        write_canonical(members[i], depth + 1, out);
    }
    free(members);
    return out->status;
}

static int write_canonical(const kg_json *j, size_t depth, kg_buf *out) {
    if (check_node(j, depth, out) < 0 || !kg_json_holds(j))
        return out->status < 0 ? out->status : write_scalar(j, out);
    bool object = cJSON_IsObject(j);
    kg_buf_putc(out, object ? '{' : '[');
    if (object)
        write_sorted(j, depth, out);
    for (const kg_json *c = object ? NULL : j->child; c; c = c->next) {
        write_canonical(c, depth + 1, out);
        if (c->next)
            kg_buf_putc(out, ',');
    }
    return kg_buf_putc(out, object ? '}' : ']');
}

int kg_json_canonical(const kg_json *j, kg_buf *out) {
    return write_canonical(j, 0, out);
}

/* Strings longer than this are prose and get lines of their own. */
#define SHORT_STRING 40

static bool stays_on_line(const kg_json *j) {
    if (!cJSON_IsArray(j))
        return !j->child;
    for (const kg_json *c = j->child; c; c = c->next)
        if (kg_json_holds(c) || (cJSON_IsString(c) && strlen(c->valuestring) > SHORT_STRING))
            return false;
    return true;
}

static int write_pretty(const kg_json *j, size_t depth, kg_buf *out) {
    if (check_node(j, depth, out) < 0 || !kg_json_holds(j))
        return out->status < 0 ? out->status : write_scalar(j, out);
    bool object = cJSON_IsObject(j), line = stays_on_line(j);
    kg_buf_putc(out, object ? '{' : '[');
    for (const kg_json *c = j->child; c; c = c->next) {
        if (!line)
            kg_buf_printf(out, "\n%*s", (int)(2 * depth + 2), "");
        if (object) {
            kg_json_put_string(out, c->string);
            kg_buf_puts(out, ": ");
        }
        write_pretty(c, depth + 1, out);
        if (c->next)
            kg_buf_puts(out, line ? ", " : ",");
    }
    if (!line)
        kg_buf_printf(out, "\n%*s", (int)(2 * depth), "");
    return kg_buf_putc(out, object ? '}' : ']');
}

int kg_json_pretty(const kg_json *j, kg_buf *out) {
    write_pretty(j, 0, out);
    return kg_buf_putc(out, '\n');
}

int kg_json_give(int rc, kg_json *j, char **out, kg_error *err) {
    kg_buf text;
    kg_buf_init(&text, 0);
    if (rc == KG_OK) {
        kg_json_canonical(j, &text);
        rc = kg_buf_check(&text, "a result", err);
    }
    char *taken = rc == KG_OK ? kg_buf_take(&text) : NULL;
    if (rc == KG_OK && !taken)
        rc = kg_fail(err, KG_ENOMEM, "a result: out of memory");
    if (rc == KG_OK)
        *out = taken;
    kg_buf_free(&text);
    kg_json_free(j);
    return rc;
}
