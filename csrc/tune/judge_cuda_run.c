/* A Candidate on a GPU: its worker, what its kernels use, and how what the driver said of it
 * becomes a verdict. After every death the device is proved well before anybody else is judged on
 * it. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cubin.h"
#include "tune/judge_cuda.h"

enum { PROOF_BYTES = 16 << 20, MAP_BYTES = 128 };

/* CUresults that the driver gives for what a kernel did. */
enum {
    OUT_OF_MEMORY = 2,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_OUT_OF_RESOURCES = 701,
    LAUNCH_TIMEOUT = 702,
    ASSERT = 710,
    STACK_ERROR = 714,
    ILLEGAL_INSTRUCTION = 715,
    MISALIGNED_ADDRESS = 716,
    INVALID_ADDRESS_SPACE = 717,
    INVALID_PC = 718,
    LAUNCH_FAILED = 719,
    COOPERATIVE_TOO_LARGE = 720,
    INVALID_CLUSTER_SIZE = 912
};

/* ---- workers ---- */

static int start(const kg_judge *j, kg_worker **out, kg_error *err) {
    const kg_cuda_judge *c = j->state;
    const kg_worker_options o = {
        .path = j->options.worker, .device = KG_CUDA, .index = (uint32_t)c->index};
    return kg_worker_start(&o, out, err);
}

/* One that waits for its Candidate: a context takes longer to make than most Candidates run. One
 * that cannot be started is missed when it is needed. */
void kg_cuda_worker_ahead(kg_judge *j) {
    kg_cuda_judge *c = j->state;
    if (!c->spare)
        (void)start(j, &c->spare, NULL);
}

int kg_cuda_worker_take(kg_bench *b, kg_worker **out, kg_error *err) {
    kg_cuda_judge *c = b->j->state;
    kg_worker **from = c->kept ? &c->kept : &c->spare, *w = *from;
    *from = NULL;
    if (w && kg_worker_greet(w, NULL) != KG_OK) {
        /* It went with the thread that had started it, or found the device full. */
        kg_worker_close(w);
        w = NULL;
    }
    int rc = w ? KG_OK : start(b->j, &w, err);
    if (rc == KG_OK)
        rc = kg_worker_greet(w, err);
    if (rc != KG_OK) {
        kg_worker_close(w);
        return rc;
    }
    *out = w;
    return KG_OK;
}

void kg_cuda_worker_keep(kg_judge *j, kg_worker *w) {
    kg_cuda_judge *c = j->state;
    kg_worker_close(c->kept);
    c->kept = w;
}

void kg_cuda_worker_done(kg_judge *j) {
    kg_cuda_worker_keep(j, NULL);
    kg_cuda_worker_ahead(j); /* while the next Candidate is compiled */
}

/* ---- loading ---- */

static uint32_t arg_bytes(const kg_bench *b, const kg_plan_arg *a) {
    switch (a->kind) {
    case KG_PA_SCALAR:
        return (uint32_t)kg_dtype_size(a->dtype);
    case KG_PA_PROGRAMS:
        return (uint32_t)b->programs_bytes;
    case KG_PA_MAP:
        return MAP_BYTES;
    default:
        return sizeof(uint64_t);
    }
}

static const kg_launch *launch_of(const kg_bench *b, size_t entry) {
    for (size_t i = 0; i < b->inst->nlaunches; i++)
        if (b->inst->launches[i].plan_launch == (int)entry)
            return &b->inst->launches[i];
    return NULL; /* its `when` does not hold */
}

static uint32_t product(const int64_t n[3]) {
    return (uint32_t)(n[0] * n[1] * n[2]);
}

static void fill_ask(const kg_bench *b, size_t entry, kg_kernel_ask *a) {
    const kg_plan_launch *pl = &b->cand->plan->launches[entry];
    const kg_launch *l = launch_of(b, entry);
    *a = (kg_kernel_ask){.name = pl->kernel, .nargs = pl->nargs};
    for (size_t i = 0; i < pl->nargs; i++)
        a->arg_bytes[i] = arg_bytes(b, &pl->args[i]);
    if (!l)
        return;
    a->threads = product(l->block);
    a->shared = (uint32_t)l->shared;
    a->cluster = product(l->cluster);
}

/* A plan and a source that do not belong together: said as a compiler would, before anything runs.
 * False: the verdict is in the report. */
static bool check_params(kg_bench *b, const kg_buf *image, const kg_kernel_ask *a) {
    kg_cubin_function f;
    kg_error why = {0};
    if (kg_cubin_function_get(image->data, image->len, a->name, &f, &why) != KG_OK) {
        kg_condemn(b, KG_VERDICT_COMPILE_ERROR, "launches: %s", why.msg);
        return false;
    }
    if (f.nparams != a->nargs) {
        kg_condemn(b, KG_VERDICT_COMPILE_ERROR,
                   "'%s' has %zu parameters, and the plan's args give %zu", a->name, f.nparams,
                   a->nargs);
        return false;
    }
    for (size_t i = 0; i < a->nargs; i++)
        if (f.params[i].size != a->arg_bytes[i]) {
            kg_condemn(b, KG_VERDICT_COMPILE_ERROR,
                       "'%s': parameter %zu has %zu bytes, and args[%zu] of the plan gives %u",
                       a->name, i, f.params[i].size, i, a->arg_bytes[i]);
            return false;
        }
    return true;
}

/* For the Record, whatever the verdict. */
static void keep_uses(kg_bench *b, const kg_kernel_ask *asks, const kg_kernel_use *uses, size_t n) {
    kg_json *list = kg_json_new_array();
    for (size_t i = 0; i < n; i++) {
        kg_json *o = kg_json_new_object();
        kg_json_set_str(o, "name", asks[i].name);
        kg_json_set_int(o, "registers", uses[i].registers);
        kg_json_set_int(o, "local_bytes", uses[i].local); /* stack and spills */
        kg_json_set_int(o, "static_shared", uses[i].shared);
        kg_json_set_int(o, "dynamic_shared", asks[i].shared);
        kg_json_set_int(o, "threads", asks[i].threads);
        kg_json_set_int(o, "blocks_per_sm", uses[i].blocks);
        kg_json_push(list, o);
    }
    kg_json_free(b->cr->measure);
    b->cr->measure = kg_json_new_object();
    kg_json_set(b->cr->measure, "kernels", list);
}

/* Whether the worker fills shared memory between calls is for the Record to say: a device that will
 * not do that still judges. */
static int hand_scrub(kg_bench *b, kg_error *err) {
    kg_cuda_judge *c = b->j->state;
    kg_cuda_scope scope;
    kg_error why = {0};
    int rc = kg_cuda_enter(c->index, &scope, err);
    if (rc != KG_OK)
        return rc;
    rc = kg_checks_load(c, err);
    kg_cuda_leave(&scope);
    if (rc != KG_OK)
        return rc;
    rc = kg_worker_scrub(b->worker, c->image.data, c->image.len, &why);
    kg_json_set_bool(b->cr->measure, "scrubbed", rc == KG_OK);
    return rc == KG_ECHILD ? kg_fail(err, rc, "%s", why.msg) : KG_OK;
}

int kg_cuda_load_image(kg_bench *b, const kg_buf *image, bool *ok, kg_error *err) {
    kg_kernel_ask asks[KG_MAX_LAUNCHES];
    kg_kernel_use uses[KG_MAX_LAUNCHES];
    size_t n = b->cand->plan->nlaunches;
    kg_error why = {0};
    *ok = false;
    for (size_t i = 0; i < n; i++) {
        fill_ask(b, i, &asks[i]);
        if (!check_params(b, image, &asks[i]))
            return KG_OK;
    }
    int rc = kg_worker_load_kernels(b->worker, image->data, image->len, asks, n, uses, &why);
    if (rc == KG_ECHILD)
        return b->j->device->died(b, err);
    if (rc == KG_EIO || rc == KG_EFORMAT) {
        kg_condemn(b, KG_VERDICT_LAUNCH_ERROR, "the image does not load: %s", why.msg);
        return KG_OK;
    }
    if (rc != KG_OK)
        return kg_fail(err, rc, "%s", why.msg);
    keep_uses(b, asks, uses, n);
    b->loaded = image;
    rc = hand_scrub(b, err);
    *ok = rc == KG_OK;
    return rc;
}

/* ---- what the driver said ---- */

static const struct answer {
    uint32_t result;
    kg_verdict verdict;
    const char *words;
} answers[] = {
    {0, KG_VERDICT_OUT_OF_RESOURCES, "it cannot run on this device"},
    {OUT_OF_MEMORY, KG_VERDICT_OUT_OF_RESOURCES, "the device has not the memory that it needs"},
    {LAUNCH_OUT_OF_RESOURCES, KG_VERDICT_OUT_OF_RESOURCES,
     "registers or shared memory for its blocks are more than a multiprocessor has"},
    {COOPERATIVE_TOO_LARGE, KG_VERDICT_OUT_OF_RESOURCES,
     "the cooperative grid is larger than what is resident at once"},
    {INVALID_CLUSTER_SIZE, KG_VERDICT_OUT_OF_RESOURCES, "the cluster does not fit the device"},
    {ILLEGAL_ADDRESS, KG_VERDICT_ILLEGAL_ACCESS,
     "it read or wrote an address without memory (a buffer ends within 4 KiB of such addresses), "
     "or "
     "outside of its shared memory"},
    {STACK_ERROR, KG_VERDICT_ILLEGAL_ACCESS, "its stack was corrupted or too large"},
    {MISALIGNED_ADDRESS, KG_VERDICT_ILLEGAL_ACCESS,
     "a load or store was not aligned to its size (the plan's require can say align(x) >= 16)"},
    {INVALID_ADDRESS_SPACE, KG_VERDICT_ILLEGAL_ACCESS,
     "an instruction for one memory was given an address of another"},
    {INVALID_PC, KG_VERDICT_ILLEGAL_ACCESS, "it jumped to where no code is"},
    {LAUNCH_TIMEOUT, KG_VERDICT_TIMEOUT, "the driver ended it because it ran too long"},
    {ASSERT, KG_VERDICT_CRASH, "an assertion failed"},
    {ILLEGAL_INSTRUCTION, KG_VERDICT_CRASH,
     "it ran __trap() or an instruction that this device has not"},
    {LAUNCH_FAILED, KG_VERDICT_CRASH, "the launch failed (a trap, or a corrupted context)"},
};

static const struct answer *answer_of(uint32_t result) {
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++)
        if (answers[i].result == result)
            return &answers[i];
    return NULL;
}

static void condemn_reported(kg_bench *b, const kg_death *d) {
    const struct answer *a = answer_of(d->result);
    kg_verdict v = a                           ? a->verdict
                   : d->stage == KG_STAGE_WAIT ? KG_VERDICT_CRASH
                                               : KG_VERDICT_LAUNCH_ERROR;
    const char *kernel =
        d->launch < b->cand->plan->nlaunches ? b->cand->plan->launches[d->launch].kernel : NULL;
    kg_condemn(b, v, "%s%s%s%s%s%s", kernel ? "'" : "", kernel ? kernel : "", kernel ? "': " : "",
               a ? a->words : "", a && d->asked[0] ? ": " : "", d->asked);
}

static void condemn(kg_bench *b) {
    const kg_death *d = kg_worker_death(b->worker);
    if (d->timed_out)
        kg_condemn(b, KG_VERDICT_TIMEOUT, "a call did not end within %" PRId64 " ms and was killed",
                   b->limit_ms);
    else if (d->device_reported)
        condemn_reported(b, d);
    else if (d->exit_signal)
        kg_condemn(b, KG_VERDICT_CRASH, "the worker died of signal %d", d->exit_signal);
    else
        kg_condemn(b, KG_VERDICT_CRASH, "the worker ended with code %d without an answer",
                   d->exit_code);
}

/* ---- inputs that were written ---- */

/* Inputs are mapped for reading alone, so a kernel that writes one faults like one that is lost. It
 * runs once more in a worker that may write them, and its verdict is found by what changed. */
static int try_writable(kg_bench *b, bool *ok, kg_error *err) {
    static const kg_mode plain = {.split = KG_SPLIT_SERVED};
    kg_call_time time;
    b->nslots = 0;
    int rc = kg_bench_open(b, b->loaded, ok, err);
    if (rc == KG_OK && *ok)
        rc = kg_bench_inputs(b, b->set, err);
    if (rc == KG_OK && *ok)
        rc = kg_bench_run(b, 0, &plain, &time, ok, err);
    return rc;
}

static int find_written_input(kg_bench *b, kg_error *err) {
    kg_verdict verdict = b->report->verdict;
    kg_buf said = b->report->message;
    bool ok = false;
    kg_buf_init(&b->report->message, said.max);
    b->diagnosing = true;
    kg_worker_close(b->worker);
    b->worker = NULL;
    for (size_t i = 0; i < b->jc->ninputs; i++)
        b->j->inputs[i].writable = true;
    int rc = try_writable(b, &ok, err);
    for (size_t i = 0; i < b->jc->ninputs; i++)
        b->j->inputs[i].writable = false;
    b->diagnosing = false;
    if (rc == KG_OK && !ok && b->report->verdict == KG_VERDICT_INPUT_MODIFIED) {
        kg_buf_free(&said);
        return KG_OK;
    }
    kg_buf_free(&b->report->message);
    b->report->message = said;
    b->report->verdict = b->cr->verdict = verdict;
    return rc;
}

/* ---- the device, after that ---- */

static int fill_and_check(kg_cuda_judge *c, kg_error *err) {
    const kg_band band = {.bytes = PROOF_BYTES, .word = kg_random()};
    kg_band at = band;
    uint64_t first = 0;
    int rc = kg_cuda_alloc(PROOF_BYTES, &at.at, err);
    if (rc == KG_OK)
        rc = kg_check_fill(c, at.at, at.bytes, at.word, err);
    if (rc == KG_OK)
        rc = kg_check_bands(c, &at, 1, &first, err);
    if (rc == KG_OK && first != UINT64_MAX)
        rc = kg_fail(err, KG_EENV, "byte %" PRIu64 " of what was written reads back wrong", first);
    kg_cuda_free(at.at);
    return rc;
}

/* In this context, and in a fresh one of a fresh process (which probes it before it answers). */
static int prove_healthy(kg_judge *j, kg_error *err) {
    kg_cuda_judge *c = j->state;
    kg_cuda_scope scope;
    int rc = kg_cuda_enter(c->index, &scope, err);
    if (rc == KG_OK) {
        rc = fill_and_check(c, err);
        kg_cuda_leave(&scope);
    }
    if (rc == KG_OK && !c->spare)
        rc = start(j, &c->spare, err);
    if (rc == KG_OK)
        rc = kg_worker_greet(c->spare, err);
    if (rc == KG_OK)
        return KG_OK;
    kg_worker_close(c->spare);
    c->spare = NULL;
    return kg_fail_prefix(err, rc, "GPU %d is not well after a Candidate failed on it", c->index);
}

int kg_cuda_died(kg_bench *b, kg_error *err) {
    const kg_death *d = kg_worker_death(b->worker);
    bool fault = d->device_reported && d->result == ILLEGAL_ADDRESS;
    if (b->diagnosing)
        return KG_OK;
    condemn(b);
    int rc = prove_healthy(b->j, err);
    if (rc == KG_OK && fault && b->loaded)
        rc = find_written_input(b, err);
    return rc;
}
