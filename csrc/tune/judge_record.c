/* A report as a Record (docs/formats.md). */
#define _DEFAULT_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tune/judge_internal.h"

static kg_json *time_json(const kg_summary *s) {
    kg_json *o = kg_json_new_object();
    kg_json_set_int(o, "median", (int64_t)(s->median + 0.5));
    kg_json_set_int(o, "p10", (int64_t)(s->p10 + 0.5));
    kg_json_set_int(o, "p90", (int64_t)(s->p90 + 0.5));
    kg_json_set_int(o, "n", (int64_t)s->n);
    return o;
}

static kg_json *case_json(const kg_case_report *cr, const kg_judged_case *jc) {
    kg_json *o = kg_json_new_object();
    kg_json_set_str(o, "case", jc->c->hash);
    kg_json_set_str(o, "verdict", kg_verdict_name((int)cr->verdict));
    kg_json_set_double(o, "norm_err", cr->norm_err);
    kg_json_set_double(o, "max_err", cr->max_err);
    kg_json_set_double(o, "torch_norm_err", cr->torch_norm_err);
    kg_json_set_double(o, "torch_max_err", cr->torch_max_err);
    kg_json_set_bool(o, "allclose", cr->allclose);
    kg_json_set_int(o, "sets", (int64_t)cr->sets);
    kg_json_set_int(o, "programs", jc->c->program ? 1 : 0);
    if (cr->verdict == KG_VERDICT_PASS && cr->timed) {
        kg_json_set(o, "time_ns", time_json(&cr->time));
        if (cr->warm.n)
            kg_json_set(o, "warm_ns", time_json(&cr->warm));
        kg_json_set_int(o, "floor_ns", (int64_t)(cr->floor_ns + 0.5));
    }
    return o;
}

static bool listed(const kg_json *list, const char *text) {
    for (size_t i = 0; i < kg_json_size(list); i++) {
        const char *have = "";
        if (kg_json_str(kg_json_at(list, i), "programs", &have, NULL) == KG_OK &&
            strcmp(have, text) == 0)
            return true;
    }
    return false;
}

/* Hashes of the Programs that it was judged on. */
static kg_json *programs_json(const kg_judge_report *r) {
    kg_json *list = kg_json_new_array();
    for (size_t i = 0; i < r->ncases; i++) {
        const kg_program *p = r->judge->cases[i].c->program;
        if (!p || !r->cases[i].judged || listed(list, kg_program_hash(p)))
            continue;
        kg_json_push_str(list, kg_program_hash(p));
    }
    return list;
}

static kg_json *environment_json(const kg_judge_report *r) {
    char hex[33];
    kg_json *o = kg_json_new_object();
    kg_json_set_str(o, "arch", r->arch);
    r->judge->device->environment(r->judge, r->flags, o);
    for (size_t i = 0; i < r->ncases; i++) {
        if (r->cases[i].image.lo == 0 && r->cases[i].image.hi == 0)
            continue;
        kg_hash128_hex(r->cases[i].image, hex);
        kg_json_set_str(o, "image", hex);
        break;
    }
    kg_json_set_str(o, "kgen", KGEN_VERSION);
    return o;
}

static void set_created(kg_json *o) {
    char text[32];
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    kg_json_set_str(o, "created", text);
}

/* Cases that the plan is not for, and why; NULL when there are none. */
static kg_json *skipped_json(const kg_judge_report *r) {
    kg_json *list = NULL;
    for (size_t i = 0; i < r->ncases; i++) {
        if (!r->cases[i].why)
            continue;
        if (!list)
            list = kg_json_new_array();
        kg_json *one = kg_json_new_object();
        kg_json_set_str(one, "case", r->judge->cases[i].c->hash);
        kg_json_set_str(one, "why", r->cases[i].why);
        kg_json_push(list, one);
    }
    return list;
}

/* How each Case was timed and what its kernels use; NULL when there is nothing to tell. */
static kg_json *measures_json(const kg_judge_report *r) {
    kg_json *list = NULL;
    for (size_t i = 0; i < r->ncases; i++) {
        if (!r->cases[i].measure)
            continue;
        if (!list)
            list = kg_json_new_array();
        kg_json *one = kg_json_copy(r->cases[i].measure);
        kg_json_set_str(one, "case", r->judge->cases[i].c->hash);
        kg_json_push(list, one);
    }
    return list;
}

int kg_judge_record(const kg_judge_report *r, kg_json **out, kg_error *err) {
    kg_json *o = kg_json_new_object(), *cases = kg_json_new_array();
    kg_json_set_int(o, "format", 1);
    kg_json_set_str(o, "id", r->id);
    kg_json_set_str(o, "op", r->op);
    kg_json_set_str(o, "arch", r->arch);
    kg_json_set_int(o, "version", 0);
    kg_json_set_str(o, "kind", "kernel");
    kg_json_set_str(o, "source", r->judge->device->source);
    kg_json_set(o, "tunables", r->tunables ? kg_json_copy(r->tunables) : kg_json_new_object());
    kg_json_set_str(o, "verdict", kg_verdict_name((int)r->verdict));
    kg_json_set_str(o, "message", kg_judge_message(r));
    for (size_t i = 0; i < r->ncases; i++)
        if (r->cases[i].judged)
            kg_json_push(cases, case_json(&r->cases[i], &r->judge->cases[i]));
    kg_json_set(o, "cases", cases);
    kg_json_set(o, "programs", programs_json(r));
    kg_json_set(o, "environment", environment_json(r));
    kg_json *details = r->details ? kg_json_copy(r->details) : kg_json_new_object();
    kg_json_set_double(details, "compile_ms", r->compile_ms);
    kg_json_set_double(details, "run_ms", r->run_ms);
    double load[1];
    if (getloadavg(load, 1) == 1) /* more than the threads: somebody else was there */
        kg_json_set_double(details, "load", load[0]);
    kg_json *measures = measures_json(r);
    if (measures)
        kg_json_set(details, "device", measures);
    kg_json *skipped = skipped_json(r);
    if (skipped)
        kg_json_set(details, "skipped", skipped);
    kg_json *last = kg_json_set(o, "details", details);
    set_created(o);
    if (!last) {
        kg_json_free(o);
        return kg_fail(err, KG_ENOMEM, "a Record: out of memory");
    }
    *out = o;
    return KG_OK;
}
