/* The check of an instantiated Program: outputs against an fp64 reference of some rows alone. */
#ifndef KG_RUNTIME_SAMPLE_H
#define KG_RUNTIME_SAMPLE_H

#include "runtime/op.h"

#define KG_SAMPLE_ROWS 64

/* call and outs are attention's, on the host. KG_OK: every sampled row is right. KG_EINVAL: one is
 * not; the message says which and by how much. Anything else: it could not be told. */
int kg_sample_attention(const kg_op *op, const kg_call *call, const kg_tensor *outs, kg_error *err);

/* The same for tensors that must be copied to be read: copy takes n bytes. Only what the sampled
 * rows need is copied, at most 512 MiB in all (fewer rows then, or KG_EUNSUPPORTED when not even
 * four fit). */
typedef int (*kg_sample_copy)(void *ctx, void *to, const void *from, size_t n, kg_error *err);
int kg_sample_attention_device(const kg_op *op, const kg_call *call, const kg_tensor *outs,
                               kg_sample_copy copy, void *ctx, kg_error *err);

/* The same of linear, matmul and conv2d, in some columns of the rows. */
int kg_sample_product(const kg_op *op, const kg_call *call, const kg_tensor *out, kg_error *err);
int kg_sample_product_device(const kg_op *op, const kg_call *call, const kg_tensor *out,
                             kg_sample_copy copy, void *ctx, kg_error *err);

#endif
