/* From the search's levels to what the judge is asked: how many sets, how many timed calls. */
#include "tune/search_judge.h"

#include <stdio.h>

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

static int prepare(void *ctx, const kg_source *source, const kg_tuning *tuning, kg_error *err) {
    kg_judge_request request = request_of(source, tuning, KG_LEVEL_QUICK);
    return kg_judge_prepare(ctx, &request, err);
}

static int judge(void *ctx, const kg_source *source, const kg_tuning *tuning, kg_level level,
                 kg_outcome *out, kg_error *err) {
    kg_judge *j = ctx;
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

kg_evaluator kg_judge_evaluator(kg_judge *j) {
    return (kg_evaluator){
        .ctx = j, .ncases = kg_judge_cases(j), .prepare = prepare, .judge = judge};
}
