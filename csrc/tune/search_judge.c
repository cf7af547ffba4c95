/* From the search's levels to what the judge is asked: how many sets, how many timed calls. */
#include "tune/search_judge.h"

#include <stdio.h>
#include <string.h>

/* Timed calls a Case: enough for a median that drops a slow half; for one that tells 10% apart on a
 * shared machine; and for the p10 and p90 that a Record shows. */
static const uint32_t reps_of[] = {
    [KG_LEVEL_QUICK] = 5, [KG_LEVEL_LONG] = 15, [KG_LEVEL_FULL] = 41};

static kg_judge_request request_of(const kg_source *source, const kg_tuning *tuning,
                                   kg_level level) {
    return (kg_judge_request){.text = source->text,
                              .n = source->n,
                              .name = source->name,
                              .tuning = tuning,
                              .all_sets = level == KG_LEVEL_FULL,
                              .reps = reps_of[level]};
}

/* Images are of an architecture, which all have. */
static int prepare(void *ctx, const kg_source *source, const kg_tuning *tuning, kg_error *err) {
    const kg_judges *judges = ctx;
    kg_judge_request request = request_of(source, tuning, KG_LEVEL_QUICK);
    return kg_judge_prepare(judges->items[0], &request, err);
}

static int fits(void *ctx, const kg_source *source, const kg_tuning *tuning, kg_error *err) {
    const kg_judges *judges = ctx;
    return kg_judge_fits(judges->items[0], source->plan, tuning, err);
}

static int judge(void *ctx, size_t lane, const kg_source *source, const kg_tuning *tuning,
                 kg_level level, kg_outcome *out, kg_error *err) {
    const kg_judges *judges = ctx;
    kg_judge *j = judges->items[lane];
    kg_judge_report *report = NULL;
    kg_judge_request request = request_of(source, tuning, level);
    int rc = kg_judge_run(j, &request, &report, err);
    if (rc)
        return rc;
    *out = (kg_outcome){.verdict = kg_judge_verdict(report)};
    snprintf(out->message, sizeof out->message, "%s", kg_judge_message(report));
    for (size_t i = 0; i < kg_judge_cases(j); i++)
        out->time_ns[i] = kg_judge_time(report, i);
    if (level == KG_LEVEL_FULL)
        rc = kg_judge_record(report, &out->record, err);
    kg_judge_report_free(report);
    return rc;
}

static int profile(void *ctx, const char *id, kg_buf *out, kg_error *err) {
    const kg_judges *judges = ctx;
    return kg_judge_profile(judges->items[0], id, out, err);
}

static int listing(void *ctx, const kg_source *source, const kg_tuning *tuning, kg_buf *out,
                   kg_error *err) {
    const kg_judges *judges = ctx;
    kg_judge_request request = request_of(source, tuning, KG_LEVEL_QUICK);
    return kg_judge_listing(judges->items[0], &request, NULL, out, err);
}

static int check_same(const kg_judge *a, const kg_judge *b, size_t at, kg_error *err) {
    bool same = a != b && strcmp(kg_judge_op(a)->name, kg_judge_op(b)->name) == 0 &&
                strcmp(kg_judge_arch(a), kg_judge_arch(b)) == 0 &&
                kg_judge_cases(a) == kg_judge_cases(b);
    for (size_t i = 0; same && i < kg_judge_cases(a); i++)
        same = strcmp(kg_judge_case(a, i)->hash, kg_judge_case(b, i)->hash) == 0;
    return same
               ? KG_OK
               : kg_fail(err, KG_EINVAL,
                         "judge %zu is not like the first: several judges of one search are for "
                         "one Op, one architecture and the same Cases, each on a device of its own",
                         at);
}

int kg_judges_evaluator(kg_judges *judges, kg_evaluator *out, kg_error *err) {
    if (judges->n < 1 || judges->n > KG_MAX_LANES)
        return kg_fail(err, KG_EINVAL, "a search has 1 to %d judges, not %zu", KG_MAX_LANES,
                       judges->n);
    for (size_t i = 1; i < judges->n; i++) {
        int rc = check_same(judges->items[0], judges->items[i], i, err);
        if (rc)
            return rc;
    }
    *out = (kg_evaluator){.ctx = judges,
                          .ncases = kg_judge_cases(judges->items[0]),
                          .lanes = judges->n,
                          .fits = fits,
                          .prepare = prepare,
                          .judge = judge,
                          .profile = kg_judge_has_profiler(judges->items[0]) ? profile : NULL,
                          .listing = listing};
    return KG_OK;
}
