/* Replies and amounts as JSON: what journals and the C API show of them. */
#ifndef KG_TUNE_LLM_JSON_H
#define KG_TUNE_LLM_JSON_H

#include "tune/llm.h"

kg_json *kg_spend_json(const kg_spend *s); /* {"calls", "tokens", "nano_usd"} */
/* Leaves what is absent; negative amounts count as 0. */
void kg_spend_read(const kg_json *j, kg_spend *out);
kg_json *kg_llm_usage_json(const kg_llm_usage *u); /* NULL when it is not known */
const char *kg_llm_end_name(kg_llm_end end);

#endif
