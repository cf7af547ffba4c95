/* What a call from eager Python must know of a tensor and of its thread to do without torch's
 * dispatcher, and what the stable C ABI does not tell: where the tensor is in the Python object,
 * which dispatch keys it has, which keys this thread adds or takes away.
 *
 * Nothing of torch's layout is taken for granted. Functions are found by name, and a place counts
 * only after torch itself, asked through Python, named the very value that is read there, for
 * several tensors that differ in it. What is not found like this leaves the quick way shut, and
 * every call takes the dispatcher's. */
#ifndef KG_RUNTIME_TORCH_ABI_EAGER_H
#define KG_RUNTIME_TORCH_ABI_EAGER_H

#include "runtime/torch_abi.h"

/* What torch tells of a tensor and of the calling thread. */
typedef struct kg_eager_sample {
    const void *object;          /* the tensor's PyObject, */
    size_t bytes;                /* and its size */
    uint64_t impl;               /* Tensor._cdata */
    uint64_t keys;               /* torch._C._dispatch_keys(tensor).raw_repr() */
    uint64_t included, excluded; /* torch._C._dispatch_tls_local_*_set().raw_repr() */
    bool plain;                  /* such tensors in such threads may go the quick way */
} kg_eager_sample;

/* Learns from a tensor and the calling thread; with the GIL, for three tensors or more whose keys
 * differ, in threads whose keys differ, and then kg_eager_open, once. KG_EUNSUPPORTED: the quick
 * way stays shut, and why. */
int kg_eager_learn(const kg_eager_sample *s, kg_error *err);
int kg_eager_open(kg_error *err);
/* One more kind of tensor that may go the quick way, such as a GPU's: what torch says of its keys
 * must be what is read. */
int kg_eager_admit(const void *object, uint64_t keys, kg_error *err);

/* Whether nothing that this thread has on could change what a call does: a mode, a transform, a
 * profiler, autocast, tracing. gradients: whether it records them. */
bool kg_eager_thread_is_plain(bool *gradients);
/* The tensor in a Python object, borrowed from it, when its keys say that nothing but a kernel of
 * its device may come to it; else NULL. The object must be a torch.Tensor. */
AtenTensorHandle kg_eager_tensor(const void *object);
bool kg_eager_requires_grad(AtenTensorHandle t);
/* A new PyObject for the tensor, which stays the caller's to drop; with the GIL. NULL: a Python
 * error is set. */
void *kg_eager_wrap(AtenTensorHandle t);

#endif
