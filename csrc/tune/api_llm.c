/* The C API over the model client, and the JSON of what it gives. */
#include "kgen_llm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/stop.h"
#include "sys/proc.h"
#include "tune/llm_json.h"

kg_json *kg_spend_json(const kg_spend *s) {
    kg_json *o = kg_json_new_object();
    kg_json_set_int(o, "calls", s->calls);
    kg_json_set_int(o, "tokens", s->tokens);
    kg_json_set_int(o, "nano_usd", s->nano_usd);
    return o;
}

static int64_t amount(const kg_json *j, const char *key) {
    int64_t v = 0;
    return kg_json_int(kg_json_get(j, key), key, &v, NULL) || v < 0 ? 0 : v;
}

void kg_spend_read(const kg_json *j, kg_spend *out) {
    *out = (kg_spend){amount(j, "calls"), amount(j, "tokens"), amount(j, "nano_usd")};
}

kg_json *kg_llm_usage_json(const kg_llm_usage *u) {
    if (!u->known)
        return NULL;
    kg_json *o = kg_json_new_object();
    kg_json_set_int(o, "prompt", u->prompt);
    kg_json_set_int(o, "cached", u->cached);
    kg_json_set_int(o, "completion", u->completion);
    kg_json_set_int(o, "reasoning", u->reasoning);
    return o;
}

const char *kg_llm_end_name(kg_llm_end end) {
    static const char *const names[] = {[KG_LLM_ANSWERED] = "answered",
                                        [KG_LLM_FAILED] = "failed",
                                        [KG_LLM_NO_BUDGET] = "no_budget",
                                        [KG_LLM_STOPPED] = "stopped",
                                        [KG_LLM_FATAL] = "fatal"};
    return names[end];
}

static kg_json *reply_json(const kg_llm_reply *r) {
    kg_json *o = kg_json_new_object(), *usage = kg_llm_usage_json(&r->usage);
    kg_json_set_str(o, "id", r->id);
    kg_json_set_str(o, "end", kg_llm_end_name(r->end));
    kg_json_set_str(o, "answer", r->answer);
    kg_json_set_str(o, "reasoning", r->reasoning);
    kg_json_set_str(o, "finish", r->finish);
    kg_json_set_str(o, "message", r->message);
    kg_json_set_bool(o, "tool_calls", r->tool_calls);
    if (usage)
        kg_json_set(o, "usage", usage);
    else
        kg_json_set_str(o, "usage", NULL);
    kg_json_set_int(o, "attempt", r->attempt);
    kg_json_set(o, "charged", kg_spend_json(&r->charged));
    return o;
}

/* What the hooks saw; of the client's thread until it is closed. */
typedef struct seen {
    kg_json *attempts, *sent;
} seen;

static int sending(void *ctx, const char *id, int attempt, const kg_spend *reserved,
                   kg_error *err) {
    seen *s = ctx;
    kg_json *o = kg_json_new_object();
    kg_json_set_str(o, "id", id);
    kg_json_set_int(o, "attempt", attempt);
    kg_json_set(o, "reserved", kg_spend_json(reserved));
    return kg_json_push(s->sent, o) ? KG_OK : kg_fail(err, KG_ENOMEM, "a request");
}

static int ended(void *ctx, const kg_llm_reply *reply, bool final, kg_error *err) {
    seen *s = ctx;
    if (final)
        return KG_OK;
    return kg_json_push(s->attempts, reply_json(reply)) ? KG_OK
                                                        : kg_fail(err, KG_ENOMEM, "a reply");
}

static int ask_one(kg_llm *c, const kg_json *q, kg_error *err) {
    static const char *const keys[] = {"id", "system", "user", NULL};
    const char *id = NULL, *system = NULL, *user = NULL;
    const kg_json *s = kg_json_get(q, "system");
    int rc = kg_json_only(q, "question", keys, err);
    if (!rc)
        rc = kg_json_str(kg_json_get(q, "id"), "id", &id, err);
    if (!rc)
        rc = kg_json_str(kg_json_get(q, "user"), "user", &user, err);
    if (!rc && s && !kg_json_is_null(s))
        rc = kg_json_str(s, "system", &system, err);
    return rc ? rc : kg_llm_ask(c, id, system, user, err);
}

static int ask_all(kg_llm *c, const kg_json *questions, kg_json *replies, kg_error *err) {
    int rc = KG_OK;
    for (size_t i = 0; !rc && i < kg_json_size(questions); i++)
        rc = ask_one(c, kg_json_at(questions, i), err);
    while (!rc && kg_llm_pending(c) > 0) {
        kg_llm_reply r;
        if (kg_stop_wanted())
            return kg_fail(err, KG_EINTR, "interrupted");
        if (!kg_llm_collect(c, 100, &r))
            continue;
        kg_json_push(replies, reply_json(&r));
        kg_llm_reply_free(&r);
    }
    return rc;
}

/* Takes deadline_ms out of the options, which the client would not know. */
static int read_options(const char *text, kg_json **root, kg_llm_options *o, int64_t *deadline_ms,
                        kg_error *err) {
    int rc = kg_json_parse(text, strlen(text), "llm options", root, err);
    *deadline_ms = 0;
    if (rc)
        return rc;
    const kg_json *given = kg_json_get(*root, "deadline_ms");
    if (!given)
        return kg_llm_options_read(*root, o, err);
    rc = kg_json_int(given, "deadline_ms", deadline_ms, err);
    kg_json *rest = kg_json_new_object();
    for (size_t i = 0; i < kg_json_size(*root); i++) {
        const kg_json *m = kg_json_at(*root, i);
        if (m != given)
            kg_json_set(rest, kg_json_key(m), kg_json_copy(m));
    }
    kg_json_free(*root);
    *root = rest;
    return rc ? rc : kg_llm_options_read(rest, o, err);
}

static int give(int rc, kg_json *result, char **json, kg_error *e, char *err, size_t nerr) {
    return kg_give(kg_json_give(rc, result, json, e), e, err, nerr);
}

int kgen_llm_ask(const char *options, const char *questions, char **json, char *err, size_t nerr) {
    kg_error e = {0};
    kg_json *given = NULL, *list = NULL, *result = kg_json_new_object();
    kg_json *replies = kg_json_new_array();
    kg_llm_options o = {0};
    seen s = {kg_json_new_array(), kg_json_new_array()};
    kg_llm_hooks hooks = {&s, sending, ended};
    kg_llm *c = NULL;
    int64_t deadline_ms = 0;
    kg_spend spent = {0};
    int rc = read_options(options, &given, &o, &deadline_ms, &e);
    if (!rc)
        rc = kg_json_parse(questions, strlen(questions), "questions", &list, &e);
    if (!rc)
        rc = kg_llm_open(&o, &hooks, NULL,
                         deadline_ms > 0 ? kg_now_ns() + deadline_ms * 1000000 : 0, &c, &e);
    if (!rc) {
        rc = ask_all(c, list, replies, &e);
        spent = kg_llm_spent(c);
        kg_llm_close(c);
    }
    kg_json_set(result, "replies", replies);
    kg_json_set(result, "attempts", s.attempts);
    kg_json_set(result, "sent", s.sent);
    kg_json_set(result, "spent", kg_spend_json(&spent));
    kg_llm_options_free(&o);
    kg_json_free(given);
    kg_json_free(list);
    return give(rc, result, json, &e, err, nerr);
}

int kgen_llm_check(const char *options, char **json, char *err, size_t nerr) {
    kg_error e = {0};
    kg_json *given = NULL, *result = kg_json_new_object(), *price = NULL;
    kg_llm_options o = {0};
    int64_t deadline_ms;
    int rc = read_options(options, &given, &o, &deadline_ms, &e);
    if (!rc) {
        kg_json_set_str(result, "host", o.host);
        kg_json_set_str(result, "url", o.url);
        kg_json_set_str(result, "model", o.model);
    }
    if (!rc && o.price.known) {
        price = kg_json_new_object();
        kg_json_set_int(price, "input", o.price.input);
        kg_json_set_int(price, "cached", o.price.cached);
        kg_json_set_int(price, "output", o.price.output);
        kg_json_set_str(price, "as_of", o.price.as_of[0] ? o.price.as_of : NULL);
    }
    if (price)
        kg_json_set(result, "price", price);
    else
        kg_json_set_str(result, "price", NULL);
    kg_llm_options_free(&o);
    kg_json_free(given);
    return give(rc, result, json, &e, err, nerr);
}

int kgen_llm_reach(const char *options, char *err, size_t nerr) {
    kg_error e = {0};
    kg_json *given = NULL;
    kg_llm_options o = {0};
    int64_t deadline_ms;
    int rc = read_options(options, &given, &o, &deadline_ms, &e);
    if (!rc)
        rc = kg_llm_reach(&o, &e);
    kg_llm_options_free(&o);
    kg_json_free(given);
    return kg_give(rc, &e, err, nerr);
}
