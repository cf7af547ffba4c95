/* The state of the serving process: registries, policy, and the cache of call classes that makes a
 * served call cheap. No torch in sight: the shim gives calls and a host, and falls back when this
 * says so.
 *
 * Everything that look-ups read hangs off one immutable snapshot (registries, policy, call cache).
 * Readers take no lock; changing anything publishes a new snapshot, and the old one is freed when
 * no reader is left in it. */
#ifndef KG_RUNTIME_RUNTIME_H
#define KG_RUNTIME_RUNTIME_H

#include "runtime/launch.h"

typedef enum kg_policy {
    KG_POLICY_ARCH,   /* evidence of this architecture serves; the default */
    KG_POLICY_STRICT, /* evidence of exactly this environment, and no instantiated Program */
    KG_POLICY_OFF     /* nothing is checked */
} kg_policy;

typedef enum kg_served_kind {
    KG_SERVED_EXACT,
    KG_SERVED_DYNAMIC,
    KG_SERVED_INSTANTIATED,
    KG_SERVED_FALLBACK
} kg_served_kind;

const char *kg_served_name(kg_served_kind kind); /* "exact", "dynamic", ... */

/* One Op of this process, for ever: its name, how its stack looks and a number for the call cache.
 */
typedef struct kg_rt_op {
    char *name;
    uint32_t id;
    bool canonical;
    size_t nargs, noutputs;
    kg_arg_type types[KG_MAX_ARGS];
    bool optional_output[KG_MAX_OUTPUTS];
    char *schema; /* without the namespace */
} kg_rt_op;

/* Reads KGEN_POLICY, KGEN_PRECISION and KGEN_DISABLE. torch_version: as torch.__version__ has it;
 * compared with the evidence. Once; a bad value is KG_EINVAL with what would be right, and the
 * default stands. */
int kg_rt_start(const kg_host *host, const char *torch_version, kg_error *err);

/* Opens a registry's index, deriving it first (through libkgen.so's kgen_index_build) when it is
 * absent or stale, and puts it before (front) or behind the others; one that is open already is
 * refreshed in its place. path is made absolute. KG_ENOTFOUND: no such folder. */
int kg_rt_add_registry(const char *path, bool front, kg_error *err);
/* KG_ENOTFOUND: it is not open. Ops that it alone defined stay, served by their references. */
int kg_rt_remove_registry(const char *path, kg_error *err);
/* Looks at every registry again: changed ones are opened anew, and call classes are resolved anew.
 */
int kg_rt_reload(kg_error *err);
int kg_rt_set_policy(const char *name, kg_error *err);
const char *kg_rt_policy(void);
/* Of this thread: KG_PREC_*. Returns the one before. */
int kg_rt_set_precision(int precision);
int kg_rt_precision(void);
bool kg_rt_disabled(void);

/* The Op of that name: canonical ones always, others when a registry has them (KG_ENOTFOUND names
 * those near). */
int kg_rt_find_op(const char *name, const kg_rt_op **out, kg_error *err);
/* The contract of an Op as text lines for Python's fake kernels; see kgen_op_contract in kgen.h. */
int kg_rt_contract(const char *name, kg_buf *out, kg_error *err);
/* Every Op and Kernel of the open registries as JSON. */
int kg_rt_describe(kg_buf *out, kg_error *err);

/* Serves a call: outputs' handles, which the caller owns (NULL for skipped ones). KG_ENOTFOUND: no
 * Kernel serves it, use the reference. KG_EUNSUPPORTED: a Kernel was refused on its first call; the
 * same. Anything else is the device's and is raised. The call is borrowed; its precision is filled
 * in. */
int kg_rt_run(const kg_rt_op *op, kg_call *call, void *handles[KG_MAX_OUTPUTS], kg_error *err);

/* Interned: parsed once a process for each text, never freed. Capped; beyond the cap KG_EOVERFLOW.
 */
int kg_rt_program(const char *text, size_t n, const struct kg_program **out, kg_error *err);

/* Between begin and end, every call of this thread writes down what served it and why not something
 * else. */
void kg_rt_explain_begin(void);
int kg_rt_explain_end(kg_buf *out, kg_error *err); /* JSON: a list */
bool kg_rt_explaining(void);

typedef struct kg_rt_counters {
    uint64_t served, fallbacks, resolved, classes;
} kg_rt_counters;
void kg_rt_count(kg_rt_counters *out);

#endif
