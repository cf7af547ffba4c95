/* What an attempt came to: whether it is worth another, and what it may have cost. */
#ifndef KG_TUNE_LLM_OUTCOME_H
#define KG_TUNE_LLM_OUTCOME_H

#include "sys/http.h"
#include "tune/llm_internal.h"

typedef struct kg_llm_outcome {
    kg_llm_end end;
    bool again;       /* worth another attempt */
    bool adapted;     /* the dialect changed: again at once, and no failure */
    bool hold;        /* everybody waits, not this question alone */
    bool unreachable; /* no byte of it got there: the network, not the request, is to blame */
    bool paid;        /* the worst case may have been billed, unless usage says what was */
    char message[512];
} kg_llm_outcome;

/* proven: this endpoint has answered before, so a strange answer is a passing fault. */
void kg_llm_judge(const kg_llm_options *o, const kg_http_result *r, kg_llm_stream *s, bool proven,
                  kg_llm_dialect *d, kg_llm_outcome *out);

#endif
