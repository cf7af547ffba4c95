/* The plan of a Candidate, and what it comes to for one call (docs/formats.md, "Plan").
 *
 * A kg_plan is read-only and shared by threads. A kg_instance is the plan with every expression
 * evaluated for one call: plain numbers, which the runtime launches and which the judge sends to a
 * worker. */
#ifndef KG_RUNTIME_PLAN_H
#define KG_RUNTIME_PLAN_H

#include "base/buf.h"
#include "base/expr.h"
#include "runtime/op.h"
#include "runtime/types.h"

#define KG_MAX_LAUNCHES 8
#define KG_MAX_LAUNCH_ARGS 48
#define KG_MAX_WORKSPACE 8
#define KG_MAX_MAPS 8
#define KG_MAX_TUNABLE_VALUES 32

typedef enum kg_plan_arg_kind {
    KG_PA_TENSOR,    /* an input; index = arg of the Op; const pointer */
    KG_PA_OUTPUT,    /* index = output */
    KG_PA_WORKSPACE, /* index = workspace */
    KG_PA_SCALAR,    /* dtype I32, I64, F32, F64 */
    KG_PA_PROGRAMS,  /* the captured tensors and scalars of the Programs */
    KG_PA_MAP        /* a tensor map; index */
} kg_plan_arg_kind;

typedef struct kg_plan_arg {
    kg_plan_arg_kind kind;
    int index;
    int dtype;
    kg_expr *expr;  /* integer scalars */
    char *attr;     /* float scalars: the name of a float attribute ... */
    double literal; /* ... or a number, when attr is NULL */
} kg_plan_arg;

typedef struct kg_plan_launch {
    char *kernel;
    kg_expr *range, *grain;                   /* cpu */
    kg_expr *grid[3], *block[3], *cluster[3]; /* cuda; NULL: 1 */
    kg_expr *shared;
    kg_expr *when; /* NULL: always */
    bool cooperative, pdl;
    size_t nargs;
    kg_plan_arg args[KG_MAX_LAUNCH_ARGS];
} kg_plan_launch;

typedef struct kg_plan_tunable {
    char *name;
    size_t n;
    int64_t values[KG_MAX_TUNABLE_VALUES];
} kg_plan_tunable;

typedef struct kg_plan_workspace {
    char *name;
    int dtype;
    size_t rank;
    kg_expr *shape[KG_MAX_RANK];
    bool zero; /* cleared before the first launch */
} kg_plan_workspace;

typedef struct kg_plan_map {
    char *name;
    int tensor, tensor_is_output; /* what it maps */
    size_t rank;
    kg_expr *box[5], *dims[5]; /* innermost first */
    kg_expr *strides[4];       /* of dims 1 on, in bytes */
    int swizzle;               /* 0, 32, 64, 128 */
    int l2;                    /* 0, 64, 128, 256 */
} kg_plan_map;

typedef struct kg_plan {
    char *op;
    int target;     /* kg_device */
    char *min_arch; /* "sm_80", "x86-64-v3"; NULL: any */
    size_t ntunables, nspecialize, nworkspace, nlaunches, nmaps, nholes;
    kg_plan_tunable tunables[KG_MAX_TUNABLES];
    char *specialize[KG_MAX_DIMS];
    kg_expr *require; /* NULL: always */
    kg_plan_workspace workspace[KG_MAX_WORKSPACE];
    uint32_t zero_outputs; /* bit i: output i is cleared first */
    kg_plan_map maps[KG_MAX_MAPS];
    kg_plan_launch launches[KG_MAX_LAUNCHES];
    char *holes[4];
    uint32_t flags; /* KG_FLAG_* */
} kg_plan;

enum { KG_FLAG_FAST_MATH = 1, KG_FLAG_NO_CONTRACT = 2 };

void kg_plan_free(kg_plan *p);
int kg_plan_tunable_index(const kg_plan *p, const char *name); /* -1 when there is none */
/* ARCH of an architecture's name: "sm_90" is 90, "x86-64-v3" is 3, "aarch64" is 0; -1 for others.
 */
int64_t kg_arch_code(const char *arch);
/* The target that the name belongs to, a kg_device; -1 when it is none. */
int kg_arch_target(const char *arch);
int kg_plan_write(const kg_plan *p, kg_buf *out);
int kg_plan_read(kg_reader *in, kg_plan **out, kg_error *err);

/* Values of the tunables in the plan's order. */
typedef struct kg_tuning {
    int64_t value[KG_MAX_TUNABLES];
} kg_tuning;

/* What the device gives to expressions. */
typedef struct kg_constants {
    int64_t num_threads; /* NUM_THREADS */
    int64_t num_sms;     /* NUM_SMS */
    int64_t max_shared;  /* MAX_SHARED, bytes a block */
    int64_t arch;        /* ARCH: 90 for sm_90; 1..4 for x86-64-v1..v4 */
    int64_t has_amx;     /* HAS_AMX */
} kg_constants;

typedef struct kg_launch_arg {
    kg_plan_arg_kind kind;
    int index; /* as in the plan */
    union {
        int32_t i32;
        int64_t i64;
        float f32;
        double f64;
    } u;
    int dtype;
} kg_launch_arg;

typedef struct kg_launch {
    int plan_launch; /* index in the plan */
    int64_t range, grain;
    int64_t grid[3], block[3], cluster[3], shared;
    size_t nargs;
    kg_launch_arg args[KG_MAX_LAUNCH_ARGS];
} kg_launch;

/* A tensor map as cuTensorMapEncodeTiled takes it, but for the address. */
typedef struct kg_map {
    int tensor, tensor_is_output, dtype, swizzle, l2;
    size_t rank;
    int64_t dims[5], strides[4], box[5]; /* innermost first; strides of dims 1 on, in bytes */
} kg_map;

typedef struct kg_instance {
    kg_dims dims;
    size_t noutputs;
    kg_tensor outputs[KG_MAX_OUTPUTS]; /* data NULL */
    size_t nworkspace;
    int64_t workspace_bytes[KG_MAX_WORKSPACE];
    size_t nlaunches; /* those whose `when` holds */
    kg_launch launches[KG_MAX_LAUNCHES];
    size_t nmaps;
    kg_map maps[KG_MAX_MAPS];
} kg_instance;

/* KG_ENOTFOUND when `require` does not hold (err says which part came out as what): the plan is not
 * for this call. Other codes: the plan is wrong, and the message names key, expression and column.
 */
int kg_plan_bind(const kg_plan *p, const kg_op *op, const kg_tuning *t, const kg_constants *c,
                 const kg_call *call, kg_instance **out, kg_error *err);
void kg_instance_free(kg_instance *inst);

/* The name to compile under: one text gives one image, whoever builds it; sys/cc.c puts the name
 * that people know in its place in messages. */
#define KG_UNIT_NAME "source.c"

/* The whole translation unit for one call: macros (tunables, specialised dims when exact, dtypes),
 * the lowered Programs, the Candidate's own text with #line, and the typed entries
 * `kg_entry_<launch>` (CPU). inst may be NULL when nothing is specialised (building ahead of time
 * for any size). */
int kg_source_build(const kg_plan *p, const kg_op *op, const kg_tuning *t, const kg_call *call,
                    const kg_dims *exact, const char *text, size_t n, const char *name, kg_buf *out,
                    kg_error *err);

#endif
