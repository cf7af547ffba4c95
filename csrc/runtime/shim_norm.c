/* Serves kgen::layer_norm and kgen::rms_norm, torch's functionals of those names. What no Kernel
 * serves (other dtypes and layouts, weights of another dtype, shapes that do not go together) goes
 * to torch's own, whose result or error the user then sees. */
#include "runtime/shim.h"

#include <string.h>

/* The stack: input, normalized_shape, weight and bias (which rms_norm lacks), eps. */
enum { INPUT, SHAPE, WEIGHT, MAX_ARGS = 5 };

typedef struct norm {
    const char *name, *aten;
    const char *backend, *train; /* "kgen::_name", "kgen::_name_train" */
    size_t nargs;
    bool optional_eps;
    bool takes_cudnn_enable; /* a last argument of torch's that has no meaning here */
    const kg_rt_op *op;
} norm;

static norm layer_norm = {.name = "layer_norm",
                          .aten = "aten::layer_norm",
                          .backend = "kgen::_layer_norm",
                          .train = "kgen::_layer_norm_train",
                          .nargs = 5,
                          .takes_cudnn_enable = true};
static norm rms_norm = {.name = "rms_norm",
                        .aten = "aten::rms_norm",
                        .backend = "kgen::_rms_norm",
                        .train = "kgen::_rms_norm_train",
                        .nargs = 4,
                        .optional_eps = true};

/* The call of a stack that stays as it is, since torch's own may have to take it. */

static int see_tensor(AtenTensorHandle t, kg_value *v, kg_call *call, bool first, kg_error *err) {
    int32_t device = call->device, index = call->device_index;
    int rc = kg_shim_tensor(t, v, call, err);
    if (rc == KG_OK && !first && (device != call->device || index != call->device_index))
        rc = KG_ENOTFOUND; /* torch's own message says which device is which */
    return rc;
}

static int see_shape(StableIValue slot, kg_value *v, kg_error *err) {
    StableIValue sizes[KG_MAX_LIST];
    v->present = true;
    v->u.list.n = 0;
    int rc = kg_list_peek(slot, sizes, KG_MAX_LIST, &v->u.list.n, err);
    for (size_t i = 0; rc == KG_OK && i < v->u.list.n; i++)
        v->u.list.v[i] = (int64_t)sizes[i];
    return rc;
}

static void see_eps(const norm *n, StableIValue slot, kg_value *v) {
    v->present = !n->optional_eps || slot != 0;
    if (v->present)
        v->u.f = kg_f64_slot(n->optional_eps ? kg_slot_peek(slot) : slot);
}

static int see(const norm *n, const StableIValue *stack, kg_call *call, kg_error *err) {
    const size_t eps = n->nargs - 1;
    call->nargs = n->nargs;
    call->ncaptured = 0;
    call->nscalars = 0;
    call->program = NULL;
    call->skip_outputs = 0;
    int rc = see_tensor(kg_slot_tensor(stack[INPUT]), &call->args[INPUT], call, true, err);
    if (rc == KG_OK)
        rc = see_shape(stack[SHAPE], &call->args[SHAPE], err);
    for (size_t i = WEIGHT; rc == KG_OK && i < eps; i++) {
        call->args[i].present = stack[i] != 0;
        if (stack[i] != 0)
            rc = see_tensor(kg_slot_tensor(kg_slot_peek(stack[i])), &call->args[i], call, false,
                            err);
    }
    see_eps(n, stack[eps], &call->args[eps]);
    return rc;
}

static void drop_stack(const norm *n, const StableIValue *stack) {
    const size_t eps = n->nargs - 1;
    kg_tensor_drop(kg_slot_tensor(stack[INPUT]));
    kg_list_drop(stack[SHAPE]);
    for (size_t i = WEIGHT; i < eps; i++)
        if (stack[i] != 0)
            kg_tensor_drop(kg_slot_tensor(kg_slot_take(stack[i])));
    if (n->optional_eps && stack[eps] != 0)
        (void)kg_slot_take(stack[eps]);
}

static int reference(const norm *n, StableIValue *stack, kg_error *err) {
    StableIValue s[MAX_ARGS + 1];
    memcpy(s, stack, n->nargs * sizeof(*s));
    s[n->nargs] = n->takes_cudnn_enable;
    int rc = kg_torch_call(n->aten, "", s, err);
    stack[0] = s[0];
    return rc;
}

static int body(const norm *n, StableIValue *stack, kg_error *err) {
    kg_call call;
    void *out[KG_MAX_OUTPUTS];
    call.device = KG_CPU;
    call.device_index = 0;
    int rc = see(n, stack, &call, err);
    if (rc == KG_OK)
        rc = kg_rt_run(n->op, &call, out, err);
    if (rc == KG_ENOTFOUND || rc == KG_EUNSUPPORTED)
        return reference(n, stack, err);
    drop_stack(n, stack);
    if (rc == KG_OK)
        stack[0] = kg_tensor_slot(out[0]);
    return rc;
}

/* ---- the boxed functions ---- */

static void run_public(const norm *n, StableIValue *stack) {
    kg_error e;
    bool grad = kg_th.aoti_torch_grad_mode_is_enabled();
    kg_shim_raise(kg_torch_call(grad ? n->train : n->backend, "", stack, &e), &e);
}

static void run_backend(const norm *n, StableIValue *stack) {
    kg_error e;
    kg_shim_raise(body(n, stack, &e), &e);
}

static void layer_norm_public(StableIValue *stack, uint64_t nin, uint64_t nout) {
    (void)nin;
    (void)nout;
    run_public(&layer_norm, stack);
}

static void layer_norm_backend(StableIValue *stack, uint64_t nin, uint64_t nout) {
    (void)nin;
    (void)nout;
    run_backend(&layer_norm, stack);
}

static void rms_norm_public(StableIValue *stack, uint64_t nin, uint64_t nout) {
    (void)nin;
    (void)nout;
    run_public(&rms_norm, stack);
}

static void rms_norm_backend(StableIValue *stack, uint64_t nin, uint64_t nout) {
    (void)nin;
    (void)nout;
    run_backend(&rms_norm, stack);
}

/* ---- registration ---- */

/* The op, "_op" and "_op_train" of one schema: parameters from the parenthesis on. */
static int define_all(norm *n, const char *const schemas[3], kg_torch_boxed public_fn,
                      kg_torch_boxed backend_fn, kg_error *err) {
    const char *backend = n->backend + strlen("kgen::"), *train = n->train + strlen("kgen::");
    const struct {
        const char *key, *name;
        kg_torch_boxed fn;
    } impls[] = {
        {"CompositeImplicitAutograd", n->name, public_fn},
        {"CPU", backend, backend_fn},
        {"CUDA", backend, backend_fn},
        {"CPU", train, backend_fn},
        {"CUDA", train, backend_fn},
    };
    int rc = kg_rt_find_op(n->name, &n->op, err);
    for (size_t i = 0; rc == KG_OK && i < 3; i++)
        rc = kg_shim_define(schemas[i], err);
    for (size_t i = 0; rc == KG_OK && i < sizeof(impls) / sizeof(impls[0]); i++)
        rc = kg_shim_impl(impls[i].key, impls[i].name, impls[i].fn, err);
    return rc;
}

#define LAYER_NORM                                                                                 \
    "(Tensor input, int[] normalized_shape, Tensor? weight=None, Tensor? bias=None, float "        \
    "eps=1e-05) -> Tensor"
#define RMS_NORM                                                                                   \
    "(Tensor input, int[] normalized_shape, Tensor? weight=None, float? eps=None) -> Tensor"

int kg_shim_norm(kg_error *err) {
    static const char *const layer[3] = {"layer_norm" LAYER_NORM, "_layer_norm" LAYER_NORM,
                                         "_layer_norm_train" LAYER_NORM};
    static const char *const rms[3] = {"rms_norm" RMS_NORM, "_rms_norm" RMS_NORM,
                                       "_rms_norm_train" RMS_NORM};
    int rc = define_all(&layer_norm, layer, layer_norm_public, layer_norm_backend, err);
    return rc == KG_OK ? define_all(&rms_norm, rms, rms_norm_public, rms_norm_backend, err) : rc;
}
