/* Registers ops with torch's dispatcher, serves kgen::softmax, and is the runtime's host under
 * torch. */
#include "runtime/shim.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- registration ---- */

typedef struct library {
    const char *key; /* NULL: definitions */
    TorchLibraryHandle handle;
} library;

static pthread_mutex_t library_lock = PTHREAD_MUTEX_INITIALIZER;
static library libraries[16];
static size_t nlibraries;

/* Under the lock. Dispatch keys are string literals of ours, so there are few. */
static int get_library(const char *key, TorchLibraryHandle *out, kg_error *err) {
    for (size_t i = 0; i < nlibraries; i++) {
        const char *k = libraries[i].key;
        if (k == key || (k != NULL && key != NULL && strcmp(k, key) == 0)) {
            *out = libraries[i].handle;
            return KG_OK;
        }
    }
    TorchLibraryHandle lib = NULL;
    if (nlibraries == sizeof(libraries) / sizeof(libraries[0]))
        return kg_fail(err, KG_EOVERFLOW, "too many dispatch keys");
    if (key == NULL ? kg_th.aoti_torch_library_init_fragment("kgen", __FILE__, __LINE__, &lib)
                    : kg_th.aoti_torch_library_init_impl("kgen", key, __FILE__, __LINE__, &lib))
        return kg_fail(err, KG_EENV, "torch refused a library of the namespace kgen");
    libraries[nlibraries++] = (library){.key = key, .handle = lib};
    *out = lib;
    return KG_OK;
}

int kg_shim_define(const char *schema, kg_error *err) {
    TorchLibraryHandle lib;
    pthread_mutex_lock(&library_lock);
    int rc = get_library(NULL, &lib, err);
    if (rc == KG_OK && kg_th.aoti_torch_library_def(lib, schema))
        rc = kg_torch_failed(schema, err);
    pthread_mutex_unlock(&library_lock);
    return rc;
}

int kg_shim_impl(const char *key, const char *name, kg_torch_boxed fn, kg_error *err) {
    TorchLibraryHandle lib;
    pthread_mutex_lock(&library_lock);
    int rc = get_library(key, &lib, err);
    if (rc == KG_OK && kg_th.torch_library_impl(lib, name, fn, KG_TORCH_ABI))
        rc = kg_torch_failed(name, err);
    pthread_mutex_unlock(&library_lock);
    return rc;
}

void kg_shim_raise(int rc, const kg_error *e) {
    if (rc != KG_OK)
        kg_torch_throw("kgen", e->msg);
}

int kg_shim_tensor(AtenTensorHandle t, kg_value *v, kg_call *call, kg_error *err) {
    v->present = true;
    return kg_torch_view(t, &v->u.t, &call->device, &call->device_index, err);
}

/* ---- the host ---- */

/* A fresh mapping of this size is filled page by page; where the system allows it on request, huge
 * pages make that several times faster (64 MiB: 50 ms to 8 ms measured). glibc gives every block
 * from 32 MiB on a mapping of its own, so the wish ends with the tensor. */
#define OWN_MAPPING ((uintptr_t)32 << 20)

static void wish_for_huge_pages(const kg_tensor *t) {
    const uintptr_t page = 4096;
    uintptr_t bytes = (uintptr_t)kg_tensor_numel(t) * kg_dtype_size(t->dtype);
    uintptr_t start = ((uintptr_t)t->data + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)t->data + bytes) / page * page;
    if (bytes >= OWN_MAPPING)
        (void)madvise((void *)start, end - start, MADV_HUGEPAGE); /* refusing it is fine */
}

static int host_empty(kg_tensor *t, int32_t device, int32_t index, void **handle, kg_error *err) {
    AtenTensorHandle made = NULL;
    if (kg_th.aoti_torch_empty_strided(t->ndim, t->size, t->stride, kg_torch_dtype(t->dtype),
                                       kg_torch_device_type(device), index, &made))
        return kg_fail(err, KG_ENOMEM, "torch could not allocate an output");
    if (kg_th.torch_get_mutable_data_ptr(made, &t->data)) {
        kg_tensor_drop(made);
        return kg_fail(err, KG_ENOMEM, "torch gave an output without memory");
    }
    if (device == KG_CPU)
        wish_for_huge_pages(t);
    *handle = made;
    return KG_OK;
}

static void host_release(void *handle) {
    kg_tensor_drop(handle);
}

static int host_parallel(int64_t n, int64_t grain, void (*fn)(int64_t, int64_t, void *), void *ctx,
                         kg_error *err) {
    if (kg_th.torch_parallel_for(0, n, grain, fn, ctx))
        return kg_fail(err, KG_EIO, "torch's parallel_for failed");
    return KG_OK;
}

static int host_threads(void) {
    uint32_t n = 1;
    return kg_th.torch_get_num_threads(&n) ? 1 : (int)n;
}

static int host_stream(int32_t index, kg_cu_stream *out, kg_error *err) {
    void *stream = NULL;
    if (kg_th.aoti_torch_get_current_cuda_stream == NULL)
        return kg_fail(err, KG_EUNSUPPORTED, "this torch was built without CUDA");
    if (kg_th.aoti_torch_get_current_cuda_stream(index, &stream))
        return kg_torch_failed("torch's current CUDA stream", err);
    *out = stream;
    return KG_OK;
}

const kg_host kg_torch_host = {
    .empty = host_empty,
    .release = host_release,
    .parallel = host_parallel,
    .threads = host_threads,
    .stream = host_stream,
};

/* ---- softmax ---- */

static const kg_rt_op *softmax_op;

/* Without gradients there is nothing but the backend kernel; with them Python's autograd comes
 * between. */
static void softmax_public(StableIValue *stack, uint64_t nin, uint64_t nout) {
    kg_error e;
    (void)nin;
    (void)nout;
    const char *op =
        kg_th.aoti_torch_grad_mode_is_enabled() ? "kgen::_softmax_train" : "kgen::_softmax";
    kg_shim_raise(kg_torch_call(op, "", stack, &e), &e);
}

static int softmax_reference(StableIValue *stack, kg_error *err) {
    StableIValue s[3] = {stack[0], stack[1], 0};
    int rc = kg_torch_call("aten::_softmax", "", s, err);
    stack[0] = s[0];
    return rc;
}

/* The Kernel's output; KG_ENOTFOUND and KG_EUNSUPPORTED: the reference has to do it. */
static int softmax_kernel(AtenTensorHandle input, int64_t dim, void **out, kg_error *err) {
    kg_call call;
    void *outputs[KG_MAX_OUTPUTS];
    call.nargs = 2;
    call.ncaptured = 0;
    call.nscalars = 0;
    call.program = NULL;
    call.skip_outputs = 0;
    int rc = kg_shim_tensor(input, &call.args[0], &call, err);
    if (rc != KG_OK)
        return rc;
    call.args[1].present = true;
    call.args[1].u.i = dim;
    rc = kg_rt_run(softmax_op, &call, outputs, err);
    if (rc == KG_OK)
        *out = outputs[0];
    return rc;
}

static bool reference_serves(int rc) {
    return rc == KG_ENOTFOUND || rc == KG_EUNSUPPORTED;
}

int kg_shim_softmax_call(AtenTensorHandle input, int64_t dim, void **out, kg_error *err) {
    int rc = softmax_kernel(input, dim, out, err);
    if (!reference_serves(rc))
        return rc;
    AtenTensorHandle own = NULL;
    rc = kg_tensor_share(input, &own, err);
    if (rc != KG_OK)
        return rc;
    StableIValue stack[2] = {kg_tensor_slot(own), (StableIValue)dim};
    rc = softmax_reference(stack, err);
    if (rc == KG_OK)
        *out = kg_slot_tensor(stack[0]);
    return rc;
}

static int softmax_body(StableIValue *stack, kg_error *err) {
    AtenTensorHandle input = kg_slot_tensor(stack[0]);
    void *out = NULL;
    int rc = softmax_kernel(input, (int64_t)stack[1], &out, err);
    if (reference_serves(rc))
        return softmax_reference(stack, err);
    kg_tensor_drop(input);
    if (rc == KG_OK)
        stack[0] = kg_tensor_slot(out);
    return rc;
}

static void softmax_backend(StableIValue *stack, uint64_t nin, uint64_t nout) {
    kg_error e;
    (void)nin;
    (void)nout;
    kg_shim_raise(softmax_body(stack, &e), &e);
}

int kg_shim_softmax(kg_error *err) {
    static const struct {
        const char *key, *name;
        kg_torch_boxed fn;
    } impls[] = {
        {"CompositeImplicitAutograd", "softmax", softmax_public},
        {"CPU", "_softmax", softmax_backend},
        {"CUDA", "_softmax", softmax_backend},
        {"CPU", "_softmax_train", softmax_backend},
        {"CUDA", "_softmax_train", softmax_backend},
    };
    static const char *const schemas[] = {
        "softmax(Tensor input, int dim) -> Tensor",
        "_softmax(Tensor input, int dim) -> Tensor",
        "_softmax_train(Tensor input, int dim) -> Tensor",
    };
    int rc = kg_rt_find_op("softmax", &softmax_op, err);
    for (size_t i = 0; rc == KG_OK && i < sizeof(schemas) / sizeof(schemas[0]); i++)
        rc = kg_shim_define(schemas[i], err);
    for (size_t i = 0; rc == KG_OK && i < sizeof(impls) / sizeof(impls[0]); i++)
        rc = kg_shim_impl(impls[i].key, impls[i].name, impls[i].fn, err);
    return rc;
}
