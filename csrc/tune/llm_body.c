/* The request, and the differences between servers. What a server takes is guessed from its name
 * once and corrected by what it refuses: OpenAI's reasoning models know max_completion_tokens and
 * refuse a temperature, most others know max_tokens alone, some chat templates have no system
 * role. */
#define _GNU_SOURCE
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tune/llm_internal.h"

void kg_llm_dialect_begin(const kg_llm_options *o, kg_llm_dialect *d) {
    *d = (kg_llm_dialect){.completion_tokens = strstr(o->host, "api.openai.com") != NULL,
                          .temperature = true,
                          .system = true,
                          .effort = true,
                          .stream = o->stream,
                          .stream_usage = true,
                          .max_tokens = o->max_tokens};
}

static void add_message(kg_json *list, const char *role, const char *text) {
    kg_json *m = kg_json_new_object();
    kg_json_set_str(m, "role", role);
    kg_json_set_str(m, "content", text);
    kg_json_push(list, m);
}

static int merged(const char *system, const char *user, kg_json *list, kg_error *err) {
    kg_buf both;
    kg_buf_init(&both, 0);
    kg_buf_printf(&both, "%s\n\n%s", system, user);
    int rc = kg_buf_check(&both, "a prompt", err);
    if (!rc)
        add_message(list, "user", both.data);
    kg_buf_free(&both);
    return rc;
}

int kg_llm_body(const kg_llm_options *o, const kg_llm_dialect *d, const char *system,
                const char *user, kg_buf *out, kg_error *err) {
    kg_json *root = kg_json_new_object(), *messages = kg_json_new_array();
    int rc = KG_OK;
    if (system && *system && !d->system)
        rc = merged(system, user, messages, err);
    else {
        if (system && *system)
            add_message(messages, "system", system);
        add_message(messages, "user", user);
    }
    kg_json_set_str(root, "model", o->model);
    kg_json_set(root, "messages", messages);
    kg_json_set_int(root, d->completion_tokens ? "max_completion_tokens" : "max_tokens",
                    d->max_tokens);
    if (d->temperature && !isnan(o->temperature))
        kg_json_set_double(root, "temperature", o->temperature);
    if (d->effort && o->effort)
        kg_json_set_str(root, "reasoning_effort", o->effort);
    if (d->stream && d->stream_usage) {
        kg_json *options = kg_json_new_object();
        kg_json_set_bool(options, "include_usage", true);
        kg_json_set(root, "stream_options", options);
    }
    kg_json_set_bool(root, "stream", d->stream);
    if (!rc) {
        kg_json_canonical(root, out);
        rc = kg_buf_check(out, "a request", err);
    }
    kg_json_free(root);
    return rc;
}

/* The largest number in the complaint that is below the present limit: "the valid range of
 * max_tokens is [1, 8192]". 0: none. */
static int64_t smaller_limit(const char *text, int64_t present) {
    int64_t best = 0;
    for (const char *p = text; *p;) {
        if (!isdigit((unsigned char)*p)) {
            p++;
            continue;
        }
        char *end;
        long long v = strtoll(p, &end, 10);
        if (v > best && v < present)
            best = v;
        p = end;
    }
    return best;
}

static bool drop(bool *flag, bool named) {
    if (!named || !*flag)
        return false;
    *flag = false;
    return true;
}

static bool names(const char *text, const char *word) {
    return strcasestr(text, word) != NULL;
}

/* A limit below this is no limit of answers but some other number in the message. */
#define LEAST_TOKENS 256
/* A server counts its template, too. */
#define CONTEXT_MARGIN 64

/* The number that stands before a word; 0: none. */
static int64_t number_before(const char *text, const char *word) {
    const char *at = strcasestr(text, word);
    const char *p = at;
    while (p && p > text && isdigit((unsigned char)p[-1]))
        p--;
    return p && p < at ? strtoll(p, NULL, 10) : 0;
}

/* "maximum context length is 32768 tokens. However, you requested 50000 tokens (17232 in the
 * messages, ...": what the prompt leaves; half of the present limit when that is not said. */
static int64_t context_left(const char *text, int64_t present) {
    const char *at = strcasestr(text, "maximum context");
    int64_t whole = 0, used = number_before(text, " in the messages");
    at += strcspn(at, "0123456789");
    whole = strtoll(at, NULL, 10);
    if (!used)
        used = number_before(text, " input tokens");
    int64_t left = whole - used - CONTEXT_MARGIN;
    return whole > 0 && used > 0 && left < present ? left : present / 2;
}

static bool adapt_tokens(kg_llm_dialect *d, const char *text) {
    bool both = names(text, "max_completion_tokens"), context = names(text, "maximum context");
    if (!both && !context && !names(text, "max_tokens"))
        return false;
    bool unknown = names(text, "unsupported") || names(text, "not supported") ||
                   names(text, "unrecognized") || names(text, "unknown") || names(text, "extra") ||
                   names(text, "not permitted");
    if (both && !d->switched && (!d->completion_tokens || unknown)) {
        d->completion_tokens = !d->completion_tokens;
        d->switched = true;
        return true;
    }
    int64_t less = context ? context_left(text, d->max_tokens) : smaller_limit(text, d->max_tokens);
    if (less < LEAST_TOKENS)
        return false;
    d->max_tokens = less;
    return true;
}

bool kg_llm_adapt(kg_llm_dialect *d, const char *text) {
    bool role = names(text, "system") && (names(text, "role") || names(text, "message") ||
                                          names(text, "prompt") || names(text, "instruction"));
    return drop(&d->stream_usage, names(text, "stream_options") || names(text, "include_usage")) ||
           drop(&d->temperature, names(text, "temperature")) ||
           drop(&d->effort, names(text, "reasoning")) || adapt_tokens(d, text) ||
           drop(&d->system, role) || drop(&d->stream, names(text, "stream"));
}
