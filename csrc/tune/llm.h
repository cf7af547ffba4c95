/* Chat completions from an OpenAI-compatible endpoint: several questions in flight on a thread of
 * its own, retries, and a budget that is never exceeded because the worst case of every request is
 * reserved before it is sent; a stream that goes on past it is cut.
 *
 * The key comes from the environment alone; wherever it turns up in what a server says it is
 * replaced by "[key]" before anybody sees it. What costs and what came is told through hooks before
 * a request leaves and before its answer is used, so that a journal can be kept that survives a
 * kill at any point. */
#ifndef KG_TUNE_LLM_H
#define KG_TUNE_LLM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/json.h"

/* An amount, or a limit (0 there: none). A call is one request that was sent. */
typedef struct kg_spend {
    int64_t calls, tokens, nano_usd;
} kg_spend;

/* Nano-USD a token. */
typedef struct kg_llm_price {
    bool known;
    int64_t input, cached, output;
    char as_of[24]; /* when the table was made, as it says; for people */
} kg_llm_price;

#define KG_LLM_MAX_IN_FLIGHT 64

typedef struct kg_llm_options {
    char *url, *host; /* of the chat completions; https://host:port for people */
    char *model, *key;
    char **headers; /* "Name: value", NULL at the end; Authorization among them */
    size_t nheaders;
    char **secrets; /* the key, and header values out of the environment: never to be told */
    size_t nsecrets;
    char *proxy, *ca_file, *effort;
    bool stream;
    int in_flight, retries;
    int64_t max_tokens; /* of an answer, its reasoning included */
    double temperature; /* NaN: the server's */
    int64_t connect_ms, first_byte_ms, idle_ms, total_ms, backoff_ms;
    uint64_t seed; /* of the jitter */
    kg_spend limit;
    kg_llm_price price;
} kg_llm_options;

/* Reads {"endpoint", "model", "key_env", "headers": ["Name: value" or "Name: env:VARIABLE"],
 * "proxy", "ca", "effort", "stream", "in_flight", "retries", "max_tokens", "temperature",
 * "connect_ms", "first_byte_ms", "idle_ms", "total_ms", "backoff_ms", "seed", "calls", "tokens",
 * "usd", "prices": [PATH]}; all but model may be absent. Later price files come before earlier
 * ones. *out is released with kg_llm_options_free, also after a failure. */
int kg_llm_options_read(const kg_json *json, kg_llm_options *out, kg_error *err);
void kg_llm_options_free(kg_llm_options *o);

/* Whether something answers HTTP at the endpoint's host: a GET without key, headers of the user or
 * text, whatever its status; costs nothing. KG_EENV: it cannot be reached, KG_EINVAL: no such URL
 * or no trusted certificate. Takes up to twice connect_ms. */
int kg_llm_reach(const kg_llm_options *o, kg_error *err);

/* The price of a model in a price table (docs/formats.md); *out stays when the table lacks it. */
int kg_llm_price_find(const char *path, const char *model, kg_llm_price *out, kg_error *err);

typedef struct kg_llm_usage {
    bool known; /* else the server did not say */
    int64_t prompt, cached, completion, reasoning;
} kg_llm_usage;

typedef enum kg_llm_end {
    KG_LLM_ANSWERED,  /* text came; finish says whether it was cut by its length */
    KG_LLM_FAILED,    /* no answer to this question; others may fare better */
    KG_LLM_NO_BUDGET, /* its worst case does not fit what is left */
    KG_LLM_STOPPED,   /* the deadline of all, or kg_stop_wanted */
    KG_LLM_FATAL      /* no question can be answered: key, model, endpoint, certificate */
} kg_llm_end;

typedef struct kg_llm_reply {
    char id[64];
    kg_llm_end end;
    char *answer, *reasoning; /* empty, never NULL */
    char finish[24];          /* "stop", "length" ... */
    char message[512];        /* what went wrong; empty when answered */
    bool tool_calls;          /* it asked for tools, which there are none of */
    kg_llm_usage usage;
    kg_spend charged; /* this attempt */
    int attempt;      /* from 1; 0: it was not sent */
    bool unreachable; /* of KG_LLM_FATAL: there is no way to the endpoint from here */
    double seconds;
} kg_llm_reply;

void kg_llm_reply_free(kg_llm_reply *r);

/* Called on the client's thread. */
typedef struct kg_llm_hooks {
    void *ctx;
    /* Before a request leaves; a status ends the question with that message. */
    int (*sending)(void *ctx, const char *id, int attempt, const kg_spend *reserved, kg_error *err);
    /* After an attempt, also after one that is repeated (then final is false). A status ends the
     * question as KG_LLM_FATAL: what came could not be kept. */
    int (*ended)(void *ctx, const kg_llm_reply *reply, bool final, kg_error *err);
} kg_llm_hooks;

typedef struct kg_llm kg_llm;

/* options are borrowed until kg_llm_close. spent: of an earlier life. deadline_ns: kg_now_ns after
 * which nothing is sent and nothing awaited; 0: none. */
int kg_llm_open(const kg_llm_options *options, const kg_llm_hooks *hooks, const kg_spend *spent,
                int64_t deadline_ns, kg_llm **out, kg_error *err);
/* Ends what is under way; what was reserved for it stays spent. */
void kg_llm_close(kg_llm *c);
/* Queues a question; system may be NULL. id is at most 63 bytes. */
int kg_llm_ask(kg_llm *c, const char *id, const char *system, const char *user, kg_error *err);
/* Waits at most wait_ms; true: *out is a reply, in the order in which they came. */
bool kg_llm_collect(kg_llm *c, int wait_ms, kg_llm_reply *out);
size_t kg_llm_pending(kg_llm *c); /* asked and not collected */
kg_spend kg_llm_spent(kg_llm *c);

#endif
