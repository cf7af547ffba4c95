/* From a Candidate's text to images: plan, binding, and (by the device) compiling. Changes nothing
 * of the judge, so that several threads may compile ahead. */
#include <stdlib.h>
#include <string.h>

#include "tune/judge_internal.h"
#include "tune/propose.h"

static int read_tunables(const kg_judge_request *r, kg_candidate *c, kg_error *err) {
    if (r->tuning) {
        c->tuning = *r->tuning;
        return KG_OK;
    }
    kg_tuning_default(c->plan, &c->tuning);
    if (!r->tunables_json)
        return KG_OK;
    kg_json *json = NULL;
    int rc = kg_json_parse(r->tunables_json, strlen(r->tunables_json), "tunables", &json, err);
    if (rc == KG_OK)
        rc = kg_tuning_from_json(c->plan, json, "tunables", &c->tuning, err);
    kg_json_free(json);
    return rc;
}

int kg_candidate_read(const kg_judge *j, const kg_judge_request *r, kg_candidate *out,
                      kg_error *err) {
    kg_candidate c = {.request = r};
    int rc = kg_plan_from_source(r->text, r->n, r->name, j->op, &c.plan, err);
    if (rc == KG_OK)
        rc = read_tunables(r, &c, err);
    if (rc == KG_OK && c.plan->target != j->device->target)
        rc = kg_fail(err, KG_EFORMAT, "%s: target: this judge has a %s", r->name,
                     j->device->target == KG_CPU ? "CPU and no CUDA device"
                                                 : "CUDA device and no CPU");
    if (rc != KG_OK) {
        kg_plan_free(c.plan);
        return rc;
    }
    *out = c;
    return KG_OK;
}

void kg_candidate_clear(kg_candidate *c) {
    kg_plan_free(c->plan);
    c->plan = NULL;
}

static int bind(const kg_judge *j, const kg_plan *plan, const kg_tuning *tuning,
                const kg_judged_case *jc, kg_instance **out, kg_error *err) {
    kg_call call = jc->c->call;
    kg_fake_addresses(jc, &call);
    return kg_plan_bind(plan, j->op, tuning, &j->constants, &call, out, err);
}

int kg_candidate_bind(const kg_judge *j, const kg_candidate *c, const kg_judged_case *jc,
                      kg_instance **out, kg_error *err) {
    return bind(j, c->plan, &c->tuning, jc, out, err);
}

int kg_judge_fits(const kg_judge *j, const kg_plan *plan, const kg_tuning *tuning, kg_error *err) {
    for (size_t i = 0; i < j->ncases; i++) {
        kg_instance *inst = NULL;
        int rc = bind(j, plan, tuning, &j->cases[i], &inst, err);
        kg_instance_free(inst);
        if (rc != KG_ENOTFOUND)
            return KG_OK;
    }
    return j->ncases > 0 ? KG_ENOTFOUND : KG_OK;
}

int kg_judge_prepare(const kg_judge *j, const kg_judge_request *request, kg_error *err) {
    kg_candidate c;
    size_t fitting = 0;
    int rc = kg_candidate_read(j, request, &c, err);
    if (rc != KG_OK)
        return rc == KG_ENOMEM ? rc : KG_OK;
    for (size_t i = 0; rc == KG_OK && i < j->ncases; i++) {
        kg_instance *inst = NULL;
        kg_buf image, messages;
        int bound = kg_candidate_bind(j, &c, &j->cases[i], &inst, err);
        if (bound == KG_ENOTFOUND)
            continue;
        fitting++;
        if (bound != KG_OK)
            continue;
        kg_buf_init(&image, 0);
        kg_buf_init(&messages, 1 << 20);
        rc = j->device->image(j, &c, &j->cases[i], inst, &image, &messages, err);
        kg_buf_free(&image);
        kg_buf_free(&messages);
        kg_instance_free(inst);
    }
    kg_candidate_clear(&c);
    if (rc == KG_ECOMPILE || rc == KG_EUNSUPPORTED)
        rc = KG_OK;
    if (rc == KG_OK && fitting == 0 && j->ncases > 0)
        return KG_ENOTFOUND; /* err has why the last Case was refused */
    return rc;
}

/* The image for the first Case that the Candidate is for. KG_ENOTFOUND: for none. */
static int first_image(const kg_judge *j, const kg_judge_request *request, kg_buf *image,
                       size_t *index, kg_error *err) {
    kg_candidate c;
    kg_buf messages;
    int rc = kg_candidate_read(j, request, &c, err);
    if (rc != KG_OK)
        return rc;
    rc = KG_ENOTFOUND;
    kg_buf_init(&messages, 1 << 20);
    for (*index = 0; *index < j->ncases; ++*index) {
        kg_instance *inst = NULL;
        rc = kg_candidate_bind(j, &c, &j->cases[*index], &inst, err);
        if (rc == KG_ENOTFOUND)
            continue;
        if (rc == KG_OK)
            rc = j->device->image(j, &c, &j->cases[*index], inst, image, &messages, err);
        if (rc != KG_OK && messages.len)
            kg_fail(err, rc, "%.400s", messages.data);
        kg_instance_free(inst);
        break;
    }
    kg_buf_free(&messages);
    kg_candidate_clear(&c);
    return rc;
}

int kg_judge_listing(const kg_judge *j, const kg_judge_request *request,
                     const kg_listing_options *o, kg_buf *out, kg_error *err) {
    kg_error why = {0};
    kg_buf image;
    size_t index = 0;
    kg_buf_init(&image, 0);
    int rc = first_image(j, request, &image, &index, &why);
    if (rc == KG_OK && j->ncases > 1)
        kg_buf_printf(out, "Case %zu\n", index);
    if (rc == KG_OK)
        rc = kg_listing(image.data, image.len, o, out, &why);
    kg_buf_free(&image);
    if (rc == KG_ENOMEM || rc == KG_EINTR || rc == KG_EIO)
        return kg_fail(err, rc, "%s", why.msg);
    if (rc != KG_OK)
        kg_buf_printf(out, "there is none: %s\n", why.msg);
    return kg_buf_check(out, "a listing", err);
}

/* --- a profiler --- */

void kg_judge_set_profiler(kg_judge *j, kg_profiler profiler, void *ctx) {
    j->profiler = profiler;
    j->profiler_ctx = ctx;
}

bool kg_judge_has_profiler(const kg_judge *j) {
    return j->profiler != NULL;
}

int kg_judge_profile(const kg_judge *j, const char *id, kg_buf *out, kg_error *err) {
    enum { MOST = 4096 };
    char *text = calloc(1, MOST);
    if (!text)
        return kg_fail(err, KG_ENOMEM, "a profile");
    if (j->profiler(j->profiler_ctx, id, text, MOST) == 0)
        kg_buf_add(out, text, strnlen(text, MOST - 1));
    free(text);
    return kg_buf_check(out, "a profile", err);
}
