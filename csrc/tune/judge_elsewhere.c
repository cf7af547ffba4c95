/* A Candidate that passed is called as it would be on another machine or by another caller: a plan
 * may count threads or multiprocessors and ask for alignments, and hand them to the kernel. Where
 * that changes the call, the first input set must come out right there, too. Refuses nothing that
 * the plan says is not for such a machine. A GPU is never told to have more multiprocessors than it
 * has: a cooperative grid of that size would not be resident. */
#include <string.h>

#include "tune/judge_internal.h"

enum { MOST_ALIGNED = 256 };

typedef struct elsewhere {
    int target;
    int64_t threads, sms; /* 0: as here */
    size_t align;         /* of the inputs; 0: as the Case has them */
} elsewhere;

static const elsewhere places[] = {
    {.target = KG_CPU, .threads = 1},
    {.target = KG_CPU, .threads = 3},
    {.target = KG_CPU, .threads = 64},
    {.target = KG_CPU, .align = MOST_ALIGNED},
    {.target = KG_CUDA, .sms = 16},
    {.target = KG_CUDA, .sms = 114},
    {.target = KG_CUDA, .align = MOST_ALIGNED},
};

static bool same_arg(const kg_launch_arg *a, const kg_launch_arg *b) {
    if (a->kind != b->kind || a->index != b->index || a->dtype != b->dtype)
        return false;
    return a->kind != KG_PA_SCALAR || memcmp(&a->u, &b->u, kg_dtype_size(a->dtype)) == 0;
}

static bool same_launch(const kg_launch *a, const kg_launch *b) {
    if (a->plan_launch != b->plan_launch || a->range != b->range || a->nargs != b->nargs ||
        a->shared != b->shared || memcmp(a->grid, b->grid, sizeof a->grid) != 0 ||
        memcmp(a->block, b->block, sizeof a->block) != 0 ||
        memcmp(a->cluster, b->cluster, sizeof a->cluster) != 0)
        return false;
    for (size_t i = 0; i < a->nargs; i++)
        if (!same_arg(&a->args[i], &b->args[i]))
            return false;
    return true;
}

/* Grains differ without meaning anything: chunks are cut in two ways anyhow. */
static bool same_call(const kg_instance *a, const kg_instance *b) {
    if (a->nlaunches != b->nlaunches || a->nworkspace != b->nworkspace ||
        memcmp(a->workspace_bytes, b->workspace_bytes,
               a->nworkspace * sizeof *a->workspace_bytes) != 0)
        return false;
    for (size_t i = 0; i < a->nlaunches; i++)
        if (!same_launch(&a->launches[i], &b->launches[i]))
            return false;
    return true;
}

static bool fits(const kg_bench *b, const kg_instance *inst) {
    int64_t total = b->jc->output_bytes;
    for (size_t i = 0; i < inst->nworkspace; i++)
        if (__builtin_add_overflow(total, inst->workspace_bytes[i], &total))
            return false;
    return total <= b->j->options.memory;
}

/* Sets the inputs' alignment, or (0) gives each its own back. */
static void align_inputs(kg_bench *b, size_t align, size_t own[KG_MAX_INPUTS]) {
    for (size_t i = 0; i < b->jc->ninputs; i++) {
        kg_input *in = &b->jc->inputs[i];
        if (align)
            own[i] = in->align;
        in->align = align ? align : own[i];
    }
    b->j->resident_case = (size_t)-1; /* they lie elsewhere now */
}

static int bind(kg_bench *b, const elsewhere *e, kg_instance **out, kg_error *err) {
    kg_constants c = b->j->constants;
    kg_call call = b->jc->c->call;
    if (e->threads)
        c.num_threads = e->threads;
    if (e->sms)
        c.num_sms = e->sms;
    kg_fake_addresses(b->jc, &call);
    return kg_plan_bind(b->cand->plan, b->j->op, &b->cand->tuning, &c, &call, out, err);
}

static int run_first(kg_bench *b, const kg_buf *image, bool *ok, kg_error *err) {
    static const kg_mode mode = {.split = KG_SPLIT_SERVED};
    kg_call_time time;
    b->nslots = 0;
    b->left[0] = b->left[1] = 0;
    int rc = b->j->device->begin(b->j, err);
    if (rc != KG_OK)
        return rc;
    rc = kg_bench_open(b, image, ok, err);
    if (rc == KG_OK && *ok)
        rc = kg_bench_inputs(b, 0, err);
    if (rc == KG_OK && *ok)
        rc = kg_bench_run(b, 0, &mode, &time, ok, err);
    if (rc == KG_OK && *ok)
        rc = kg_bench_compare(b, 0, ok, err);
    kg_bench_close(b, rc == KG_OK && *ok);
    b->j->device->end(b->j);
    return rc;
}

static void tell(kg_bench *b, const elsewhere *e) {
    if (e->threads)
        kg_buf_printf(&b->report->message, "; with NUM_THREADS = %lld", (long long)e->threads);
    else if (e->sms)
        kg_buf_printf(&b->report->message, "; with NUM_SMS = %lld", (long long)e->sms);
    else
        kg_buf_printf(&b->report->message, "; with inputs aligned to %d bytes", MOST_ALIGNED);
}

static int try_place(kg_bench *b, const elsewhere *e, const kg_buf *image, bool *ok,
                     kg_error *err) {
    size_t own[KG_MAX_INPUTS] = {0};
    kg_instance *inst = NULL, *here = b->inst;
    int rc = KG_OK;
    if (e->align)
        align_inputs(b, e->align, own);
    if (bind(b, e, &inst, NULL) == KG_OK && !same_call(here, inst) && fits(b, inst)) {
        b->inst = inst;
        rc = run_first(b, image, ok, err);
        b->inst = here;
        if (rc == KG_OK && !*ok)
            tell(b, e);
    }
    if (e->align)
        align_inputs(b, 0, own);
    kg_instance_free(inst);
    return rc;
}

static bool may_be(const kg_judge *j, const elsewhere *e) {
    return e->target == j->device->target && (e->sms == 0 || e->sms < j->constants.num_sms);
}

int kg_bench_elsewhere(kg_bench *b, const kg_buf *image, bool *ok, kg_error *err) {
    int rc = KG_OK;
    /* Not for the many of a search. */
    if (b->j->device->target == KG_CUDA && !b->cand->request->all_sets)
        return KG_OK;
    for (size_t i = 0; rc == KG_OK && *ok && i < sizeof places / sizeof *places; i++)
        if (may_be(b->j, &places[i]))
            rc = try_place(b, &places[i], image, ok, err);
    return rc;
}
