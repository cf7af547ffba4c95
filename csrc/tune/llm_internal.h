/* What the files of the client share: requests, answers as they come in, the budget. */
#ifndef KG_TUNE_LLM_INTERNAL_H
#define KG_TUNE_LLM_INTERNAL_H

#include "base/buf.h"
#include "tune/llm.h"

/* --- llm_body.c: what is asked, and how a server wants it --- */

/* What this server was found to take; changed when it refuses something by name. */
typedef struct kg_llm_dialect {
    bool completion_tokens; /* max_completion_tokens in place of max_tokens ... */
    bool switched;          /* ... or back; once */
    bool temperature, system, effort, stream, stream_usage;
    int64_t max_tokens;
} kg_llm_dialect;

void kg_llm_dialect_begin(const kg_llm_options *o, kg_llm_dialect *d);
int kg_llm_body(const kg_llm_options *o, const kg_llm_dialect *d, const char *system,
                const char *user, kg_buf *out, kg_error *err);
/* Takes what the server refused (the text of an error 400) out of the dialect; false: it complained
 * of something else. Each call that returns true leaves less to refuse. */
bool kg_llm_adapt(kg_llm_dialect *d, const char *complaint);

/* --- llm_stream.c: what comes --- */

/* A stream is cut when it wrote more than so many bytes a token that was asked for. Text and code
 * have 3 to 5 bytes a token, and the longest token of any size of vocabulary is mostly blanks: an
 * honest server ends at max_tokens long before. */
#define KG_LLM_OVERRUN_BYTES 16

enum {
    KG_LLM_OVERRUN_SLACK = 4096,  /* bytes, for small max_tokens */
    KG_LLM_OVERRUN_TOKENS = 64,   /* by the server's own count, for one that counts its template */
    KG_LLM_MAX_EVENT = 16 << 20,  /* one JSON document */
    KG_LLM_MAX_ANSWER = 50 << 20, /* text of an answer, reasoning included */
    KG_LLM_MAX_BODY = 128 << 20   /* with all that is around it */
};

typedef enum kg_llm_state {
    KG_LLM_WHOLE, /* an answer, finished by the model */
    KG_LLM_CUT,   /* ended before the model did, or garbage in it */
    KG_LLM_EMPTY, /* well-formed, without any choice */
    KG_LLM_ERROR, /* an error object; its text is in `error` */
    KG_LLM_TOO_BIG,
    KG_LLM_OVERRUN, /* a stream that went on past max_tokens */
    KG_LLM_STRANGE  /* no answer of a chat completion at all */
} kg_llm_state;

typedef struct kg_llm_stream {
    bool begun, sse, done, choice, garbage, too_big, overrun, tool_calls;
    size_t total;
    size_t written;     /* bytes of text that the model wrote, whatever for */
    int64_t max_tokens; /* what was asked for; 0: no bound */
    kg_buf line;        /* of SSE, not ended yet; else the whole document */
    kg_buf event;       /* data lines of one event */
    kg_buf answer, reasoning, error;
    char finish[24];
    kg_llm_usage usage;
} kg_llm_stream;

void kg_llm_stream_init(kg_llm_stream *s);
void kg_llm_stream_free(kg_llm_stream *s);
/* false: too much came, or too much was written, and no more is wanted. */
bool kg_llm_stream_feed(kg_llm_stream *s, const char *bytes, size_t n);
/* After the last byte: parts <think> from the answer and says what came. */
kg_llm_state kg_llm_stream_end(kg_llm_stream *s);
/* Tokens that were written, by kgen's own count of text (4 bytes a token) or the server's. */
int64_t kg_llm_stream_tokens(const kg_llm_stream *s);

/* --- llm_budget.c --- */

typedef struct kg_llm_budget {
    kg_spend limit, spent, reserved;
} kg_llm_budget;

/* At most: a token is at least a byte of what was sent. */
kg_spend kg_llm_worst(const kg_llm_options *o, int64_t max_tokens, size_t prompt_bytes);
kg_spend kg_llm_cost(const kg_llm_options *o, const kg_llm_usage *usage);
typedef enum kg_llm_room { KG_LLM_FITS, KG_LLM_LATER, KG_LLM_NEVER } kg_llm_room;
/* Reserves when it fits. Later: it will fit if what is under way costs less than its worst. */
kg_llm_room kg_llm_reserve(kg_llm_budget *b, const kg_spend *worst);
void kg_llm_settle(kg_llm_budget *b, const kg_spend *worst, const kg_spend *cost);
/* Calls under way are counted: "2 of 40 calls, 31245 of 2000000 tokens, 0.0412 of 2 USD" */
void kg_llm_budget_text(const kg_llm_budget *b, char *out, size_t n);

#endif
