/* A search that asks a proposer, out of and into JSON: what api_search.c hands over. */
#ifndef KG_TUNE_API_LOOP_H
#define KG_TUNE_API_LOOP_H

#include "tune/loop.h"
#include "tune/search_judge.h"

/* json: the search option "loop" (csrc/kgen_tune.h). o: budget, jobs, max_candidates and progress
 * are used. *spent: what the Op has cost so far. */
int kg_api_loop(kg_judges *judges, const char *run_dir, const kg_json *json,
                const kg_search_options *o, kg_journal *journal, kg_loop_result *out,
                kg_spend *spent, kg_error *err);

/* What came of it: the result's "asked". */
kg_json *kg_api_asked(const kg_loop_result *r, const kg_spend *spent);

#endif
