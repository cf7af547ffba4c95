/* One call class made ready to run, and running it. A kg_ready is what a resolved call came to:
 * functions, numbers and where each argument comes from; immutable once it is shared, apart from
 * `trust`.
 *
 * What the launcher needs of its host (memory, threads) comes through kg_host, so that the same
 * code runs under torch and under a test. A device is one row of kg_launchers: CPU now. */
#ifndef KG_RUNTIME_LAUNCH_H
#define KG_RUNTIME_LAUNCH_H

#include <stdatomic.h>

#include "runtime/image.h"
#include "runtime/index.h"

/* Functions return 0, or a negative status with err filled. */
typedef struct kg_host {
    /* A new tensor of t's dtype, sizes and strides on a device: its handle, and its address in
     * t->data. */
    int (*empty)(kg_tensor *t, int32_t device, int32_t index, void **handle, kg_error *err);
    void (*release)(void *handle);
    /* Calls fn over chunks of [0, n) on the host's threads; returns when all are done. */
    int (*parallel)(int64_t n, int64_t grain, void (*fn)(int64_t, int64_t, void *), void *ctx,
                    kg_error *err);
    int (*threads)(void);
} kg_host;

typedef struct kg_ready_launch {
    kg_entry entry;
    int64_t range, grain;
    size_t nargs;
    kg_launch_arg *args;
} kg_ready_launch;

typedef enum kg_trust {
    KG_TRUST_JUDGED,  /* the judge saw this Kernel with this Program */
    KG_TRUST_UNKNOWN, /* it did not: the first call is compared */
    KG_TRUST_CHECKED, /* compared, in this process or an earlier one */
    KG_TRUST_REFUSED  /* compared and wrong */
} kg_trust;

typedef struct kg_ready {
    size_t noutputs;
    kg_tensor outputs[KG_MAX_OUTPUTS]; /* data NULL */
    uint32_t skip, zero;               /* bit i: output i is not made; is cleared first */
    size_t nworkspace;
    int64_t workspace_bytes[KG_MAX_WORKSPACE];
    uint32_t zero_workspace;
    size_t programs_bytes;
    size_t nlaunches;
    kg_ready_launch launches[KG_MAX_LAUNCHES];
    _Atomic int trust;
} kg_ready;

/* Copies what a launch needs of an instance. entries: one for each launch of the plan. */
int kg_ready_make(const kg_plan *plan, const kg_instance *inst, const kg_entry *entries,
                  const kg_call *call, kg_ready *out, kg_error *err);
void kg_ready_clear(kg_ready *r);

/* A device: how a translation unit becomes functions, and how a ready call runs there. */
typedef struct kg_launcher {
    /* Finds or builds the image of a unit and loads it for good. messages: what a compiler or the
     * inspection said, when it fails with KG_ECOMPILE or KG_EUNSUPPORTED. */
    int (*load)(const kg_buf *unit, const char *label, const char *arch, uint32_t flags,
                size_t nentries, kg_entry *entries, kg_buf *messages, kg_error *err);
    /* Makes the outputs (handles[i] is NULL for one that is skipped; outs gets addresses) and runs
     * the launches. After a failure no handle is left. */
    int (*run)(const kg_ready *r, const kg_call *call, const kg_host *host, void **handles,
               kg_tensor *outs, kg_error *err);
    bool on_host; /* its tensors can be read from here */
} kg_launcher;

/* NULL for a device that this build does not launch on. */
const kg_launcher *kg_launcher_of(int device);

#endif
