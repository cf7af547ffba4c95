/* Builds ahead of time what a Kernel needs to serve a Case: the translation unit that the runtime
 * would make, compiled into the image cache for any architecture, whether or not this machine can
 * run it. Judges nothing and loads nothing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kgen_tune.h"
#include "runtime/image.h"
#include "runtime/image_cuda.h"
#include "sys/cc.h"
#include "tune/contract.h"
#include "tune/instance_json.h"

typedef struct job {
    kg_op *op;
    kg_plan *plan;
    kg_case *c;
    kg_tuning tuning;
    kg_instance *inst;
    kg_buf unit, image, messages;
} job;

static void job_init(job *j) {
    *j = (job){0};
    kg_buf_init(&j->unit, 64 << 20);
    kg_buf_init(&j->image, 0);
    kg_buf_init(&j->messages, 1 << 20);
}

static void job_free(job *j) {
    kg_instance_free(j->inst);
    kg_case_free(j->c);
    kg_plan_free(j->plan);
    kg_op_free(j->op);
    kg_buf_free(&j->unit);
    kg_buf_free(&j->image);
    kg_buf_free(&j->messages);
}

static int read_job(job *j, const char *op_json, const char *case_json, const char *source,
                    size_t n, const char *tunables_json, kg_error *err) {
    kg_json *given = NULL;
    int rc = kg_op_from_json(op_json, strlen(op_json), "op.json", &j->op, err);
    if (rc == KG_OK)
        rc = kg_case_from_json(case_json, strlen(case_json), "Case", j->op, &j->c, err);
    if (rc == KG_OK)
        rc = kg_plan_from_source(source, n, "kernel.c", j->op, &j->plan, err);
    if (rc == KG_OK && tunables_json)
        rc = kg_json_parse(tunables_json, strlen(tunables_json), "tunables", &given, err);
    if (rc == KG_OK && given)
        rc = kg_tuning_from_json(j->plan, given, "tunables", &j->tuning, err);
    else if (rc == KG_OK)
        kg_tuning_default(j->plan, &j->tuning);
    kg_json_free(given);
    return rc;
}

/* Addresses as aligned as the Case saw them: `require` may ask. */
static void align_inputs(kg_case *c) {
    for (size_t i = 0; i < c->call.nargs; i++)
        if (c->call.args[i].present && c->align[i] > 0)
            c->call.args[i].u.t.data = (void *)(intptr_t)c->align[i];
}

/* What `require` may ask of a GPU that is not here, as the largest of each kind has it. They decide
 * whether a Candidate is for a Case, and reach no text. */
static kg_constants gpu_constants(int64_t code) {
    static const struct {
        int64_t code, sms, shared;
    } known[] = {{80, 108, 166912}, {86, 84, 101376},   {87, 16, 166912},   {89, 142, 101376},
                 {90, 132, 232448}, {100, 148, 232448}, {103, 160, 232448}, {120, 188, 101376}};
    kg_constants c = {.num_threads = 1, .arch = code, .num_sms = 108, .max_shared = 101376};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].code == code) {
            c.num_sms = known[i].sms;
            c.max_shared = known[i].shared;
        }
    return c;
}

static int bind_job(job *j, const char *arch, kg_error *err) {
    static const char *const names[] = {"cpu", "cuda"};
    int64_t code = kg_arch_code(arch);
    if (code < 0)
        return kg_fail(err, KG_EUNSUPPORTED,
                       "%s is no architecture that images are built for: x86-64-v1 to v4, aarch64, "
                       "sm_80 and newer",
                       arch);
    int target = kg_arch_target(arch);
    if (j->plan->target != target)
        return kg_fail(err, KG_EUNSUPPORTED, "the plan's target is %s, and %s is of %s",
                       names[j->plan->target == KG_CUDA], arch, names[target == KG_CUDA]);
    kg_constants constants =
        target == KG_CUDA
            ? gpu_constants(code)
            : (kg_constants){.num_threads = 1, .arch = code, .has_amx = kg_cpu_has_amx()};
    kg_call call = j->c->call;
    return kg_plan_bind(j->plan, j->op, &j->tuning, &constants, &call, &j->inst, err);
}

static int compile_job(job *j, const char *source, size_t n, const char *arch, bool any_size,
                       bool *cached, char path[512], kg_error *err) {
    int rc =
        kg_source_build(j->plan, j->op, &j->tuning, &j->c->call, any_size ? NULL : &j->inst->dims,
                        source, n, KG_UNIT_NAME, &j->unit, err);
    if (rc != KG_OK)
        return rc;
    if (j->plan->target == KG_CUDA) {
        int code = (int)kg_arch_code(arch);
        *cached = kg_image_cuda_cached(j->unit.data, j->unit.len, code, j->plan->flags);
        rc = kg_image_cuda(j->unit.data, j->unit.len, "kernel.cu", code, j->plan->flags, &j->image,
                           &j->messages, path, err);
    } else {
        *cached = kg_image_cached(j->unit.data, j->unit.len, arch, j->plan->flags);
        rc = kg_image_cpu(j->unit.data, j->unit.len, "kernel.c", arch, j->plan->flags, false,
                          &j->image, &j->messages, path, err);
    }
    if (rc != KG_OK && j->messages.len > 0)
        return kg_fail(err, rc, "%.400s", j->messages.data);
    if (rc == KG_OK && !path[0])
        return kg_fail(err, KG_EIO,
                       "the image cache cannot be written; set KGEN_CACHE to a folder that can");
    return rc;
}

int kgen_build_image(const char *op_json, const char *case_json, const char *source, size_t n,
                     const char *tunables_json, const char *arch, int any_size, char **json,
                     char *err, size_t nerr) {
    kg_error e = {0};
    bool cached = false;
    char path[512] = "";
    kg_buf text;
    job j;
    job_init(&j);
    kg_buf_init(&text, 0);
    int rc = read_job(&j, op_json, case_json, source, n, tunables_json, &e);
    if (rc == KG_OK) {
        align_inputs(j.c);
        rc = bind_job(&j, arch, &e);
    }
    if (rc == KG_OK)
        rc = compile_job(&j, source, n, arch, any_size != 0, &cached, path, &e);
    if (rc == KG_OK) {
        kg_json *o = kg_json_new_object();
        kg_json_set_bool(o, "cached", cached);
        if (kg_json_set_str(o, "path", path))
            kg_json_canonical(o, &text);
        rc = kg_json_size(o) == 2 ? kg_buf_check(&text, "result", &e)
                                  : kg_fail(&e, KG_ENOMEM, "result");
        kg_json_free(o);
    }
    char *taken = rc == KG_OK ? kg_buf_take(&text) : NULL;
    if (rc == KG_OK && !taken)
        rc = kg_fail(&e, KG_ENOMEM, "result");
    if (rc == KG_OK)
        *json = taken;
    kg_buf_free(&text);
    job_free(&j);
    return kg_give(rc, &e, err, nerr);
}

static int bind_for(job *j, const char *arch, int sms, int64_t shared, kg_error *err) {
    int64_t code = kg_arch_code(arch);
    if (code < 0)
        return kg_fail(err, KG_EUNSUPPORTED,
                       "%s is no architecture; known are sm_80 ..., x86-64-v1 to v4 and aarch64",
                       arch);
    kg_constants constants = {.num_threads = 1, .arch = code, .num_sms = sms, .max_shared = shared};
    return kg_plan_bind(j->plan, j->op, &j->tuning, &constants, &j->c->call, &j->inst, err);
}

/* out: the text of o, which is freed. */
static int take_json(kg_json *o, kg_buf *out, kg_error *err) {
    int rc = o ? kg_json_canonical(o, out) : kg_fail(err, KG_ENOMEM, "result");
    kg_json_free(o);
    return rc == KG_OK ? kg_buf_check(out, "result", err) : rc;
}

int kgen_candidate_unit(const char *op_json, const char *case_json, const char *source, size_t n,
                        const char *tunables_json, const char *arch, int sms, int64_t shared,
                        int any_size, char **json, char *err, size_t nerr) {
    kg_error e = {0};
    kg_buf text;
    job j;
    job_init(&j);
    kg_buf_init(&text, 0);
    int rc = read_job(&j, op_json, case_json, source, n, tunables_json, &e);
    if (rc == KG_OK) {
        align_inputs(j.c);
        rc = bind_for(&j, arch, sms, shared, &e);
    }
    if (rc == KG_OK)
        rc = kg_source_build(j.plan, j.op, &j.tuning, &j.c->call, any_size ? NULL : &j.inst->dims,
                             source, n, KG_UNIT_NAME, &j.unit, &e);
    if (rc == KG_OK) {
        kg_json *o = kg_instance_to_json(j.plan, j.op, j.inst);
        char *unit = kg_buf_take(&j.unit);
        kg_json *all = kg_json_set_str(o, "unit", unit);
        free(unit);
        if (!all)
            kg_json_free(o);
        rc = take_json(all ? o : NULL, &text, &e);
    }
    char *taken = rc == KG_OK ? kg_buf_take(&text) : NULL;
    if (rc == KG_OK && !taken)
        rc = kg_fail(&e, KG_ENOMEM, "result");
    if (rc == KG_OK)
        *json = taken;
    kg_buf_free(&text);
    job_free(&j);
    return kg_give(rc, &e, err, nerr);
}
