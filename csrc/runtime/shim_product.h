/* What the fronts of linear, matmul and conv2d share: the operands and attributes of a stack, the
 * way through a Kernel or to torch, and Programs as epilogues. Internal to shim_product.c and the
 * files of the fronts. */
#ifndef KG_RUNTIME_SHIM_PRODUCT_H
#define KG_RUNTIME_SHIM_PRODUCT_H

#include "runtime/shim.h"

/* Places of a stack and of a contract's arguments. */
enum { KG_INPUT, KG_SECOND, KG_BIAS };
enum { KG_PRODUCT_ATTRS = 4 };

/* What a call came to. The contract's output has the dims of `shown`: nbatch of them are B, nrows
 * M, ncols N. The user sees shown[d] as dim order[d]. */
typedef struct kg_product {
    kg_call call;
    int64_t shown[KG_MAX_RANK];
    int32_t order[KG_MAX_RANK];
    int32_t nshown, nbatch, nrows, ncols;
} kg_product;

typedef struct kg_product_front {
    const char *name, *aten;
    const char *backend, *train;         /* "kgen::_name", "kgen::_name_train" */
    size_t noperands;                    /* tensors at the begin */
    size_t nattrs;                       /* attributes behind them, at most KG_PRODUCT_ATTRS */
    size_t nmore;                        /* attributes of the contract that `see` finds out */
    kg_arg_type attrs[KG_PRODUCT_ATTRS]; /* KG_ARG_INT or KG_ARG_INT_LIST */
    int32_t rank;                        /* of the contract's output */
    /* Makes the call of the contract out of the operands' views and the attributes, which are in
     * the call's args; KG_ENOTFOUND: it is torch's. */
    int (*see)(kg_product *p, kg_error *err);
    const kg_rt_op *op;
} kg_product_front;

/* Dims [0, n) of up to two tensors as one dim; a dim of size 1 has no say. steps: in and out one
 * stride a tensor, what a single element would have. False: they do not fold. */
bool kg_product_fold(const int64_t *size, int32_t n, const int64_t *const *strides, int ntensors,
                     int64_t *count, int64_t *steps);
bool kg_product_fold_one(const int64_t *size, int32_t n, const int64_t *stride, int64_t *count,
                         int64_t *step);
void kg_product_set_dim(kg_tensor *t, int32_t d, int64_t size, int64_t stride);

/* The bodies of the boxed functions: torch's schema with gradients between, without, and with a
 * Program. */
void kg_product_public(const kg_product_front *f, StableIValue *stack);
void kg_product_backend(const kg_product_front *f, StableIValue *stack);
void kg_product_mod(const kg_product_front *f, StableIValue *stack);

#define KG_PRODUCT_BOXED(name, call)                                                               \
    static void name(StableIValue *stack, uint64_t nin, uint64_t nout) {                           \
        (void)nin;                                                                                 \
        (void)nout;                                                                                \
        call;                                                                                      \
    }

/* "Tensor[] captured, float[] scalars, str program" of every schema with a Program. */
#define KG_OF_PROGRAM "Tensor[] captured, float[] scalars, str program"

typedef struct kg_product_impl {
    const char *name;
    kg_torch_boxed fn;
} kg_product_impl;

/* Defines schemas and gives the impls to CPU and CUDA. */
int kg_product_register(const char *const *schemas, size_t nschemas, const kg_product_impl *impls,
                        size_t nimpls, kg_error *err);

#endif
