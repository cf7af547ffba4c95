/* What the names of an expression stand for in one call: the resolver that contracts and plans
 * share. Reads the call, never a tensor's data. Internal to csrc/runtime; allocates nothing. */
#ifndef KG_RUNTIME_SCOPE_H
#define KG_RUNTIME_SCOPE_H

#include "runtime/plan.h"

typedef struct kg_scope {
    const kg_op *op;
    const kg_call *call;
    kg_dims dims;
    uint32_t bound;           /* bit i: dims.value[i] is known */
    const kg_tensor *outputs; /* NULL: a contract's expression, or not known yet */
    const kg_plan *plan;      /* these three are NULL in a contract's expressions */
    const kg_tuning *tuning;
    const kg_constants *constants;
} kg_scope;

/* A kg_resolve over a kg_scope. */
int kg_scope_resolve(void *scope, const kg_ref *ref, int64_t *out, kg_error *err);
/* Evaluates with `scope`; NULL gives `otherwise`. */
int kg_scope_eval(kg_scope *scope, const kg_expr *e, int64_t otherwise, int64_t *out,
                  kg_error *err);

/* The constants of plans, in the order of docs/formats.md; NULL ends the list. */
extern const char *const kg_constant_names[];

#endif
