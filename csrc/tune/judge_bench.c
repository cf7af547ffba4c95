/* One Candidate on one Case: buffers with guards and poison, a worker of its own, runs,
 * comparisons.
 *
 * Inputs stay in their buffers from one Candidate to the next (the worker cannot write them);
 * outputs have two sides at different addresses, so that a second run leaves the first one's
 * results to be compared with. */
#include <stdlib.h>
#include <string.h>

#include "tune/judge_internal.h"

/* As torch's allocator gives. */
enum { OUTPUT_ALIGN = 64, CPU_SECONDS = 600 };

static int64_t outputs_bytes(const kg_judged_case *jc) {
    int64_t total = 0;
    for (size_t i = 0; i < jc->noutputs; i++)
        if (!(jc->c->call.skip_outputs >> i & 1))
            total +=
                kg_tensor_numel(&jc->outputs[i]) * (int64_t)kg_dtype_size(jc->outputs[i].dtype);
    return total;
}

/* False when the Candidate asks for more memory than there is to give. */
static bool within_memory(kg_bench *b) {
    int64_t total = outputs_bytes(b->jc);
    for (size_t i = 0; i < b->inst->nworkspace; i++)
        if (__builtin_add_overflow(total, b->inst->workspace_bytes[i], &total))
            total = INT64_MAX;
    if (total <= b->j->options.memory)
        return true;
    kg_condemn(b, KG_VERDICT_OUT_OF_RESOURCES,
               "outputs and workspace take %lld MiB, more than the limit of %lld MiB",
               (long long)(total >> 20), (long long)(b->j->options.memory >> 20));
    return false;
}

static int lend(kg_bench *b, kg_slot *s, const char *name, const kg_tensor *shape, size_t bytes,
                size_t align, int *index, kg_error *err) {
    int rc = kg_slot_place(s, bytes, align, err);
    if (rc != KG_OK)
        return kg_fail_prefix(err, rc, "a buffer for %s", name);
    if (b->nslots == KG_W_MAX_BUFFERS)
        return kg_fail(err, KG_EOVERFLOW, "a call has more than %d buffers", KG_W_MAX_BUFFERS);
    *index = (int)b->nslots;
    b->slots[b->nslots] = s;
    b->names[b->nslots] = name;
    b->shapes[b->nslots++] = shape;
    return KG_OK;
}

static int lend_all(kg_bench *b, kg_error *err) {
    kg_judge *j = b->j;
    kg_judged_case *jc = b->jc;
    bool moved = j->resident_case != (size_t)(jc - j->cases);
    int rc = KG_OK;
    for (size_t i = 0; rc == KG_OK && i < jc->ninputs; i++) {
        const kg_input *in = &jc->inputs[i];
        b->input[i] = -1;
        if (in->present)
            rc = lend(b, &j->inputs[i], in->name, &in->shape, in->bytes, in->align, &b->input[i],
                      err);
    }
    if (moved)
        j->resident_case = j->resident_set = (size_t)-1;
    for (int side = 0; side < 2; side++)
        for (size_t i = 0; rc == KG_OK && i < jc->noutputs; i++) {
            const kg_tensor *t = &jc->outputs[i];
            b->output[side][i] = -1;
            if (!(jc->c->call.skip_outputs >> i & 1))
                rc = lend(b, &j->outputs[side][i], j->op->outputs[i].name, t,
                          (size_t)kg_tensor_numel(t) * kg_dtype_size(t->dtype), OUTPUT_ALIGN,
                          &b->output[side][i], err);
        }
    for (size_t i = 0; rc == KG_OK && i < b->inst->nworkspace; i++)
        rc = lend(b, &j->workspace[i], b->cand->plan->workspace[i].name, NULL,
                  (size_t)b->inst->workspace_bytes[i], OUTPUT_ALIGN, &b->workspace[i], err);
    return rc;
}

static int place_programs(kg_bench *b, kg_error *err) {
    kg_call call = b->jc->c->call;
    /* The addresses are another process's: like a device's, they are not to be looked behind. The
     * values were checked when the set was added. */
    call.device = KG_CUDA;
    for (size_t i = 0; i < b->jc->ninputs; i++)
        if (b->jc->inputs[i].captured >= 0)
            call.captured[b->jc->inputs[i].captured].data = (void *)(uintptr_t)b->at[b->input[i]];
    if (b->cand->plan->nholes == 0)
        return KG_OK;
    b->programs_bytes = kg_program_args_size(call.program);
    if (b->programs_bytes > sizeof b->programs)
        return kg_fail(err, KG_EOVERFLOW, "the Program's arguments take %zu bytes",
                       b->programs_bytes);
    return kg_program_args(call.program, &call, b->programs, b->programs_bytes, err);
}

/* A limit that was asked for is kept; the default gives a slow reference's Candidates their time.
 */
static void settle_limits(kg_bench *b) {
    double slow = 20 * b->jc->slowest_baseline_ns;
    b->slow_ns = slow > 1e9 ? slow : 1e9;
    b->limit_ms = b->j->options.timeout_ms;
    if (b->limit_ms == 0) {
        int64_t enough = (int64_t)(1.25 * b->slow_ns / 1e6);
        b->limit_ms = enough > 10000 ? enough : 10000;
    }
}

int kg_bench_open(kg_bench *b, const kg_buf *image, bool *ok, kg_error *err) {
    *ok = within_memory(b);
    if (!*ok)
        return KG_OK;
    settle_limits(b);
    const kg_judge_options *o = &b->j->options;
    kg_worker_options wo = {.path = o->worker,
                            .threads = o->threads,
                            .stack = KG_STACK + KG_STACK_OURS,
                            .cpu_s = CPU_SECONDS + b->limit_ms / 1000 * (int64_t)o->threads};
    int rc = lend_all(b, err);
    if (rc == KG_OK)
        rc = kg_worker_open(&wo, &b->worker, err);
    if (rc == KG_OK)
        rc = kg_worker_map(b->worker, (const kg_slot *const *)b->slots, b->nslots, b->at, err);
    if (rc == KG_OK)
        rc = place_programs(b, err);
    if (rc != KG_OK)
        return rc;
    kg_error why = {0};
    rc = kg_worker_load(b->worker, image->data, image->len, b->cand->plan->nlaunches, &why);
    if (rc == KG_EIO || rc == KG_EFORMAT) {
        kg_condemn(b, KG_VERDICT_LAUNCH_ERROR, "the image does not load: %s", why.msg);
        *ok = false;
        return KG_OK;
    }
    return rc == KG_OK ? KG_OK : kg_fail(err, rc, "%s", why.msg);
}

void kg_bench_close(kg_bench *b) {
    kg_worker_close(b->worker);
    b->worker = NULL;
}

void kg_bench_inputs(kg_bench *b, size_t set) {
    kg_judge *j = b->j;
    size_t index = (size_t)(b->jc - j->cases);
    b->set = set;
    if (j->resident_case == index && j->resident_set == set)
        return;
    for (size_t i = 0; i < b->jc->ninputs; i++)
        if (b->input[i] >= 0 && b->jc->inputs[i].bytes > 0)
            kg_copy_parallel(kg_slot_data(&j->inputs[i]), b->jc->sets[set].inputs[i],
                             b->jc->inputs[i].bytes, j->threads);
    j->resident_case = index;
    j->resident_set = set;
}

static void poison(kg_bench *b, int side) {
    for (size_t i = 0; i < b->jc->noutputs; i++) {
        const kg_tensor *t = &b->jc->outputs[i];
        if (b->output[side][i] < 0)
            continue;
        b->poison[side][i] = kg_poison(t->dtype, kg_random());
        kg_fill_parallel(kg_slot_data(&b->j->outputs[side][i]), t->dtype,
                         (size_t)kg_tensor_numel(t), b->poison[side][i], b->j->threads);
    }
    for (size_t i = 0; i < b->inst->nworkspace; i++) {
        int dtype = b->cand->plan->workspace[i].dtype;
        kg_fill_parallel(kg_slot_data(&b->j->workspace[i]), dtype,
                         (size_t)b->inst->workspace_bytes[i] / kg_dtype_size(dtype),
                         kg_poison(dtype, kg_random()), b->j->threads);
    }
}

static kg_run_arg run_arg(const kg_bench *b, const kg_launch_arg *a, int side) {
    int buffer = -1;
    switch (a->kind) {
    case KG_PA_TENSOR:
        for (size_t i = 0; i < b->jc->ninputs; i++)
            if (b->jc->inputs[i].arg == a->index)
                buffer = b->input[i];
        break;
    case KG_PA_OUTPUT:
        buffer = b->output[side][a->index];
        break;
    case KG_PA_WORKSPACE:
        buffer = b->workspace[a->index];
        break;
    case KG_PA_PROGRAMS:
        return (kg_run_arg){.kind = KG_WA_PROGRAMS};
    case KG_PA_SCALAR:
        if (a->dtype == KG_F32)
            return (kg_run_arg){.kind = KG_WA_F32, .f = (double)a->u.f32};
        if (a->dtype == KG_F64)
            return (kg_run_arg){.kind = KG_WA_F64, .f = a->u.f64};
        if (a->dtype == KG_I64)
            return (kg_run_arg){.kind = KG_WA_I64, .i = a->u.i64};
        return (kg_run_arg){.kind = KG_WA_I32, .i = a->u.i32};
    case KG_PA_MAP:
        break;
    }
    if (buffer < 0)
        return (kg_run_arg){.kind = KG_WA_NULL};
    return (kg_run_arg){.kind = KG_WA_BUFFER, .buffer = (uint32_t)buffer};
}

static void fill_run(const kg_bench *b, int side, kg_run *run) {
    for (size_t i = 0; i < b->jc->noutputs; i++)
        if ((b->cand->plan->zero_outputs >> i & 1) && b->output[side][i] >= 0)
            run->clear[run->nclear++] = (uint32_t)b->output[side][i];
    for (size_t i = 0; i < b->inst->nworkspace; i++)
        if (b->cand->plan->workspace[i].zero)
            run->clear[run->nclear++] = (uint32_t)b->workspace[i];
    run->programs = b->programs;
    run->programs_bytes = b->programs_bytes;
    run->nlaunches = b->inst->nlaunches;
    for (size_t i = 0; i < b->inst->nlaunches; i++) {
        const kg_launch *l = &b->inst->launches[i];
        kg_run_launch *to = &run->launches[i];
        to->entry = (uint32_t)l->plan_launch;
        to->range = l->range;
        to->grain = l->grain;
        to->nargs = l->nargs;
        for (size_t k = 0; k < l->nargs; k++)
            to->args[k] = run_arg(b, &l->args[k], side);
    }
}

/* Inputs are sealed against the worker, so their guards stay whole by themselves. */
static bool guards_whole(kg_bench *b) {
    for (size_t i = 0; i < b->nslots; i++) {
        int64_t where = 0;
        const kg_slot *s = b->slots[i];
        if (!s->writable || kg_slot_guards_whole(s, &where))
            continue;
        if (where < 0)
            kg_condemn(b, KG_VERDICT_OUT_OF_BOUNDS, "wrote '%s' %lld bytes before its begin",
                       b->names[i], (long long)-where);
        else
            kg_condemn(b, KG_VERDICT_OUT_OF_BOUNDS,
                       "wrote '%s' %lld bytes behind its end (it has %zu bytes)", b->names[i],
                       (long long)(where - (int64_t)s->bytes), s->bytes);
        return false;
    }
    return true;
}

int kg_bench_run(kg_bench *b, int side, uint32_t split, uint32_t warm, uint64_t *ns, bool *ok,
                 kg_error *err) {
    kg_run run = {.split = split, .warm = warm, .timed = 1};
    *ok = false;
    poison(b, side);
    fill_run(b, side, &run);
    int rc = kg_worker_run(b->worker, &run, b->limit_ms * (warm + 1), ns, err);
    if (rc == KG_ECHILD) {
        kg_condemn_death(b);
        return KG_OK;
    }
    if (rc != KG_OK)
        return rc;
    if (!guards_whole(b))
        return KG_OK;
    if ((double)*ns > b->slow_ns) {
        kg_condemn(b, KG_VERDICT_TOO_SLOW, "a call took %.2f s; the limit is %.2f s",
                   (double)*ns / 1e9, b->slow_ns / 1e9);
        return KG_OK;
    }
    *ok = true;
    return KG_OK;
}

static void keep_errors(kg_case_report *cr, const kg_comparison *c, kg_errors torch_errors) {
    cr->norm_err = c->norm_err > cr->norm_err ? c->norm_err : cr->norm_err;
    cr->max_err = c->max_err > cr->max_err ? c->max_err : cr->max_err;
    if (torch_errors.norm > cr->torch_norm_err)
        cr->torch_norm_err = torch_errors.norm;
    if (torch_errors.max > cr->torch_max_err)
        cr->torch_max_err = torch_errors.max;
    cr->allclose = cr->allclose && c->not_close == 0;
}

int kg_bench_compare(kg_bench *b, int side, bool *ok, kg_error *err) {
    const kg_set *set = &b->jc->sets[b->set];
    *ok = false;
    for (size_t i = 0; i < b->jc->noutputs; i++) {
        const kg_tensor *t = &b->jc->outputs[i];
        if (b->output[side][i] < 0)
            continue;
        kg_comparison c;
        int rc = kg_compare(t->dtype, kg_slot_data(&b->j->outputs[side][i]), set->oracles[i],
                            (size_t)kg_tensor_numel(t), b->poison[side][i], b->j->threads, &c, err);
        if (rc != KG_OK)
            return rc;
        kg_tolerance tol = kg_tolerance_of(t->dtype, b->jc->c->call.precision, b->jc->reduction,
                                           set->torch_errors[i], c.scale);
        keep_errors(b->cr, &c, set->torch_errors[i]);
        /* A wrong integer may look like the poison by chance; an unwritten one always does. */
        if (c.unwritten && c.unwritten >= c.unequal)
            kg_condemn_values(b, KG_VERDICT_NOT_ALL_WRITTEN, i, side, &c, tol,
                              "not every element is written");
        else if (c.nonfinite)
            kg_condemn_values(b, KG_VERDICT_NONFINITE, i, side, &c, tol,
                              "NaN or Inf where the oracle is finite");
        else if (c.misplaced)
            kg_condemn_values(b, KG_VERDICT_WRONG_VALUES, i, side, &c, tol,
                              "the oracle is NaN or Inf where the output is not the same");
        else if (c.unequal || !(c.norm_err <= tol.norm) || !(c.max_err <= tol.max))
            kg_condemn_values(b, KG_VERDICT_WRONG_VALUES, i, side, &c, tol, "wrong values");
        else
            continue;
        return KG_OK;
    }
    *ok = true;
    return KG_OK;
}

int kg_bench_same(kg_bench *b, bool *ok, kg_error *err) {
    (void)err;
    *ok = true;
    for (size_t i = 0; *ok && i < b->jc->noutputs; i++) {
        const kg_tensor *t = &b->jc->outputs[i];
        size_t size = kg_dtype_size(t->dtype);
        if (b->output[0][i] < 0)
            continue;
        const char *one = kg_slot_data(&b->j->outputs[0][i]);
        const char *two = kg_slot_data(&b->j->outputs[1][i]);
        int64_t at = kg_differ_parallel(one, two, (size_t)kg_tensor_numel(t) * size, b->j->threads);
        if (at < 0)
            continue;
        char x[40], y[40];
        kg_element_text(t->dtype, one, (size_t)at / size, x);
        kg_element_text(t->dtype, two, (size_t)at / size, y);
        kg_condemn(
            b, KG_VERDICT_NONDETERMINISTIC,
            "output '%s': two runs on the same inputs differ, first at flat element %lld: %s and "
            "%s; the second cut the range into other chunks, in another order",
            b->j->op->outputs[i].name, (long long)(at / (int64_t)size), x, y);
        *ok = false;
    }
    return KG_OK;
}
