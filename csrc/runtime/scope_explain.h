/* Why an expression came out as it did: the names in it with their values, for messages. Off the
 * fast path: it parses text again. Internal to csrc/runtime. */
#ifndef KG_RUNTIME_SCOPE_EXPLAIN_H
#define KG_RUNTIME_SCOPE_EXPLAIN_H

#include "runtime/scope.h"

/* KG_ENOTFOUND "key: N % VEC == 0: N = 1000, VEC = 16", of the first conjunct that is 0. */
int kg_explain_false(kg_scope *s, const kg_expr *e, const char *key, kg_error *err);
/* Sets the message "M / 8 is 0 (M = 7)". */
void kg_explain_value(kg_scope *s, const kg_expr *e, int64_t value, kg_error *err);

#endif
