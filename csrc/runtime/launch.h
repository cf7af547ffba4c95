/* One call class made ready to run, and running it. A kg_ready is what a resolved call came to:
 * functions, numbers and where each argument comes from; immutable once it is shared, apart from
 * `trust`.
 *
 * What the launcher needs of its host (memory, threads) comes through kg_host, so that the same
 * code runs under torch and under a test. A device is one row of kg_launcher_of: the CPU's is
 * launch.c, CUDA's launch_cuda.c. */
#ifndef KG_RUNTIME_LAUNCH_H
#define KG_RUNTIME_LAUNCH_H

#include <stdatomic.h>

#include "runtime/image.h"
#include "runtime/index.h"
#include "sys/cuda.h"

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
    /* The CUDA stream that this thread's work on the device goes to. NULL: a host without CUDA. */
    int (*stream)(int32_t index, kg_cu_stream *out, kg_error *err);
} kg_host;

/* What a launch calls, of its device's kind. */
typedef union kg_function {
    kg_entry cpu;
    kg_cu_function cuda;
} kg_function;

typedef struct kg_ready_launch {
    kg_function function;
    int64_t range, grain;
    kg_cuda_launch cuda; /* of a CUDA device */
    size_t nargs;
    kg_launch_arg *args;
} kg_ready_launch;

struct kg_map_cache;

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
    int32_t device_index;
    struct kg_map_cache *maps; /* encoded tensor maps; NULL when there are none */
    size_t nlaunches;
    kg_ready_launch launches[KG_MAX_LAUNCHES];
    _Atomic int trust;
    /* Whether the image ran on this device, was waited for, and did not lose it; of all classes
     * that it serves. NULL for a ready that no image table made. */
    _Atomic bool *proved;
} kg_ready;

/* Copies what a launch needs of an instance. functions: one for each launch of the plan. */
int kg_ready_make(const kg_plan *plan, const kg_instance *inst, const kg_function *functions,
                  const kg_call *call, kg_ready *out, kg_error *err);
void kg_ready_clear(kg_ready *r);

typedef struct kg_load_request {
    const kg_plan *plan;
    const kg_buf *unit;
    const char *label; /* for messages */
    const char *arch;  /* to compile for */
    int32_t device_index;
    size_t programs_bytes; /* of the argument "programs" */
} kg_load_request;

/* A device: how a translation unit becomes functions, and how a ready call runs there. */
typedef struct kg_launcher {
    /* Finds or builds the image of a unit and loads it for good. functions: room for one a launch.
     * messages: what a compiler or the inspection said, when it fails with KG_ECOMPILE or
     * KG_EUNSUPPORTED. */
    int (*load)(const kg_load_request *ask, kg_function *functions, kg_buf *messages,
                kg_error *err);
    /* What kg_ready_make leaves to the device; NULL: nothing. After a failure r is cleared by the
     * caller. */
    int (*prepare)(const kg_plan *plan, const kg_instance *inst, kg_ready *r, kg_error *err);
    /* Makes the outputs (handles[i] is NULL for one that is skipped; outs gets addresses) and runs
     * the launches. After a failure no handle is left. KG_EDEVICE: the device is lost. */
    int (*run)(const kg_ready *r, const kg_call *call, const kg_host *host, void **handles,
               kg_tensor *outs, kg_error *err);
    /* Waits for all that this thread gave to its stream; NULL: nothing is ever under way.
     * KG_EDEVICE: the device is lost. */
    int (*settle)(const kg_call *call, const kg_host *host, kg_error *err);
    /* Copies memory of the device that is settled; NULL: it can be read from here. */
    int (*read)(const kg_call *call, void *to, const void *from, size_t n, kg_error *err);
    /* Whether the call is being recorded (CUDA graphs), when nothing may be loaded or waited for;
     * NULL: never. */
    int (*recording)(const kg_call *call, const kg_host *host, bool *yes, kg_error *err);
} kg_launcher;

/* A process that locks itself before a Candidate is in it: called before an image is loaded (loaded
 * false), when all that compiles has run, and after it, before any of it runs. Not 0: the load ends
 * with that status and what was put into err. Where there is a hook, no trust is stored. */
typedef int (*kg_load_hook)(int loaded, int device, char *err, size_t nerr);
void kg_launch_on_load(kg_load_hook hook);
bool kg_launch_hooked(void);
/* Internal to launch*.c. */
int kg_launch_loading(bool loaded, int device, kg_error *err);

/* NULL for a device that this build does not launch on. */
const kg_launcher *kg_launcher_of(int device);

/* Outputs and workspace of a call, as the launchers of all devices make them. Internal to
 * launch*.c. */
int kg_outputs_make(const kg_ready *r, const kg_call *call, const kg_host *host, void **handles,
                    kg_tensor *outs, kg_error *err);
void kg_outputs_release(const kg_ready *r, const kg_host *host, void **handles);
extern const kg_launcher kg_launcher_cuda;

#endif
