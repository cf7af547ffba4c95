/* Reads what an index or a peer says as if it were hostile: every count, number and text is
 * checked. */
#include "runtime/flat.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/types.h"

static void spoil(kg_reader *r, int status) {
    if (r->status == KG_OK)
        r->status = status;
    r->pos = r->len;
}

void kg_flat_put_text(kg_buf *b, const char *s) {
    kg_put_u8(b, s != NULL);
    if (s != NULL)
        kg_put_str(b, s);
}

void kg_flat_put_expr(kg_buf *b, const kg_expr *e) {
    kg_flat_put_text(b, e == NULL ? NULL : kg_expr_text(e));
}

size_t kg_flat_count(kg_reader *r, size_t max) {
    uint32_t n = kg_get_u32(r);
    if (r->status == KG_OK && n > max)
        spoil(r, KG_EFORMAT);
    return r->status == KG_OK ? n : 0;
}

int kg_flat_int(kg_reader *r, int64_t min, int64_t max) {
    int64_t v = kg_get_i64(r);
    if (r->status == KG_OK && (v < min || v > max))
        spoil(r, KG_EFORMAT);
    return r->status == KG_OK ? (int)v : 0;
}

char *kg_flat_text(kg_reader *r) {
    if (kg_get_u8(r) == 0)
        return NULL;
    const char *s = kg_get_str(r);
    if (r->status < 0)
        return NULL;
    char *copy = strdup(s);
    if (copy == NULL)
        spoil(r, KG_ENOMEM);
    return copy;
}

char *kg_flat_name(kg_reader *r) {
    char *s = kg_flat_text(r);
    if (r->status == KG_OK && !kg_is_name(s))
        spoil(r, KG_EFORMAT);
    if (r->status < 0) {
        free(s);
        return NULL;
    }
    return s;
}

kg_expr *kg_flat_expr(kg_reader *r) {
    char *text = kg_flat_text(r);
    kg_expr *e = NULL;
    if (text != NULL) {
        int rc = kg_expr_parse(text, &e, NULL);
        if (rc < 0)
            spoil(r, rc == KG_ENOMEM ? KG_ENOMEM : KG_EFORMAT);
    }
    free(text);
    return e;
}

kg_expr *kg_flat_need_expr(kg_reader *r) {
    kg_expr *e = kg_flat_expr(r);
    if (e == NULL)
        spoil(r, KG_EFORMAT);
    return e;
}

int kg_flat_fail(const kg_reader *r, const char *what, kg_error *err) {
    if (r->status == KG_ENOMEM)
        return kg_fail(err, KG_ENOMEM, "%s: out of memory", what);
    return kg_fail(err, r->status, "%s: the flat form is malformed near byte %zu", what, r->pos);
}
