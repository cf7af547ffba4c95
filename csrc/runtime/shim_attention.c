/* Serves kgen::attention (scaled_dot_product_attention's schema) and kgen::attention_mod (a traced
 * Program), the latter also without its log-sum-exp as kgen::attention_mod_output. The first turns
 * is_causal and attn_mask into Programs, so that one contract and one set of Kernels serve both; on
 * a GPU torch's own kernels are for them, and it takes a pin of that very Program to serve instead.
 * What the contract does not cover (dropout, other ranks and dtypes) goes to torch's own SDPA,
 * whose errors the user then sees. */
#include "runtime/shim.h"

#include <stdio.h>
#include <string.h>

enum { QUERY, KEY, VALUE, CAPTURED, SCALARS, PROGRAM, SCALE, GQA, NARGS };
enum { OUTPUT, LSE };
enum { PLAIN, CAUSAL, MASK_BOOL, MASK_F32, MASK_F16, MASK_BF16, NPROGRAMS };

#define SCORE_MASK(dtype)                                                                          \
    "program 1\ntensor t0 " dtype " 4\nscore\n%0 = load float32 t0 b h q kv\n"                     \
    "%1 = add float32 score %0\nreturn %1\n"

static const char *const texts[NPROGRAMS] = {
    [CAUSAL] = "program 1\nmask\n%0 = ge bool q kv\nreturn %0\n",
    [MASK_BOOL] = "program 1\ntensor t0 bool 4\nmask\n%0 = load bool t0 b h q kv\nreturn %0\n",
    [MASK_F32] = SCORE_MASK("float32"),
    [MASK_F16] = SCORE_MASK("float16"),
    [MASK_BF16] = SCORE_MASK("bfloat16"),
};
static const struct kg_program *programs[NPROGRAMS];
static const kg_rt_op *attention_op;

/* ---- the public op: kgen::attention ---- */

static bool dtype_served(int32_t code) {
    int dtype = kg_torch_dtype_of(code);
    return dtype == KG_F32 || dtype == KG_F16 || dtype == KG_BF16;
}

/* Whether the contract may hold, from what can be read of fake tensors too: no size, no address. */
static bool may_serve(const StableIValue *stack) {
    int32_t dtypes[3];
    for (int i = QUERY; i <= VALUE; i++) {
        AtenTensorHandle t = kg_slot_tensor(stack[i]);
        int64_t rank;
        if (kg_th.aoti_torch_get_dim(t, &rank) || rank != 4 ||
            kg_th.aoti_torch_get_dtype(t, &dtypes[i]) || dtypes[i] != dtypes[0])
            return false;
    }
    bool masked = stack[3] != 0, causal = kg_bool_slot(stack[5]);
    return dtype_served(dtypes[0]) && kg_f64_slot(stack[4]) == 0.0 && !(masked && causal);
}

static void attention_public(StableIValue *stack, uint64_t nin, uint64_t nout) {
    kg_error e;
    int rc;
    (void)nin;
    (void)nout;
    if (!may_serve(stack)) {
        rc = kg_torch_call("aten::scaled_dot_product_attention", "", stack, &e);
    } else {
        StableIValue s[7] = {stack[0], stack[1], stack[2], stack[3], stack[5], stack[6], stack[7]};
        bool grad = kg_th.aoti_torch_grad_mode_is_enabled();
        rc = kg_torch_call(grad ? "kgen::_attention_train" : "kgen::_attention", "", s, &e);
        stack[0] = s[0];
    }
    kg_shim_raise(rc, &e);
}

/* ---- the backend kernel: kgen::_attention ---- */

/* The mask as a captured tensor of (B, HQ, SQ, SK), with stride 0 where it is broadcast. */
static int bind_mask(kg_call *call, AtenTensorHandle mask, int *program, kg_error *err) {
    const kg_tensor *q = &call->args[QUERY].u.t, *k = &call->args[KEY].u.t;
    const int64_t full[4] = {q->size[0], q->size[1], q->size[2], k->size[2]};
    kg_tensor m, *t = &call->captured[0];
    int32_t device, index;
    int rc = kg_torch_view(mask, &m, &device, &index, err);
    if (rc != KG_OK)
        return rc;
    switch (m.dtype) {
    case KG_BOOL:
        *program = MASK_BOOL;
        break;
    case KG_F32:
        *program = MASK_F32;
        break;
    case KG_F16:
        *program = MASK_F16;
        break;
    case KG_BF16:
        *program = MASK_BF16;
        break;
    default:
        return KG_ENOTFOUND;
    }
    if (m.ndim > 4 || device != call->device || index != call->device_index ||
        (m.dtype != KG_BOOL && m.dtype != q->dtype))
        return KG_ENOTFOUND;
    t->data = m.data;
    t->dtype = m.dtype;
    t->ndim = 4;
    for (int d = 0, from = m.ndim - 4; d < 4; d++, from++) {
        int64_t size = from >= 0 ? m.size[from] : 1;
        if (size != full[d] && size != 1)
            return KG_ENOTFOUND;
        t->size[d] = full[d];
        t->stride[d] = size == full[d] && from >= 0 ? m.stride[from] : 0;
    }
    call->ncaptured = 1;
    return KG_OK;
}

static void name_device(int32_t device, int32_t index, char out[24]) {
    if (device == KG_CUDA)
        snprintf(out, 24, "cuda:%d", index);
    else
        snprintf(out, 24, "cpu");
}

/* Said here, since what torch says cannot be asked before 2.13. */
static int wrong_device(int argument, int32_t device, int32_t index, const kg_call *query,
                        kg_error *err) {
    static const char *const names[] = {"query", "key", "value"};
    char its[24], querys[24];
    name_device(device, index, its);
    name_device(query->device, query->device_index, querys);
    return kg_fail(err, KG_EINVAL,
                   "attention: query, key and value must be on the same device: %s is on %s, query "
                   "on %s",
                   names[argument], its, querys);
}

static int bind_qkv(const StableIValue *stack, kg_call *call, kg_error *err) {
    call->nargs = NARGS;
    call->ncaptured = 0;
    call->nscalars = 0;
    call->program = NULL;
    call->skip_outputs = 0;
    int rc = KG_OK;
    for (int i = QUERY; rc == KG_OK && i <= VALUE; i++) {
        int32_t device, index;
        kg_value *v = &call->args[i];
        v->present = true;
        rc = kg_torch_view(kg_slot_tensor(stack[i]), &v->u.t, &device, &index, err);
        if (rc == KG_OK && i == QUERY)
            call->device = device, call->device_index = index;
        else if (rc == KG_OK && (device != call->device || index != call->device_index))
            rc = wrong_device(i, device, index, call, err);
    }
    call->args[CAPTURED].present = false;
    call->args[SCALARS].present = false;
    call->args[PROGRAM].present = false;
    return rc;
}

static void bind_options(kg_call *call, StableIValue scale, StableIValue gqa) {
    call->args[SCALE].present = scale != 0;
    if (scale != 0)
        call->args[SCALE].u.f = kg_f64_slot(kg_slot_peek(scale));
    call->args[GQA].present = true;
    call->args[GQA].u.b = kg_bool_slot(gqa);
}

static bool empty(const kg_call *call) {
    return kg_tensor_numel(&call->args[QUERY].u.t) == 0 ||
           kg_tensor_numel(&call->args[KEY].u.t) == 0 ||
           kg_tensor_numel(&call->args[VALUE].u.t) == 0;
}

static int attention_serve(const StableIValue *stack, void *out[KG_MAX_OUTPUTS], kg_error *err) {
    kg_call call;
    call.device = 0; /* until the first tensor says */
    call.device_index = 0;
    int program = kg_bool_slot(stack[4]) ? CAUSAL : PLAIN;
    int rc = bind_qkv(stack, &call, err);
    if (rc == KG_OK &&
        (empty(&call) || call.args[QUERY].u.t.ndim != 4 || call.args[KEY].u.t.ndim != 4))
        rc = KG_ENOTFOUND;
    if (rc == KG_OK && stack[3] != 0) {
        if (program == CAUSAL)
            rc = KG_ENOTFOUND;
        else
            rc = bind_mask(&call, kg_slot_tensor(kg_slot_peek(stack[3])), &program, err);
    }
    if (rc != KG_OK)
        return rc;
    bind_options(&call, stack[5], stack[6]);
    call.program = programs[program];
    call.args[PROGRAM].present = program != PLAIN;
    call.skip_outputs = 1U << LSE;
    if (program != PLAIN && call.device == KG_CUDA)
        call.skip_outputs |= KG_TORCH_IS_FAST;
    return kg_rt_run(attention_op, &call, out, err);
}

static int attention_reference(StableIValue *stack, kg_error *err) {
    StableIValue s[8] = {stack[0],         stack[1], stack[2], stack[3],
                         kg_slot_f64(0.0), stack[4], stack[5], stack[6]};
    int rc = kg_torch_call("aten::scaled_dot_product_attention", "", s, err);
    stack[0] = s[0];
    return rc;
}

static void drop_qkv(const StableIValue *stack) {
    for (int i = QUERY; i <= VALUE; i++)
        kg_tensor_drop(kg_slot_tensor(stack[i]));
}

static bool reference_serves(int rc) {
    return rc == KG_ENOTFOUND || rc == KG_EUNSUPPORTED;
}

/* By the reference, which takes what it is given. */
static int refer(const AtenTensorHandle qkv[3], StableIValue *stack, void **out, kg_error *err) {
    AtenTensorHandle own[3] = {NULL, NULL, NULL};
    int rc = KG_OK;
    for (int i = QUERY; rc == KG_OK && i <= VALUE; i++)
        rc = kg_tensor_share(qkv[i], &own[i], err);
    for (int i = QUERY; i <= VALUE; i++) {
        if (rc != KG_OK)
            kg_tensor_drop(own[i]);
        stack[i] = kg_tensor_slot(own[i]);
    }
    if (rc == KG_OK)
        rc = attention_reference(stack, err);
    if (rc == KG_OK)
        *out = kg_slot_tensor(stack[0]);
    return rc;
}

int kg_shim_attention_call(const AtenTensorHandle qkv[3], bool causal, void **out, kg_error *err) {
    StableIValue stack[7] = {[4] = causal};
    void *outputs[KG_MAX_OUTPUTS];
    for (int i = QUERY; i <= VALUE; i++)
        stack[i] = kg_tensor_slot(qkv[i]);
    int rc = attention_serve(stack, outputs, err);
    if (rc == KG_OK)
        *out = outputs[OUTPUT];
    return reference_serves(rc) ? refer(qkv, stack, out, err) : rc;
}

static int attention_body(StableIValue *stack, kg_error *err) {
    void *out[KG_MAX_OUTPUTS];
    int rc = attention_serve(stack, out, err);
    if (reference_serves(rc))
        return attention_reference(stack, err);
    drop_qkv(stack);
    if (stack[3] != 0)
        kg_tensor_drop(kg_slot_tensor(kg_slot_take(stack[3])));
    if (stack[5] != 0)
        kg_slot_take(stack[5]);
    if (rc == KG_OK)
        stack[0] = kg_tensor_slot(out[OUTPUT]);
    return rc;
}

static void attention_backend(StableIValue *stack, uint64_t nin, uint64_t nout) {
    kg_error e;
    (void)nin;
    (void)nout;
    kg_shim_raise(attention_body(stack, &e), &e);
}

/* ---- the backend kernel of a Program: kgen::attention_mod ---- */

/* What attention_mod's stack came to. inputs: query, key, value, then the captured tensors; all
 * owned. */
typedef struct mod_call {
    AtenTensorHandle inputs[3 + KG_MAX_CAPTURED];
    size_t ninputs;
    StringHandle text_handle;
    const char *text;
    size_t text_size;
    StableIValue scale, gqa;
    kg_call call;
} mod_call;

static int mod_take(StableIValue *stack, mod_call *m, kg_error *err) {
    StableIValue numbers[KG_MAX_SCALARS];
    size_t n = 0;
    uintptr_t address = (uintptr_t)stack[PROGRAM];
    for (int i = QUERY; i <= VALUE; i++)
        m->inputs[i] = kg_slot_tensor(stack[i]);
    m->ninputs = 3;
    memcpy(&m->text_handle, &address, sizeof(m->text_handle));
    m->scale = stack[SCALE];
    m->gqa = stack[GQA];
    m->call.device = 0; /* until the first tensor says */
    m->call.device_index = 0;
    m->call.nscalars = 0;
    int rc = kg_list_take(stack[CAPTURED], m->inputs + 3, KG_MAX_CAPTURED, &n, err);
    m->ninputs += rc == KG_OK ? n : 0;
    int rc2 =
        kg_list_numbers(stack[SCALARS], numbers, KG_MAX_SCALARS, &n, rc == KG_OK ? err : NULL);
    for (size_t i = 0; rc2 == KG_OK && i < n; i++)
        m->call.scalars[i] = kg_f64_slot(numbers[i]);
    size_t nscalars = rc2 == KG_OK ? n : 0;
    if (rc == KG_OK)
        rc = rc2;
    if (rc == KG_OK && (kg_th.torch_string_c_str(m->text_handle, &m->text) ||
                        kg_th.torch_string_length(m->text_handle, &m->text_size)))
        rc = kg_fail(err, KG_EINVAL, "attention_mod: the program could not be read");
    int rc3 = rc == KG_OK ? bind_qkv(stack, &m->call, err) : KG_OK;
    bind_options(&m->call, m->scale, m->gqa);
    m->call.nscalars = nscalars;
    /* What the contract does not have (rc3) is for the reference to serve or to refuse. */
    return rc != KG_OK ? rc : rc3;
}

static void mod_drop(mod_call *m, bool inputs) {
    for (size_t i = 0; inputs && i < m->ninputs; i++)
        kg_tensor_drop(m->inputs[i]);
    if (m->scale != 0)
        kg_slot_take(m->scale);
    kg_th.torch_delete_string(m->text_handle);
}

static int mod_captured(mod_call *m, kg_error *err) {
    kg_call *c = &m->call;
    int rc = KG_OK;
    c->ncaptured = m->ninputs - 3;
    for (size_t i = 0; rc == KG_OK && i < c->ncaptured; i++) {
        int32_t device, index;
        rc = kg_torch_view(m->inputs[3 + i], &c->captured[i], &device, &index, err);
        if (rc == KG_OK && (device != c->device || index != c->device_index))
            rc = kg_fail(err, KG_EINVAL,
                         "attention_mod: captured tensor %zu is on another device than query", i);
    }
    return rc;
}

static int mod_serve(mod_call *m, void *out[KG_MAX_OUTPUTS], kg_error *err) {
    kg_call *c = &m->call;
    int rc = mod_captured(m, err);
    if (rc == KG_OK && m->text_size > 0) {
        rc = kg_rt_program(m->text, m->text_size, &c->program, err);
        if (rc == KG_OK && kg_program_has(c->program, "EPILOGUE"))
            rc = kg_fail(err, KG_EINVAL, "attention_mod: the program is an epilogue");
        if (rc == KG_OK)
            rc = kg_program_check(c->program, c, err);
        c->args[PROGRAM].present = true;
    } else if (rc == KG_OK && (c->ncaptured > 0 || c->nscalars > 0)) {
        rc = kg_fail(err, KG_EINVAL,
                     "attention_mod: an empty program takes no captured tensors and "
                     "no scalars");
    }
    if (rc != KG_OK)
        return rc;
    return empty(c) ? KG_ENOTFOUND : kg_rt_run(attention_op, c, out, err);
}

/* with_lse: both outputs are wanted, and given. */
static int mod_body(StableIValue *stack, bool with_lse, kg_error *err) {
    mod_call m;
    void *out[KG_MAX_OUTPUTS];
    AtenTensorHandle results[2];
    int rc = mod_take(stack, &m, err);
    m.call.skip_outputs = with_lse ? 0 : 1U << LSE;
    bool readable = rc == KG_OK || rc == KG_EUNSUPPORTED || rc == KG_ENOTFOUND;
    if (rc == KG_OK)
        rc = mod_serve(&m, out, err);
    bool fall_back = readable && reference_serves(rc);
    if (fall_back) {
        rc = kg_shim_python(attention_op, &m.call, m.text, m.inputs, m.ninputs, results, 2, err);
        out[OUTPUT] = results[0];
        out[LSE] = results[1];
    }
    mod_drop(&m, !fall_back);
    if (rc != KG_OK)
        return rc;
    stack[0] = kg_tensor_slot(out[OUTPUT]);
    if (with_lse)
        stack[1] = kg_tensor_slot(out[LSE]);
    else if (fall_back)
        kg_tensor_drop(out[LSE]);
    return rc;
}

static void mod_backend(StableIValue *stack, uint64_t nin, uint64_t nout) {
    kg_error e;
    (void)nin;
    (void)nout;
    kg_shim_raise(mod_body(stack, true, &e), &e);
}

static void mod_output_backend(StableIValue *stack, uint64_t nin, uint64_t nout) {
    kg_error e;
    (void)nin;
    (void)nout;
    kg_shim_raise(mod_body(stack, false, &e), &e);
}

/* ---- registration ---- */

#define QKV "(Tensor query, Tensor key, Tensor value, "
#define SDPA_ARGS QKV "Tensor? attn_mask, bool is_causal, float? scale, bool enable_gqa) -> Tensor"
#define MOD_ARGS                                                                                   \
    QKV "Tensor[] captured, float[] scalars, str program, *, float? scale=None, bool "             \
        "enable_gqa=False) -> "

int kg_shim_attention(kg_error *err) {
    static const char *const schemas[] = {
        "attention" QKV "Tensor? attn_mask=None, float dropout_p=0.0, bool is_causal=False, *, "
        "float? scale=None, bool enable_gqa=False) -> Tensor",
        "_attention" SDPA_ARGS,
        "_attention_train" SDPA_ARGS,
        "attention_mod" MOD_ARGS "(Tensor, Tensor)",
        "attention_mod_output" MOD_ARGS "Tensor",
        "attention_mod_train" MOD_ARGS "(Tensor, Tensor)",
        /* Both backwards are implemented in Python: torch's own, differentiated again. An absent
         * gradient of a mask is an empty tensor. */
        "_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? "
        "attn_mask, "
        "bool is_causal, float? scale, bool enable_gqa, bool mask_grad) -> (Tensor, Tensor, "
        "Tensor, "
        "Tensor)",
        "_attention_mod_backward(Tensor grad, Tensor? grad_lse, Tensor query, Tensor key, Tensor "
        "value, Tensor[] captured, float[] scalars, str program, float? scale, bool enable_gqa, "
        "bool[] wanted) -> Tensor[]",
    };
    static const struct {
        const char *key, *name;
        kg_torch_boxed fn;
    } impls[] = {
        {"CompositeImplicitAutograd", "attention", attention_public},
        {"CPU", "_attention", attention_backend},
        {"CUDA", "_attention", attention_backend},
        {"CPU", "_attention_train", attention_backend},
        {"CUDA", "_attention_train", attention_backend},
        {"CPU", "attention_mod", mod_backend},
        {"CUDA", "attention_mod", mod_backend},
        {"CPU", "attention_mod_output", mod_output_backend},
        {"CUDA", "attention_mod_output", mod_output_backend},
        {"CPU", "attention_mod_train", mod_backend},
        {"CUDA", "attention_mod_train", mod_backend},
    };
    int rc = kg_rt_find_op("attention", &attention_op, err);
    for (size_t i = CAUSAL; rc == KG_OK && i < NPROGRAMS; i++)
        rc = kg_rt_program(texts[i], strlen(texts[i]), &programs[i], err);
    for (size_t i = 0; rc == KG_OK && i < sizeof(schemas) / sizeof(schemas[0]); i++)
        rc = kg_shim_define(schemas[i], err);
    for (size_t i = 0; rc == KG_OK && i < sizeof(impls) / sizeof(impls[0]); i++)
        rc = kg_shim_impl(impls[i].key, impls[i].name, impls[i].fn, err);
    return rc;
}
