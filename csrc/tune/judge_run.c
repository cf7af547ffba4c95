/* The order of judging: plan, contract, compile, then each Case: one set twice (in other chunks),
 * the other sets, the clock. The first thing that is wrong ends it. */
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include "sys/proc.h"
#include "tune/judge_internal.h"
#include "tune/propose.h"

static double ms_since(int64_t start) {
    return (double)(kg_now_ns() - start) / 1e6;
}

static void settle(kg_judge_report *r, kg_verdict v, const char *text) {
    r->verdict = v;
    kg_buf_clear(&r->message);
    kg_buf_puts(&r->message, text);
}

static int new_report(const kg_judge *j, const kg_judge_request *request, kg_judge_report **out,
                      kg_error *err) {
    kg_judge_report *r = calloc(1, sizeof *r);
    kg_case_report *cases = calloc(j->ncases ? j->ncases : 1, sizeof *cases);
    if (!r || !cases) {
        free(r);
        free(cases);
        return kg_fail(err, KG_ENOMEM, "a report: out of memory");
    }
    kg_buf_init(&r->message, 64 << 10);
    r->judge = j;
    r->cases = cases;
    r->ncases = j->ncases;
    r->op = j->op->name;
    snprintf(r->arch, sizeof r->arch, "%s", j->options.arch);
    snprintf(r->name, sizeof r->name, "%s", request->name);
    *out = r;
    return KG_OK;
}

void kg_judge_report_free(kg_judge_report *r) {
    if (!r)
        return;
    for (size_t i = 0; i < r->ncases; i++) {
        free(r->cases[i].why);
        kg_json_free(r->cases[i].measure);
    }
    free(r->cases);
    kg_json_free(r->details);
    kg_json_free(r->tunables);
    kg_buf_free(&r->message);
    free(r);
}

kg_verdict kg_judge_verdict(const kg_judge_report *r) {
    return r->verdict;
}

const char *kg_judge_message(const kg_judge_report *r) {
    return r->message.data ? r->message.data : "";
}

double kg_judge_time(const kg_judge_report *r, size_t index) {
    return index < r->ncases && r->cases[index].timed ? r->cases[index].time.median : 0;
}

/* Statuses that speak of the Candidate's plan rather than of us. */
static bool plan_fault(int rc) {
    return rc == KG_EFORMAT || rc == KG_EINVAL || rc == KG_EOVERFLOW || rc == KG_EVERSION ||
           rc == KG_ENOTFOUND || rc == KG_EUNSUPPORTED;
}

/* Once more with the same inputs, in another way: the same bits must come out. */
static int judge_again(kg_bench *b, bool *ok, kg_error *err) {
    static const kg_mode again = {.split = KG_SPLIT_ODD, .cold = true};
    kg_call_time time;
    int rc = kg_bench_run(b, 1, &again, &time, ok, err);
    if (rc == KG_OK && *ok)
        rc = kg_bench_same(b, ok, err);
    /* What was left unwritten differs by its poison, which says more than "differs". */
    if (rc == KG_OK && !*ok && b->report->verdict == KG_VERDICT_NONDETERMINISTIC) {
        bool whole;
        rc = kg_bench_compare(b, 1, &whole, err);
    }
    return rc;
}

/* Several times more into the same buffers, with workspace (on a CPU stack and registers, too) as
 * the call before left them, and the outputs poisoned before the last: what skips work because it
 * remembers having done it is found here. Everywhere else a call finds nothing of the one before
 * it, and what remembers is as good as honest. */
static int judge_kept(kg_bench *b, bool *ok, kg_error *err) {
    static const kg_mode often = {.split = KG_SPLIT_SERVED, .keep = true, .warm = 3},
                         kept = {.split = KG_SPLIT_SERVED, .keep = true};
    kg_call_time time;
    int rc = kg_bench_run(b, 0, &often, &time, ok, err);
    if (rc == KG_OK && *ok)
        rc = kg_bench_run(b, 0, &kept, &time, ok, err);
    return rc == KG_OK && *ok ? kg_bench_compare(b, 0, ok, err) : rc;
}

static int judge_sets(kg_bench *b, bool *ok, kg_error *err) {
    size_t n = b->cand->request->all_sets ? b->jc->nsets : 1;
    for (size_t set = 0; set < n; set++) {
        /* In turn into the last set's results, and with all that the last set's call left: it may
         * be taken for the answer to these inputs. */
        const kg_mode mode = {
            .split = KG_SPLIT_SERVED, .stale = set % 2 == 1, .keep = set > 0 && set % 2 == 0};
        kg_call_time time;
        int rc = kg_bench_inputs(b, set, err);
        if (rc == KG_OK)
            rc = kg_bench_run(b, 0, &mode, &time, ok, err);
        if (rc == KG_OK && *ok)
            rc = kg_bench_compare(b, 0, ok, err);
        if (rc == KG_OK && *ok && set == 0)
            rc = judge_again(b, ok, err);
        if (rc == KG_OK && *ok && b->cand->request->all_sets && set == (n > 1))
            rc = judge_kept(b, ok, err);
        if (rc != KG_OK || !*ok)
            return rc;
        b->cr->sets++;
    }
    return KG_OK;
}

static void set_compile_verdict(kg_bench *b, int rc, const kg_buf *messages, const kg_error *err) {
    const char *text = messages->len ? messages->data : err->msg;
    b->cr->verdict = rc == KG_ECOMPILE ? KG_VERDICT_COMPILE_ERROR : KG_VERDICT_POLICY;
    settle(b->report, b->cr->verdict, text);
}

/* What runs, with the device to ourselves. */
static int judge_image(kg_bench *b, const kg_buf *image, bool *ok, kg_error *err) {
    int rc = b->j->device->begin(b->j, err);
    if (rc != KG_OK)
        return rc;
    int64_t start = kg_now_ns();
    b->cr->image = kg_xxh128(image->data, image->len);
    rc = kg_bench_open(b, image, ok, err);
    if (rc == KG_OK && *ok)
        rc = judge_sets(b, ok, err);
    if (rc == KG_OK && *ok && b->cand->request->reps > 0)
        rc = kg_bench_time(b, ok, err);
    kg_bench_close(b, rc == KG_OK && *ok);
    b->j->device->end(b->j);
    b->report->run_ms += ms_since(start);
    return rc;
}

/* The instance is bound; *ok says whether the Candidate is still in. */
static int judge_bound(kg_bench *b, bool *ok, kg_error *err) {
    kg_buf image, messages;
    kg_buf_init(&image, 0);
    kg_buf_init(&messages, 32 << 10);
    kg_error why = {0};
    int64_t start = kg_now_ns();
    int rc = b->j->device->image(b->j, b->cand, b->jc, b->inst, &image, &messages, &why);
    b->report->compile_ms += ms_since(start);
    *ok = rc == KG_OK;
    if (rc == KG_OK) {
        rc = judge_image(b, &image, ok, err);
        if (rc == KG_OK && *ok)
            rc = kg_bench_elsewhere(b, &image, ok, err);
    } else if (rc == KG_ECOMPILE || rc == KG_EUNSUPPORTED) {
        set_compile_verdict(b, rc, &messages, &why);
        rc = KG_OK;
    } else
        kg_fail(err, rc, "%s", why.msg);
    kg_buf_free(&image);
    kg_buf_free(&messages);
    return rc;
}

static int judge_case(kg_judge *j, const kg_candidate *c, size_t index, kg_judge_report *r,
                      bool *ok, kg_error *err) {
    kg_case_report *cr = &r->cases[index];
    kg_bench *b = calloc(1, sizeof *b);
    if (!b)
        return kg_fail(err, KG_ENOMEM, "a judgement: out of memory");
    *b = (kg_bench){.j = j, .jc = &j->cases[index], .cand = c, .report = r, .cr = cr};
    kg_error why = {0};
    int rc = kg_candidate_bind(j, c, b->jc, &b->inst, &why);
    *ok = true;
    cr->reached = true;
    cr->allclose = true;
    if (rc == KG_ENOTFOUND) {
        cr->why = strdup(why.msg);
        rc = KG_OK;
    } else if (rc != KG_OK && plan_fault(rc)) {
        cr->judged = true;
        kg_condemn(b, KG_VERDICT_PLAN_ERROR, "%s", why.msg);
        *ok = false;
        rc = KG_OK;
    } else if (rc != KG_OK) {
        kg_fail(err, rc, "%s", why.msg);
    } else {
        cr->judged = true;
        if (b->jc->disagreement) {
            kg_condemn(b, KG_VERDICT_WRONG_SHAPE_OR_DTYPE, "%s", b->jc->disagreement);
            *ok = false;
        } else {
            rc = judge_bound(b, ok, err);
        }
    }
    kg_instance_free(b->inst);
    free(b);
    return rc;
}

static int check_ready(const kg_judge *j, kg_error *err) {
    if (j->ncases == 0)
        return kg_fail(err, KG_EINVAL, "the judge has no Case");
    for (size_t i = 0; i < j->ncases; i++)
        if (j->cases[i].nsets == 0)
            return kg_fail(err, KG_EINVAL, "Case %zu has no input set", i);
    return KG_OK;
}

static int judge_cases(kg_judge *j, const kg_candidate *c, kg_judge_report *r, kg_error *err) {
    bool ok = true;
    size_t judged = 0;
    int rc = KG_OK;
    r->verdict = KG_VERDICT_PASS;
    for (size_t i = 0; rc == KG_OK && ok && i < j->ncases; i++) {
        rc = judge_case(j, c, i, r, &ok, err);
        judged += r->cases[i].judged;
    }
    if (rc != KG_OK || judged > 0)
        return rc;
    char text[600];
    snprintf(text, sizeof text, "the plan is for none of the Cases; for the first: %s",
             r->cases[0].why ? r->cases[0].why : "?");
    settle(r,
           kg_arch_fits(c->plan->min_arch, j->device->target, &j->constants)
               ? KG_VERDICT_PLAN_ERROR
               : KG_VERDICT_LAUNCH_ERROR,
           text);
    return KG_OK;
}

int kg_judge_run(kg_judge *j, const kg_judge_request *request, kg_judge_report **out,
                 kg_error *err) {
    kg_judge_report *r = NULL;
    kg_candidate c = {0};
    int rc = check_ready(j, err);
    if (rc == KG_OK)
        rc = j->device->ready(j, err);
    if (rc == KG_OK)
        rc = new_report(j, request, &r, err);
    if (rc != KG_OK)
        return rc;
    kg_error why = {0};
    rc = kg_candidate_read(j, request, &c, &why);
    if (rc != KG_OK && plan_fault(rc)) {
        settle(r, KG_VERDICT_PLAN_ERROR, why.msg);
        *out = r;
        return KG_OK;
    }
    if (rc == KG_OK)
        rc = kg_candidate_id(request->text, request->n, c.plan, &c.tuning, r->id, &why);
    if (rc == KG_OK && !(r->tunables = kg_tuning_to_json(c.plan, &c.tuning)))
        rc = kg_fail(&why, KG_ENOMEM, "tunables: out of memory");
    if (rc == KG_OK) {
        r->flags = c.plan->flags;
        rc = judge_cases(j, &c, r, &why);
        if (j->device->done)
            j->device->done(j);
    }
    kg_candidate_clear(&c);
    if (rc != KG_OK) {
        kg_judge_report_free(r);
        return kg_fail(err, rc, "%s", why.msg);
    }
    *out = r;
    return KG_OK;
}
