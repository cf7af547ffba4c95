/* Integer expressions of plans and contracts (docs/formats.md, "Expressions").
 *
 * 64-bit signed; any overflow, a division by zero or a shift out of range is an error, never a
 * wrap. / and % floor, as Python's do. && || ?: evaluate only what they must. Errors give the
 * column and show the expression. Parsed expressions are immutable and may be shared by threads. */
#ifndef KG_BASE_EXPR_H
#define KG_BASE_EXPR_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

typedef struct kg_expr kg_expr;

typedef enum kg_ref_kind {
    KG_REF_NAME,   /* M                name */
    KG_REF_FIELD,  /* x.ndim           object = x, name = ndim */
    KG_REF_METHOD, /* x.stride(1)      object = x, name = stride, args */
    KG_REF_INDEX,  /* padding[0]       name = padding, one arg */
    KG_REF_CALL    /* align(x)         object = x, name = align: functions of a tensor or list:
                                       align, numel, present, len */
} kg_ref_kind;

/* What the expression asks of its surroundings. On failure the callback fills err with what was
 * wrong and what would be right; the evaluator adds expression and column. Unknown names are
 * KG_ENOTFOUND. */
typedef struct kg_ref {
    kg_ref_kind kind;
    const char *object; /* NULL for KG_REF_NAME and KG_REF_INDEX */
    const char *name;
    size_t nargs;
    const int64_t *args;
} kg_ref;

typedef int (*kg_resolve)(void *ctx, const kg_ref *ref, int64_t *out, kg_error *err);

int kg_expr_parse(const char *text, kg_expr **out, kg_error *err);
void kg_expr_free(kg_expr *e);
const char *kg_expr_text(const kg_expr *e); /* as it was given; borrowed */
int kg_expr_eval(const kg_expr *e, kg_resolve resolve, void *ctx, int64_t *out, kg_error *err);

/* Calls visit for every reference in the text, in order, with no args evaluated (args NULL, nargs
 * set): for checking names when a plan is read. A negative return stops and is returned. */
typedef int (*kg_visit)(void *ctx, const kg_ref *ref, kg_error *err);
int kg_expr_visit(const kg_expr *e, kg_visit visit, void *ctx, kg_error *err);

#endif
