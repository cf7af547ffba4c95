/* From a Kernel of an index to a kg_ready: its source, checked against the index, compiled for one
 * call class through the image cache, loaded once a process. */
#ifndef KG_RUNTIME_READY_H
#define KG_RUNTIME_READY_H

#include "runtime/launch.h"

typedef struct kg_ready_request {
    kg_index *index;
    size_t nblock, nkernel;
    const kg_index_op *block;
    const kg_index_kernel *kernel;
    const char *name, *registry; /* for messages; where the source is */
    const kg_call *call;
    uint32_t skip;        /* outputs that the Kernel was judged without, a part of the call's */
    const kg_dims *exact; /* NULL: nothing is specialised */
    kg_constants constants;
    const char *arch; /* to build for */
    bool recording;   /* nothing may be built or loaded: KG_EBUSY if it would have to be */
} kg_ready_request;

/* KG_ENOTFOUND: the plan's `require` does not hold. Every other failure is the Kernel's or the
 * machine's and its message names the Kernel and what to do. image: the hash of the translation
 * unit. The caller holds the writers' lock. */
int kg_ready_build(const kg_ready_request *ask, kg_ready *out, kg_hash128 *image, kg_error *err);
/* What could not be built is tried again. The caller holds the writers' lock. */
void kg_ready_forget_failures(void);

#endif
