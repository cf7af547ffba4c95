/* An Op's contract: what goes in, what comes out, and how the dims hang together (docs/formats.md,
 * op.json). Read-only after it was read; may be shared by threads. Strings are owned by the kg_op.
 */
#ifndef KG_RUNTIME_OP_H
#define KG_RUNTIME_OP_H

#include "base/buf.h"
#include "base/expr.h"
#include "runtime/types.h"

typedef enum kg_arg_type {
    KG_ARG_TENSOR,      /* Tensor */
    KG_ARG_TENSOR_OPT,  /* Tensor? */
    KG_ARG_TENSOR_LIST, /* Tensor[]: the captured tensors of a Program; at most one an Op */
    KG_ARG_INT,
    KG_ARG_INT_OPT,
    KG_ARG_FLOAT,
    KG_ARG_FLOAT_OPT,
    KG_ARG_BOOL,
    KG_ARG_STR, /* the text of a Program; at most one an Op */
    KG_ARG_INT_LIST,
    KG_ARG_FLOAT_LIST /* the lifted scalars of a Program; at most one an Op */
} kg_arg_type;

typedef struct kg_op_arg {
    char *name;
    kg_arg_type type;
    uint32_t dtypes;   /* tensors: bit 1 << kg_dtype for each dtype that is allowed */
    int same_dtype_as; /* index of an earlier arg, or -1 */
    bool shaped;       /* false: any shape */
    size_t rank;
    kg_expr *shape[KG_MAX_RANK]; /* a bare new name binds; anything else must equal */
    int shape_dim[KG_MAX_RANK];  /* the dim that shape names alone, or -1 (kg_op_link) */
    bool key;                    /* attributes: part of a pin's key */
    bool has_default;
    double default_number; /* int, float, bool */
    kg_expr *none_rsqrt;   /* float?: None stands for 1 / sqrt(this) */
} kg_op_arg;

typedef struct kg_op_dim {
    char *name;
    kg_expr *expr; /* NULL: bound by a shape */
    bool key;      /* part of a pin's key */
    bool dynamic;  /* may be '*' in a pin */
} kg_op_dim;

typedef struct kg_op_check {
    kg_expr *expr;
    char *message;
} kg_op_check;

typedef struct kg_op_output {
    char *name;
    int dtype; /* a kg_dtype, or -1: that of arg dtype_of */
    int dtype_of;
    int like; /* index of an arg whose shape and dense memory order it has, or -1 */
    size_t rank;
    kg_expr *shape[KG_MAX_RANK];
    bool optional; /* a call may not want it: kernels get NULL */
} kg_op_output;

typedef struct kg_op {
    char *name;
    char *schema;
    size_t nargs, ndims, nchecks, noutputs, nholes;
    kg_op_arg args[KG_MAX_ARGS];
    kg_op_dim dims[KG_MAX_DIMS];
    kg_op_check checks[KG_MAX_DIMS];
    kg_op_output outputs[KG_MAX_OUTPUTS];
    char *holes[4];     /* "SCORE", "MASK", "EPILOGUE" */
    kg_expr *flops;     /* NULL: not stated; the floor is bytes alone */
    kg_expr *reduction; /* elements summed into one output; sets the tolerance. NULL: 1 */
    char hash[65];      /* SHA-256 of the canonical op.json */
} kg_op;

void kg_op_free(kg_op *op);
int kg_op_arg_index(const kg_op *op, const char *name); /* -1 when there is none */
int kg_op_dim_index(const kg_op *op, const char *name);
int kg_op_output_index(const kg_op *op, const char *name);
bool kg_arg_is_tensor(kg_arg_type type); /* Tensor and Tensor? */
bool kg_arg_is_attr(
    kg_arg_type type); /* int, float, bool, their lists and optionals; no part of a Program */
const char *kg_arg_type_name(kg_arg_type type); /* "Tensor?" */
/* The dtype of a tensor arg or output in this call; for an absent Tensor? what it would have to be.
 */
int kg_op_arg_dtype(const kg_op *op, const kg_call *call, size_t arg);
int kg_op_output_dtype(const kg_op *op, const kg_call *call, size_t output);
/* Fills what is derived from the rest (shape_dim): after building, before use. */
void kg_op_link(kg_op *op);
/* Flat form, for the index; op_read checks every bound. */
int kg_op_write(const kg_op *op, kg_buf *out);
int kg_op_read(kg_reader *in, kg_op **out, kg_error *err);

/* The dims of one call, and its outputs as they must be allocated (data NULL). */
typedef struct kg_dims {
    int64_t value[KG_MAX_DIMS];
} kg_dims;

/* Checks dtypes, ranks, shapes, checks. The message names argument, what came and what would be
 * right. */
int kg_op_dims(const kg_op *op, const kg_call *call, kg_dims *dims, kg_error *err);
int kg_op_outputs(const kg_op *op, const kg_call *call, const kg_dims *dims,
                  kg_tensor out[KG_MAX_OUTPUTS], kg_error *err);
/* A float attribute with None replaced by what the contract says. */
int kg_op_float(const kg_op *op, const kg_call *call, const kg_dims *dims, size_t arg, double *out,
                kg_error *err);

#endif
