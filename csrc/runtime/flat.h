/* Flat fields of contracts and plans beyond those of base/buf.h: expressions, names and counts with
 * a cap. Internal to csrc/runtime. A reader that failed gives NULL and 0, so that callers check
 * r->status once. */
#ifndef KG_RUNTIME_FLAT_H
#define KG_RUNTIME_FLAT_H

#include "base/buf.h"
#include "base/expr.h"

void kg_flat_put_expr(kg_buf *b, const kg_expr *e); /* NULL is kept */
void kg_flat_put_text(kg_buf *b, const char *s);    /* NULL is kept */

/* A count of at most max, else the reader fails. */
size_t kg_flat_count(kg_reader *r, size_t max);
/* A number in [min, max], else the reader fails. */
int kg_flat_int(kg_reader *r, int64_t min, int64_t max);
/* The caller's; NULL for an absent one and after a failure. Text that does not parse fails the
 * reader. */
kg_expr *kg_flat_expr(kg_reader *r);
char *kg_flat_text(kg_reader *r);
char *kg_flat_name(kg_reader *r); /* required, and a name */
/* Fails the reader unless e is there. */
kg_expr *kg_flat_need_expr(kg_reader *r);

/* Why reading stopped, as a status and a message that begins with `what`: out of memory is not the
 * file's fault. */
int kg_flat_fail(const kg_reader *r, const char *what, kg_error *err);

#endif
