/* The C API over the model client, in libkgen.so: for tests and for whoever wants an answer without
 * a Run. Conventions as in kgen_tune.h. */
#ifndef KGEN_LLM_H
#define KGEN_LLM_H

#include "kgen_tune.h"

/* Asks all questions and waits for all replies. options: as tune/llm.h reads them, and
 * "deadline_ms" (0: none). questions: [{"id", "system" or null, "user"}]. The result: {"replies":
 * [{"id", "end": "answered" | "failed" | "no_budget" | "stopped" | "fatal", "answer", "reasoning",
 * "finish", "message", "tool_calls", "usage": {"prompt", "cached", "completion", "reasoning"} or
 * null, "attempt", "charged": {"calls", "tokens", "nano_usd"}}] in the order in which they came,
 * "attempts": [the same of every attempt that was repeated], "sent": [{"id", "attempt",
 * "reserved"}], "spent": {"calls", "tokens", "nano_usd"}}. */
KGEN_API int kgen_llm_ask(const char *options, const char *questions, char **json, char *err,
                          size_t nerr);
/* {"host", "url", "model", "price": {"input", "cached", "output"} in nano-USD a token, or null}:
 * the options as they are understood, without asking anybody. */
KGEN_API int kgen_llm_check(const char *options, char **json, char *err, size_t nerr);

/* Whether the endpoint of these options can be reached: asks no model, sends no key, costs nothing.
 * A negative status says why not. */
KGEN_API int kgen_llm_reach(const char *options, char *err, size_t nerr);

#endif
