/* The proposer `llm`: the client's hooks write the journal, on the client's thread, so that an
 * answer that came is kept however the Run ends. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tune/llm_json.h"
#include "tune/propose.h"

typedef struct proposer {
    kg_llm *client;
    kg_journal *journal;
    const kg_llm_options *options;
    char op[128];
} proposer;

static int sending(void *ctx, const char *id, int attempt, const kg_spend *reserved,
                   kg_error *err) {
    proposer *p = ctx;
    kg_json *e = kg_json_new_object();
    kg_json_set_str(e, "op", p->op);
    kg_json_set_str(e, "prompt", id);
    kg_json_set_int(e, "attempt", attempt);
    kg_json_set_str(e, "host", p->options->host);
    kg_json_set_str(e, "model", p->options->model);
    kg_json_set(e, "reserved", kg_spend_json(reserved));
    return kg_journal_add(p->journal, "send", e, err);
}

static int ended(void *ctx, const kg_llm_reply *r, bool final, kg_error *err) {
    proposer *p = ctx;
    bool answered = r->end == KG_LLM_ANSWERED;
    kg_json *e = kg_json_new_object(), *usage = kg_llm_usage_json(&r->usage);
    kg_json_set_str(e, "op", p->op);
    kg_json_set_str(e, "prompt", r->id);
    kg_json_set_int(e, "attempt", r->attempt);
    kg_json_set(e, "charged", kg_spend_json(&r->charged));
    kg_json_set_double(e, "seconds", r->seconds);
    if (usage)
        kg_json_set(e, "usage", usage);
    if (answered) {
        kg_json_set_str(e, "name", r->id);
        kg_json_set_str(e, "text", r->answer);
        kg_json_set_str(e, "reasoning", r->reasoning);
        kg_json_set_str(e, "finish", r->finish);
        kg_json_set_bool(e, "tool_calls", r->tool_calls);
    } else {
        kg_json_set_str(e, "end", kg_llm_end_name(r->end));
        kg_json_set_bool(e, "final", final);
        kg_json_set_str(e, "message", r->message);
    }
    return kg_journal_add(p->journal, answered ? "answer" : "failed", e, err);
}

static int ask(void *ctx, const char *id, const char *system, const char *user, kg_error *err) {
    proposer *p = ctx;
    return kg_llm_ask(p->client, id, system, user, err);
}

static int collect(void *ctx, int wait_ms, kg_proposal *out, kg_error *err) {
    proposer *p = ctx;
    (void)err;
    kg_llm_reply r;
    if (!kg_llm_collect(p->client, wait_ms, &r))
        return KG_ETIMEOUT;
    *out = (kg_proposal){.answered = r.end == KG_LLM_ANSWERED,
                         .again = r.end == KG_LLM_NO_BUDGET || r.end == KG_LLM_STOPPED ||
                                  r.end == KG_LLM_FATAL,
                         .fatal = r.end == KG_LLM_FATAL,
                         .unreachable = r.end == KG_LLM_FATAL && r.unreachable,
                         .out_of_budget = r.end == KG_LLM_NO_BUDGET || r.end == KG_LLM_STOPPED};
    snprintf(out->prompt, sizeof out->prompt, "%s", r.id);
    snprintf(out->message, sizeof out->message, "%s", r.message);
    kg_llm_reply_free(&r);
    return KG_OK;
}

const char *kg_answer_oddity(bool tool_calls, const char *finish) {
    if (tool_calls)
        return "- the answer calls a tool; there are none, answer in text\n";
    if (!strcmp(finish, "length"))
        return "- the answer was cut at its limit of tokens; think and answer shorter\n";
    return "";
}

static void close_proposer(void *ctx) {
    proposer *p = ctx;
    kg_llm_close(p->client);
    free(p);
}

static bool text_is(const kg_json *e, const char *key, const char *want) {
    const char *s;
    return !kg_json_str(kg_json_get(e, key), key, &s, NULL) && !strcmp(s, want);
}

static void add(kg_spend *to, const kg_json *amount, int sign) {
    kg_spend s;
    kg_spend_read(amount, &s);
    to->calls += sign * s.calls;
    to->tokens += sign * s.tokens;
    to->nano_usd += sign * s.nano_usd;
}

kg_spend kg_journal_spent(const kg_journal *journal, const char *op) {
    kg_spend spent = {0};
    const size_t n = kg_journal_size(journal);
    for (size_t i = 0; i < n; i++) {
        const kg_json *e = kg_journal_at(journal, i);
        bool came = text_is(e, "kind", "answer") || text_is(e, "kind", "failed");
        if (!text_is(e, "op", op) || !(came || text_is(e, "kind", "send")))
            continue;
        if (!came) {
            add(&spent, kg_json_get(e, "reserved"), 1);
            continue;
        }
        add(&spent, kg_json_get(e, "charged"), 1);
        /* Its reservation is settled: the newest `send` of the same prompt and attempt. */
        int64_t attempt = 0, a;
        const char *id = "";
        kg_json_str(kg_json_get(e, "prompt"), "prompt", &id, NULL);
        kg_json_int(kg_json_get(e, "attempt"), "attempt", &attempt, NULL);
        for (size_t k = i; attempt > 0 && k-- > 0;) {
            const kg_json *s = kg_journal_at(journal, k);
            if (text_is(s, "kind", "send") && text_is(s, "prompt", id) &&
                !kg_json_int(kg_json_get(s, "attempt"), "attempt", &a, NULL) && a == attempt) {
                add(&spent, kg_json_get(s, "reserved"), -1);
                break;
            }
        }
    }
    return spent;
}

int kg_propose_llm(const char *op, const kg_llm_options *options, kg_journal *journal,
                   int64_t deadline_ns, kg_proposer *out, kg_error *err) {
    proposer *p = calloc(1, sizeof *p);
    if (!p)
        return kg_fail(err, KG_ENOMEM, "a proposer");
    kg_llm_hooks hooks = {p, sending, ended};
    kg_spend spent = kg_journal_spent(journal, op);
    p->journal = journal;
    p->options = options;
    snprintf(p->op, sizeof p->op, "%s", op);
    int rc = kg_llm_open(options, &hooks, &spent, deadline_ns, &p->client, err);
    if (rc) {
        free(p);
        return rc;
    }
    *out = (kg_proposer){.ctx = p,
                         .slots = (size_t)options->in_flight,
                         .ask = ask,
                         .collect = collect,
                         .close = close_proposer};
    return KG_OK;
}
