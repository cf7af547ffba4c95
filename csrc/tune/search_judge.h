/* The search's evaluator over real judges. */
#ifndef KG_TUNE_SEARCH_JUDGE_H
#define KG_TUNE_SEARCH_JUDGE_H

#include "tune/judge.h"
#include "tune/search.h"

typedef struct kg_judges {
    kg_judge *const *items;
    size_t n;
} kg_judges;

/* Judges as many Candidates at once as there are judges, one a device. All must be for one Op, one
 * architecture and the same Cases (KG_EINVAL). Borrowed, and must outlive the evaluator; Cases and
 * sets must not change meanwhile. */
int kg_judges_evaluator(kg_judges *judges, kg_evaluator *out, kg_error *err);

#endif
