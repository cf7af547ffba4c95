/* One Candidate on one Case: buffers with guards and poison, a worker of its own, runs,
 * comparisons.
 *
 * Inputs stay in their buffers from one Candidate to the next (the worker cannot write them);
 * outputs have two sides at different addresses, so that a second run leaves the first one's
 * results to be compared with. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tune/judge_internal.h"
#include "tune/rounding.h"

/* False when the Candidate asks for more memory than there is to give. */
static bool within_memory(kg_bench *b) {
    int64_t total = b->jc->output_bytes;
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
    int rc = b->j->device->place(b->j, s, bytes, align, err);
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
    size_t align = j->device->output_align;
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
                          (size_t)kg_tensor_numel(t) * kg_dtype_size(t->dtype), align,
                          &b->output[side][i], err);
        }
    return rc;
}

/* What a Candidate asks for beyond that and the device has not is its own fault. */
static int lend_workspace(kg_bench *b, bool *ok, kg_error *err) {
    int rc = KG_OK;
    kg_error why = {0};
    for (size_t i = 0; rc == KG_OK && i < b->inst->nworkspace; i++)
        rc = lend(b, &b->j->workspace[i], b->cand->plan->workspace[i].name, NULL,
                  (size_t)b->inst->workspace_bytes[i], b->j->device->output_align, &b->workspace[i],
                  &why);
    *ok = rc == KG_OK;
    if (rc != KG_ENOMEM)
        return rc == KG_OK ? KG_OK : kg_fail(err, rc, "%s", why.msg);
    kg_condemn(b, KG_VERDICT_OUT_OF_RESOURCES, "%s", why.msg);
    return KG_OK;
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
    int rc = lend_all(b, err);
    if (rc == KG_OK)
        rc = lend_workspace(b, ok, err);
    if (rc != KG_OK || !*ok)
        return rc;
    rc = b->j->device->worker(b, &b->worker, err);
    if (rc == KG_OK)
        rc = kg_worker_map(b->worker, (const kg_slot *const *)b->slots, b->nslots, b->at, err);
    if (rc == KG_OK)
        rc = place_programs(b, err);
    return rc == KG_OK ? b->j->device->load(b, image, ok, err) : rc;
}

void kg_bench_close(kg_bench *b, bool well) {
    if (well && b->worker && b->j->device->keep)
        b->j->device->keep(b->j, b->worker);
    else
        kg_worker_close(b->worker);
    b->worker = NULL;
}

static int load_input(kg_bench *b, size_t i, kg_error *err) {
    kg_judge *j = b->j;
    const kg_input *in = &b->jc->inputs[i];
    const void *from = b->jc->sets[b->set].inputs[i];
    if (b->input[i] < 0 || in->bytes == 0)
        return KG_OK;
    int rc = j->device->copy(j, kg_slot_data(&j->inputs[i]), from, in->bytes, err);
    if (rc == KG_OK && j->device->hash)
        rc = j->device->hash(j, kg_slot_data(&j->inputs[i]), in->bytes, &j->resident_hash[i], err);
    return rc;
}

int kg_bench_inputs(kg_bench *b, size_t set, kg_error *err) {
    kg_judge *j = b->j;
    size_t index = (size_t)(b->jc - j->cases);
    b->set = set;
    if (j->resident_case == index && j->resident_set == set)
        return KG_OK;
    j->resident_case = (size_t)-1;
    for (size_t i = 0; i < b->jc->ninputs; i++) {
        int rc = load_input(b, i, err);
        if (rc != KG_OK)
            return rc;
    }
    j->resident_case = index;
    j->resident_set = set;
    return KG_OK;
}

/* What a worker could have written is held against what was there; after a change the inputs are
 * loaded again. */
static int inputs_whole(kg_bench *b, bool *whole, kg_error *err) {
    kg_judge *j = b->j;
    *whole = true;
    for (size_t i = 0; *whole && j->device->hash && i < b->jc->ninputs; i++) {
        const kg_input *in = &b->jc->inputs[i];
        kg_hash128 now;
        if (b->input[i] < 0 || in->bytes == 0)
            continue;
        int rc = j->device->hash(j, kg_slot_data(&j->inputs[i]), in->bytes, &now, err);
        if (rc != KG_OK)
            return rc;
        if (now.lo == j->resident_hash[i].lo && now.hi == j->resident_hash[i].hi)
            continue;
        *whole = false;
        j->resident_case = (size_t)-1;
        kg_condemn(b, KG_VERDICT_INPUT_MODIFIED, "changed input '%s'; inputs must not be written",
                   in->name);
    }
    return KG_OK;
}

/* Outputs keep another set's results when that is asked for: a Candidate that knows poison when it
 * sees it, and is honest then, has to be honest here, too. */
static int poison(kg_bench *b, int side, const kg_mode *mode, kg_error *err) {
    kg_judge *j = b->j;
    int rc = KG_OK;
    bool keep = mode->stale && b->left[side] != 0 && b->left[side] != b->set + 1;
    b->left[side] = 0;
    for (size_t i = 0; rc == KG_OK && !keep && i < b->jc->noutputs; i++) {
        const kg_tensor *t = &b->jc->outputs[i];
        if (b->output[side][i] < 0)
            continue;
        b->poison[side][i] = kg_poison(t->dtype, kg_random());
        rc = j->device->fill(j, kg_slot_data(&j->outputs[side][i]), t->dtype,
                             (size_t)kg_tensor_numel(t), b->poison[side][i], err);
    }
    for (size_t i = 0; rc == KG_OK && !mode->keep && i < b->inst->nworkspace; i++) {
        int dtype = b->cand->plan->workspace[i].dtype;
        rc = j->device->fill(j, kg_slot_data(&j->workspace[i]), dtype,
                             (size_t)b->inst->workspace_bytes[i] / kg_dtype_size(dtype),
                             kg_poison(dtype, kg_random()), err);
    }
    return rc;
}

static int input_buffer(const kg_bench *b, int arg) {
    for (size_t i = 0; i < b->jc->ninputs; i++)
        if (b->jc->inputs[i].arg == arg)
            return b->input[b->jc->sets[b->set].owner[i]];
    return -1;
}

static kg_run_arg run_arg(const kg_bench *b, const kg_launch_arg *a, int side) {
    int buffer = -1;
    switch (a->kind) {
    case KG_PA_TENSOR:
        buffer = input_buffer(b, a->index);
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
        return (kg_run_arg){.kind = KG_WA_MAP, .buffer = (uint32_t)a->index};
    }
    if (buffer < 0)
        return (kg_run_arg){.kind = KG_WA_NULL};
    return (kg_run_arg){.kind = KG_WA_BUFFER, .buffer = (uint32_t)buffer};
}

static void fill_launch(const kg_bench *b, const kg_launch *l, int side, kg_run_launch *to) {
    const kg_plan_launch *pl = &b->cand->plan->launches[l->plan_launch];
    to->entry = (uint32_t)l->plan_launch;
    to->range = l->range;
    to->grain = l->grain;
    to->shared = l->shared;
    memcpy(to->grid, l->grid, sizeof to->grid);
    memcpy(to->block, l->block, sizeof to->block);
    memcpy(to->cluster, l->cluster, sizeof to->cluster);
    to->cooperative = pl->cooperative;
    to->pdl = pl->pdl;
    to->nargs = l->nargs;
    for (size_t k = 0; k < l->nargs; k++)
        to->args[k] = run_arg(b, &l->args[k], side);
}

/* A map of a tensor that is absent has no buffer to look at; the worker refuses it by name. */
static void fill_maps(const kg_bench *b, int side, kg_run *run) {
    run->nmaps = b->inst->nmaps;
    for (size_t i = 0; i < b->inst->nmaps; i++) {
        const kg_map *m = &b->inst->maps[i];
        run->maps[i] = *m;
        run->map_buffer[i] = (uint32_t)(m->tensor_is_output ? b->output[side][m->tensor]
                                                            : input_buffer(b, m->tensor));
    }
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
    fill_maps(b, side, run);
    run->nlaunches = b->inst->nlaunches;
    for (size_t i = 0; i < b->inst->nlaunches; i++)
        fill_launch(b, &b->inst->launches[i], side, &run->launches[i]);
}

static int guards_whole(kg_bench *b, bool *whole, kg_error *err) {
    kg_broken g = {0};
    int rc = b->j->device->guards(b->j, (const kg_slot *const *)b->slots, b->nslots, &g, err);
    *whole = !g.broken;
    if (rc != KG_OK || !g.broken)
        return rc;
    size_t bytes = b->slots[g.slot]->bytes;
    if (g.where < 0)
        kg_condemn(b, KG_VERDICT_OUT_OF_BOUNDS, "wrote '%s' %lld bytes before its begin",
                   b->names[g.slot], (long long)-g.where);
    else
        kg_condemn(b, KG_VERDICT_OUT_OF_BOUNDS,
                   "wrote '%s' %lld bytes behind its end (it has %zu bytes)", b->names[g.slot],
                   (long long)(g.where - (int64_t)bytes), bytes);
    return KG_OK;
}

/* The run came back; *ok: nothing was touched that must not be, and it was in time. */
static int look_after(kg_bench *b, const kg_call_time *time, bool *ok, kg_error *err) {
    int rc = guards_whole(b, ok, err);
    if (rc == KG_OK && *ok)
        rc = inputs_whole(b, ok, err);
    if (rc == KG_OK && *ok && (double)time->ns > b->slow_ns) {
        kg_condemn(b, KG_VERDICT_TOO_SLOW, "a call took %.2f s; the limit is %.2f s",
                   (double)time->ns / 1e9, b->slow_ns / 1e9);
        *ok = false;
    }
    return rc;
}

int kg_bench_run(kg_bench *b, int side, const kg_mode *mode, kg_call_time *time, bool *ok,
                 kg_error *err) {
    *ok = false;
    kg_run *run = calloc(1, sizeof *run);
    if (!run)
        return kg_fail(err, KG_ENOMEM, "a run: out of memory");
    run->split = mode->split;
    run->warm = mode->warm;
    run->timed = 1;
    run->cold = mode->cold;
    run->graph = mode->graph;
    run->stale = mode->stale;
    run->keep = mode->keep;
    int rc = poison(b, side, mode, err);
    if (rc == KG_OK) {
        fill_run(b, side, run);
        rc = kg_worker_run(b->worker, run, b->limit_ms * (mode->warm + 1), time, err);
    }
    free(run);
    if (rc == KG_ECHILD)
        return b->j->device->died(b, err);
    b->left[side] = rc == KG_OK ? b->set + 1 : 0;
    /* Somebody else may have had the machine. */
    bool again = rc == KG_OK && (double)time->ns > b->slow_ns && !b->slow_once;
    b->slow_once = again;
    if (again)
        return kg_bench_run(b, side, mode, time, ok, err);
    return rc == KG_OK ? look_after(b, time, ok, err) : rc;
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

/* n bytes at `from`, wherever they lie, in `to`. */
static int fetch(const kg_judge *j, const char *from, size_t n, char *to, kg_error *err) {
    const void *at;
    int rc = j->device->view(j, from, n, to, &at, err);
    if (rc == KG_OK && at != to)
        memcpy(to, at, n);
    return rc;
}

/* Of a part of the elements: all that the host looks at, where they lie on a device. */
static int sampled_bias(kg_bench *b, int side, size_t output, double *bias, kg_error *err) {
    enum { PIECES = 16, PIECE = 4096 };
    const kg_tensor *t = &b->jc->outputs[output];
    const char *out = kg_slot_data(&b->j->outputs[side][output]);
    const char *oracle = b->jc->sets[b->set].oracles[output];
    size_t n = (size_t)kg_tensor_numel(t), size = kg_dtype_size(t->dtype);
    bool whole = n <= (size_t)PIECES * PIECE;
    size_t pieces = whole ? 1 : PIECES, piece = whole ? n : PIECE;
    char *wide = malloc(pieces * piece * (sizeof(double) + size) + 1);
    if (!wide)
        return kg_fail(err, KG_ENOMEM, "a sample of %zu elements: out of memory", pieces * piece);
    char *narrow = wide + pieces * piece * sizeof(double);
    int rc = KG_OK;
    for (size_t i = 0; rc == KG_OK && i < pieces; i++) {
        size_t at = whole ? 0 : (n - piece) / (pieces - 1) * i;
        rc = fetch(b->j, out + at * size, piece * size, narrow + i * piece * size, err);
        if (rc == KG_OK)
            rc = fetch(b->j, oracle + at * sizeof(double), piece * sizeof(double),
                       wide + i * piece * sizeof(double), err);
    }
    if (rc == KG_OK)
        *bias = kg_rounding_bias(t->dtype, narrow, wide, pieces * piece);
    free(wide);
    return rc;
}

/* Whether the values were cut off where they should have been rounded; then that is the verdict. */
static int cut_off(kg_bench *b, int side, size_t output, bool *cut, kg_error *err) {
    const kg_tensor *t = &b->jc->outputs[output];
    double bias = 0;
    int rc = KG_OK;
    if (b->j->device->target == KG_CPU)
        bias = kg_rounding_bias(t->dtype, kg_slot_data(&b->j->outputs[side][output]),
                                b->jc->sets[b->set].oracles[output], (size_t)kg_tensor_numel(t));
    else if (t->dtype == KG_F16 || t->dtype == KG_BF16)
        rc = sampled_bias(b, side, output, &bias, err);
    *cut = rc == KG_OK && fabs(bias) > KG_ROUNDING_BIAS;
    if (*cut)
        kg_condemn(b, KG_VERDICT_WRONG_VALUES,
                   "output '%s': values lie %.2f units of their last place %s zero than the "
                   "nearest ones, on average: round to nearest, and cut nothing off",
                   b->j->op->outputs[output].name, fabs(bias),
                   bias > 0 ? "nearer to" : "farther from");
    return rc;
}

int kg_bench_compare(kg_bench *b, int side, bool *ok, kg_error *err) {
    const kg_set *set = &b->jc->sets[b->set];
    *ok = false;
    for (size_t i = 0; i < b->jc->noutputs; i++) {
        const kg_tensor *t = &b->jc->outputs[i];
        if (b->output[side][i] < 0)
            continue;
        kg_comparison c;
        int rc = b->j->device->compare(b->j, t->dtype, kg_slot_data(&b->j->outputs[side][i]),
                                       set->oracles[i], (size_t)kg_tensor_numel(t),
                                       b->poison[side][i], &c, err);
        if (rc != KG_OK)
            return rc;
        kg_tolerance tol = kg_set_tolerance(b->jc, b->set, i, c.scale);
        keep_errors(b->cr, &c, set->torch_errors[i]);
        /* A wrong integer may look like the poison by chance; an unwritten one always does. */
        if (c.unwritten && c.unwritten >= c.unequal)
            return kg_condemn_values(b, KG_VERDICT_NOT_ALL_WRITTEN, i, side, &c, tol,
                                     "not every element is written", err);
        if (c.nonfinite)
            return kg_condemn_values(b, KG_VERDICT_NONFINITE, i, side, &c, tol,
                                     "NaN or Inf where the oracle is finite", err);
        if (c.misplaced)
            return kg_condemn_values(b, KG_VERDICT_WRONG_VALUES, i, side, &c, tol,
                                     "the oracle is NaN or Inf where the output is not the same",
                                     err);
        if (c.unequal || !(c.norm_err <= tol.norm) || !(c.max_err <= tol.max))
            return kg_condemn_values(b, KG_VERDICT_WRONG_VALUES, i, side, &c, tol, "wrong values",
                                     err);
        bool cut = false;
        rc = cut_off(b, side, i, &cut, err);
        if (rc != KG_OK || cut)
            return rc;
    }
    *ok = true;
    return KG_OK;
}

/* Two elements of an output as text. */
static int element_pair(kg_bench *b, size_t output, size_t at, char x[40], char y[40],
                        kg_error *err) {
    int dtype = b->jc->outputs[output].dtype, rc = KG_OK;
    size_t size = kg_dtype_size(dtype);
    for (int side = 0; rc == KG_OK && side < 2; side++) {
        char scratch[8];
        const void *element;
        rc = b->j->device->view(b->j, kg_slot_data(&b->j->outputs[side][output]) + at * size, size,
                                scratch, &element, err);
        if (rc == KG_OK)
            kg_element_text(dtype, element, 0, side ? y : x);
    }
    return rc;
}

int kg_bench_same(kg_bench *b, bool *ok, kg_error *err) {
    kg_judge *j = b->j;
    *ok = false;
    for (size_t i = 0; i < b->jc->noutputs; i++) {
        const kg_tensor *t = &b->jc->outputs[i];
        size_t size = kg_dtype_size(t->dtype);
        int64_t at = -1;
        char x[40], y[40];
        if (b->output[0][i] < 0)
            continue;
        int rc =
            j->device->differ(j, kg_slot_data(&j->outputs[0][i]), kg_slot_data(&j->outputs[1][i]),
                              (size_t)kg_tensor_numel(t) * size, &at, err);
        if (rc == KG_OK && at < 0)
            continue;
        if (rc == KG_OK)
            rc = element_pair(b, i, (size_t)at / size, x, y, err);
        if (rc == KG_OK)
            kg_condemn(b, KG_VERDICT_NONDETERMINISTIC,
                       "output '%s': two runs on the same inputs differ, first at flat element "
                       "%lld: %s and %s; %s",
                       j->op->outputs[i].name, (long long)(at / (int64_t)size), x, y,
                       j->device->second_run);
        return rc;
    }
    *ok = true;
    return KG_OK;
}
