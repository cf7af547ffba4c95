/* The search's evaluator over a real judge. */
#ifndef KG_TUNE_SEARCH_JUDGE_H
#define KG_TUNE_SEARCH_JUDGE_H

#include "tune/judge.h"
#include "tune/search.h"

/* judge is borrowed, and must outlive the evaluator; its Cases and sets must not change meanwhile.
 */
kg_evaluator kg_judge_evaluator(kg_judge *judge);

#endif
