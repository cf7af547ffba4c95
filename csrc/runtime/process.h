/* What the files of the serving process share. Internal to runtime.c, registries.c and explain.c.
 */
#ifndef KG_RUNTIME_PROCESS_H
#define KG_RUNTIME_PROCESS_H

#include "runtime/lookup.h"

typedef struct kg_process {
    const kg_host *host;
    kg_here here;
    bool disabled;
    int precision;     /* of threads that set none */
    uint64_t resolved; /* under the writers' lock */
} kg_process;

/* Written by kg_rt_start, before any op can be called, and read-only after but for `resolved`. */
extern kg_process kg_proc_state;

/* Writes down what happened to a call of this thread, while it explains. c may be NULL. */
void kg_explain_call(const kg_rt_op *op, const kg_call *call, int threads, const kg_class *c,
                     int rc);
/* The same for a process that is switched off; returns KG_ENOTFOUND. */
int kg_explain_disabled(const kg_rt_op *op, kg_error *err);

#endif
