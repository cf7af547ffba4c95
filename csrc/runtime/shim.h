/* Between torch's dispatcher and the runtime: boxed kernels. Internal to the shim*.c files.
 *
 * The rule of every boxed function: it owns its stack, so the body frees or gives away each slot on
 * every path and returns a status; the trampoline throws last, when nothing is held. */
#ifndef KG_RUNTIME_SHIM_H
#define KG_RUNTIME_SHIM_H

#include "runtime/runtime.h"
#include "runtime/torch_abi.h"

/* Defines an op of the namespace kgen ("name(Tensor x) -> Tensor") and gives it kernels. Libraries
 * are kept for the life of the process. */
int kg_shim_define(const char *schema, kg_error *err);
int kg_shim_impl(const char *key, const char *name, kg_torch_boxed fn, kg_error *err);

/* The canonical ops; each once. */
int kg_shim_softmax(kg_error *err);
int kg_shim_attention(kg_error *err);
int kg_shim_norm(kg_error *err);   /* layer_norm and rms_norm */
int kg_shim_linear(kg_error *err); /* linear and matmul */
int kg_shim_conv(kg_error *err);   /* conv2d */

/* What the kernel of kgen::_softmax does, without its stack: input stays the caller's, *out is a
 * new AtenTensorHandle. */
int kg_shim_softmax_call(AtenTensorHandle input, int64_t dim, void **out, kg_error *err);
/* The same of kgen::_attention without a mask, of its own scale and without enable_gqa. */
int kg_shim_attention_call(const AtenTensorHandle qkv[3], bool causal, void **out, kg_error *err);

/* Defines an indexed Op that is not canonical, with kernels from the pool of trampolines. KG_OK
 * when it is defined already; KG_EOVERFLOW when the pool is used up. */
int kg_shim_own_op(const char *name, kg_error *err);

/* Throws e->msg when rc is not KG_OK. */
void kg_shim_raise(int rc, const kg_error *e);

/* A Tensor argument: the view into v, device and index into the call. */
int kg_shim_tensor(AtenTensorHandle t, kg_value *v, kg_call *call, kg_error *err);

/* The Python fallback, kgen::_fallback(Tensor[] inputs, int call) -> Tensor[]: inputs are taken in
 * any case, results are the caller's. */
int kg_shim_python(const kg_rt_op *op, const kg_call *call, const char *program_text,
                   AtenTensorHandle *inputs, size_t ninputs, AtenTensorHandle *results,
                   size_t nresults, kg_error *err);
/* What the Python side reads of a fallback that is under way, as JSON. */
int kg_shim_python_call(int64_t id, kg_buf *out, kg_error *err);

extern const kg_host kg_torch_host;

#endif
