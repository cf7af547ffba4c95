/* Answers for people: what served a call and why not something else, what the registries hold, what
 * a contract says. Slow on purpose: it looks everything up again rather than burden the calls that
 * nobody asks about. */
#include <stdlib.h>
#include <string.h>

#include "runtime/jsontext.h"
#include "runtime/process.h"

/* Of this thread, from begin to end. */
static _Thread_local kg_buf *answer;

bool kg_rt_explaining(void) {
    return answer != NULL;
}

void kg_rt_explain_begin(void) {
    if (answer == NULL)
        answer = malloc(sizeof(*answer));
    if (answer != NULL)
        kg_buf_init(answer, 0);
    if (answer != NULL)
        kg_buf_putc(answer, '[');
}

int kg_rt_explain_end(kg_buf *out, kg_error *err) {
    kg_buf *a = answer;
    answer = NULL;
    if (a == NULL)
        return kg_fail(err, KG_EINVAL, "nothing was being explained");
    kg_buf_putc(a, ']');
    int rc = kg_buf_check(a, "an explanation", err);
    if (rc == KG_OK)
        kg_buf_add(out, a->data, a->len);
    kg_buf_free(a);
    free(a);
    return rc;
}

static void put_field(kg_buf *out, const char *key, const char *text) {
    kg_jt_key(out, key);
    kg_jt_text(out, text);
}

static void put_kernel(kg_buf *out, const kg_call *call, const kg_class *c) {
    char name[128], why[256] = "";
    kg_kernel_name(c->block, c->kernel, name);
    put_field(out, "kernel", name);
    put_field(out, "id", c->kernel->id);
    put_field(out, "arch", c->kernel->arch);
    put_field(out, "registry", c->reg->path);
    bool verified = kg_kernel_verified(&kg_proc_state.here, call, c->kernel, why);
    kg_jt_key(out, "verified");
    kg_buf_puts(out, verified ? "true" : "false");
    put_field(out, "unverified", verified ? NULL : why);
}

static void put_miss(kg_buf *out, const kg_rt_op *op, const kg_call *call, const kg_buf *notes) {
    char kernel[128], differs[256];
    bool has = kg_lookup_nearest(kg_snapshot_current(), op, call, kernel, differs);
    put_field(out, "kernel", NULL);
    put_field(out, "nearest", kernel[0] != '\0' ? kernel : NULL);
    put_field(out, "differs", differs[0] != '\0' ? differs : NULL);
    put_field(out, "reason",
              !has                 ? "no registry has a Kernel of this Op"
              : differs[0] != '\0' ? "no Kernel's key fits this call"
              : notes->len > 0     ? "a Kernel fits and could not be used"
                                   : "no Kernel is pinned");
}

void kg_explain_call(const kg_rt_op *op, const kg_call *call, int threads, const kg_class *c,
                     int rc) {
    kg_buf notes;
    kg_class *again = NULL;
    kg_buf_init(&notes, 1 << 20);
    bool served = rc == KG_OK && c != NULL;
    if (!served || !kg_launch_hooked()) { /* a locked process reads no source again */
        kg_writers_lock();
        kg_lookup(kg_snapshot_current(), &kg_proc_state.here, op, call, threads,
                  call->device == KG_CUDA, "", 0, 0, &notes, &again, NULL);
        kg_writers_unlock();
    }
    kg_jt_comma(answer);
    kg_buf_putc(answer, '{');
    put_field(answer, "op", op->name);
    put_field(answer, "kind", kg_served_name(served ? c->kind : KG_SERVED_FALLBACK));
    put_field(answer, "policy", kg_rt_policy());
    if (served)
        put_kernel(answer, call, c);
    else
        put_miss(answer, op, call, &notes);
    put_field(answer, "notes", notes.len > 0 ? notes.data : "");
    kg_buf_putc(answer, '}');
    kg_class_free(again);
    kg_buf_free(&notes);
}

int kg_explain_disabled(const kg_rt_op *op, kg_error *err) {
    kg_jt_comma(answer);
    kg_buf_putc(answer, '{');
    put_field(answer, "op", op->name);
    put_field(answer, "kind", "fallback");
    put_field(answer, "kernel", NULL);
    put_field(answer, "reason", "KGEN_DISABLE is set");
    kg_buf_putc(answer, '}');
    return kg_fail(err, KG_ENOTFOUND, "KGEN_DISABLE is set");
}

/* ---- what the registries hold ---- */

static void put_dims(kg_buf *out, const kg_op *op, const kg_key *key) {
    size_t at = 0;
    kg_jt_key(out, "dims");
    kg_buf_putc(out, '{');
    for (size_t d = 0; d < op->ndims && at < key->ndims; d++) {
        if (!op->dims[d].key)
            continue;
        kg_jt_key(out, op->dims[d].name);
        if (key->min[at] == key->max[at])
            kg_buf_printf(out, "%lld", (long long)key->min[at]);
        else
            kg_buf_printf(out, "[%lld,%lld]", (long long)key->min[at], (long long)key->max[at]);
        at++;
    }
    kg_buf_putc(out, '}');
}

static void put_pin(kg_buf *out, const kg_op *op, const kg_key *key) {
    char hash[33];
    kg_jt_comma(out);
    kg_buf_putc(out, '{');
    put_field(out, "kind", kg_key_exact(key) ? "exact" : "dynamic");
    kg_jt_key(out, "dtypes");
    kg_buf_putc(out, '[');
    for (size_t i = 0; i < key->ntensors; i++) {
        kg_jt_comma(out);
        kg_jt_text(out, kg_dtype_name(key->dtype[i]));
    }
    kg_buf_putc(out, ']');
    kg_hash128_hex(key->program_hash, hash);
    put_field(out, "program",
              key->program == KG_PROGRAM_NONE  ? NULL
              : key->program == KG_PROGRAM_ANY ? "*"
                                               : hash);
    put_dims(out, op, key);
    kg_buf_putc(out, '}');
}

static void put_block(kg_buf *out, const kg_index_op *block) {
    char name[128];
    kg_jt_key(out, "kernels");
    kg_buf_putc(out, '[');
    for (size_t k = 0; k < block->nkernels; k++) {
        kg_kernel_name(block, &block->kernels[k], name);
        kg_jt_comma(out);
        kg_buf_putc(out, '{');
        put_field(out, "name", name);
        put_field(out, "id", block->kernels[k].id);
        put_field(out, "arch", block->kernels[k].arch);
        kg_jt_key(out, "pins");
        kg_buf_putc(out, '[');
        for (size_t p = 0; p < block->npins; p++)
            if (block->pins[p].kernel == k)
                put_pin(out, block->op, &block->pins[p].key);
        kg_buf_puts(out, "]}");
    }
    kg_buf_putc(out, ']');
}

static void put_registry(kg_buf *out, const kg_reg *reg) {
    kg_error e;
    kg_jt_comma(out);
    kg_buf_putc(out, '{');
    put_field(out, "path", reg->path);
    kg_jt_key(out, "ops");
    kg_buf_putc(out, '[');
    for (size_t i = 0; i < kg_index_count(reg->index); i++) {
        const kg_index_op *block;
        kg_jt_comma(out);
        kg_buf_putc(out, '{');
        put_field(out, "name", kg_index_name(reg->index, i));
        put_field(out, "schema", kg_index_schema(reg->index, i));
        if (kg_index_get(reg->index, i, &block, &e) == KG_OK)
            put_block(out, block);
        else
            put_field(out, "error", e.msg);
        kg_buf_putc(out, '}');
    }
    kg_buf_puts(out, "]}");
}

int kg_rt_describe(kg_buf *out, kg_error *err) {
    kg_reader_slot *me = kg_reader_enter();
    if (me == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for a thread's slot");
    const kg_snapshot *s = kg_snapshot_current();
    kg_buf_putc(out, '[');
    for (size_t i = 0; s != NULL && i < s->nregs; i++)
        put_registry(out, s->regs[i]);
    kg_buf_putc(out, ']');
    kg_reader_leave(me);
    return kg_buf_check(out, "the list of registries", err);
}

/* ---- a contract ---- */

static const char *const type_names[] = {
    [KG_ARG_TENSOR] = "Tensor",
    [KG_ARG_TENSOR_OPT] = "Tensor?",
    [KG_ARG_TENSOR_LIST] = "Tensor[]",
    [KG_ARG_INT] = "int",
    [KG_ARG_INT_OPT] = "int?",
    [KG_ARG_FLOAT] = "float",
    [KG_ARG_FLOAT_OPT] = "float?",
    [KG_ARG_BOOL] = "bool",
    [KG_ARG_STR] = "str",
    [KG_ARG_INT_LIST] = "int[]",
    [KG_ARG_FLOAT_LIST] = "float[]",
};

static void put_shape(kg_buf *out, bool shaped, size_t rank, kg_expr *const *shape) {
    kg_jt_key(out, "shape");
    if (!shaped) {
        kg_buf_puts(out, "null");
        return;
    }
    kg_buf_putc(out, '[');
    for (size_t d = 0; d < rank; d++) {
        kg_jt_comma(out);
        kg_jt_text(out, kg_expr_text(shape[d]));
    }
    kg_buf_putc(out, ']');
}

static const char *arg_name(const kg_op *op, int i) {
    return i >= 0 && (size_t)i < op->nargs ? op->args[i].name : NULL;
}

static void put_contract(kg_buf *out, const kg_op *op) {
    kg_jt_key(out, "args");
    kg_buf_putc(out, '[');
    for (size_t i = 0; i < op->nargs; i++) {
        kg_jt_comma(out);
        kg_buf_putc(out, '{');
        put_field(out, "name", op->args[i].name);
        put_field(out, "type", type_names[op->args[i].type]);
        put_field(out, "dtype_as", arg_name(op, op->args[i].same_dtype_as));
        put_shape(out, op->args[i].shaped, op->args[i].rank, op->args[i].shape);
        kg_buf_putc(out, '}');
    }
    kg_buf_putc(out, ']');
    kg_jt_key(out, "dims");
    kg_buf_putc(out, '[');
    for (size_t i = 0; i < op->ndims; i++) {
        kg_jt_comma(out);
        kg_buf_putc(out, '{');
        put_field(out, "name", op->dims[i].name);
        put_field(out, "expr", op->dims[i].expr != NULL ? kg_expr_text(op->dims[i].expr) : NULL);
        kg_buf_putc(out, '}');
    }
    kg_buf_putc(out, ']');
    kg_jt_key(out, "outputs");
    kg_buf_putc(out, '[');
    for (size_t i = 0; i < op->noutputs; i++) {
        const kg_op_output *o = &op->outputs[i];
        kg_jt_comma(out);
        kg_buf_putc(out, '{');
        put_field(out, "name", o->name);
        put_field(out, "dtype", o->dtype >= 0 ? kg_dtype_name(o->dtype) : NULL);
        put_field(out, "dtype_as", o->dtype < 0 ? arg_name(op, o->dtype_of) : NULL);
        put_field(out, "like", arg_name(op, o->like));
        put_shape(out, o->like < 0, o->rank, o->shape);
        kg_buf_putc(out, '}');
    }
    kg_buf_putc(out, ']');
}

static int contract_in(const kg_reg *reg, const char *name, kg_buf *out, kg_error *err) {
    const kg_index_op *block;
    int at = kg_index_find(reg->index, name);
    if (at < 0)
        return KG_ENOTFOUND;
    int rc = kg_index_get(reg->index, (size_t)at, &block, err);
    if (rc != KG_OK)
        return rc;
    kg_buf_putc(out, '{');
    put_field(out, "name", block->op->name);
    put_field(out, "schema", block->op->schema);
    put_field(out, "registry", reg->path);
    put_field(out, "task", block->task);
    put_contract(out, block->op);
    kg_buf_putc(out, '}');
    return kg_buf_check(out, "a contract", err);
}

int kg_rt_contract(const char *name, kg_buf *out, kg_error *err) {
    int rc = KG_ENOTFOUND;
    kg_reader_slot *me = kg_reader_enter();
    if (me == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for a thread's slot");
    const kg_snapshot *s = kg_snapshot_current();
    for (size_t i = 0; s != NULL && rc == KG_ENOTFOUND && i < s->nregs; i++)
        rc = contract_in(s->regs[i], name, out, err);
    kg_reader_leave(me);
    return rc == KG_ENOTFOUND ? kg_fail(err, rc, "no open registry has the Op %s", name) : rc;
}
