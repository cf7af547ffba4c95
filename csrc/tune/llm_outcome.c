/* From a response to a decision. What may have been billed is taken as billed: a gateway that gave
 * up waiting says nothing of what the model behind it went on to write. */
#define _GNU_SOURCE
#include "tune/llm_outcome.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void say(kg_llm_outcome *out, kg_llm_end end, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void say(kg_llm_outcome *out, kg_llm_end end, const char *fmt, ...) {
    va_list ap;
    out->end = end;
    va_start(ap, fmt);
    vsnprintf(out->message, sizeof out->message, fmt, ap);
    va_end(ap);
}

static void judge_failure(const kg_llm_options *o, const kg_http_result *r, bool proven,
                          kg_llm_outcome *out) {
    out->paid = r->sent && (r->status == 0 || r->status < 400);
    out->again = true;
    switch (r->failure) {
    case KG_HTTP_URL:
    case KG_HTTP_TLS:
        out->again = out->paid = false;
        say(out, KG_LLM_FATAL, "%s: %s%s", o->host, r->message,
            r->failure == KG_HTTP_TLS
                ? "; if its certificate is from an authority of your own, give --ca FILE"
                : "");
        return;
    case KG_HTTP_RESOLVE:
    case KG_HTTP_CONNECT:
        out->paid = false;
        out->unreachable = true;
        break;
    case KG_HTTP_STOPPED:
        out->again = false;
        say(out, KG_LLM_FAILED, "%s sent more than %d MB for one answer", o->host,
            KG_LLM_MAX_BODY >> 20);
        return;
    default:
        out->unreachable = !r->sent;
    }
    say(out, out->unreachable && !proven ? KG_LLM_FATAL : KG_LLM_FAILED,
        out->unreachable ? "%s cannot be reached: %s" : "%s: %s", o->host, r->message);
}

/* One line of what the server said. */
static void excerpt(const kg_llm_stream *s, const kg_http_result *r, char *out, size_t n) {
    const char *text = s->error.len ? s->error.data : s->line.len ? s->line.data : "";
    size_t k = 0;
    text += strspn(text, " \t\r\n");
    for (; *text && k + 1 < n && k < 240; text++)
        out[k++] = (unsigned char)*text < 32 ? ' ' : *text;
    out[k] = '\0';
    if (k == 0)
        snprintf(out, n, "%s", r->content_type[0] ? r->content_type : "an empty answer");
}

static void judge_refusal(const kg_llm_options *o, const kg_http_result *r, const char *said,
                          kg_llm_outcome *out) {
    bool model = strcasestr(said, "model") &&
                 (strcasestr(said, "not exist") || strcasestr(said, "not found") ||
                  strcasestr(said, "unknown") || strcasestr(said, "invalid model") ||
                  strcasestr(said, "not a valid model"));
    if (r->status == 401 || r->status == 403)
        say(out, KG_LLM_FATAL, "%s refused %s (HTTP %ld): %s", o->host,
            o->nsecrets ? "the key" : "a request without a key (--key-env NAME names its variable)",
            r->status, said);
    else if (r->status == 402)
        say(out, KG_LLM_FATAL, "%s wants money first (HTTP 402): %s", o->host, said);
    else if (r->status == 404)
        say(out, KG_LLM_FATAL, "%s knows no model %s, or no chat completions there (HTTP 404): %s",
            o->host, o->model, said);
    else if (r->status >= 300 && r->status < 400)
        say(out, KG_LLM_FATAL, "%s redirects (HTTP %ld); give the endpoint that it redirects to",
            o->host, r->status);
    else if (model)
        say(out, KG_LLM_FATAL, "%s refused the model %s (HTTP %ld): %s", o->host, o->model,
            r->status, said);
    else
        say(out, KG_LLM_FAILED, "%s refused the request (HTTP %ld): %s", o->host, r->status, said);
}

static void judge_status(const kg_llm_options *o, const kg_http_result *r, const char *said,
                         kg_llm_dialect *d, kg_llm_outcome *out) {
    long s = r->status;
    if ((s == 400 || s == 422) && kg_llm_adapt(d, said)) {
        out->again = out->adapted = true;
        say(out, KG_LLM_FAILED, "%s refused part of the request: %s", o->host, said);
        return;
    }
    bool broke =
        s == 429 && (strcasestr(said, "insufficient_quota") || strcasestr(said, "billing"));
    if ((s == 408 || s == 409 || s == 429 || s >= 500) && !broke) {
        out->again = true;
        out->hold = s == 429 || s == 503 || s == 529;
        out->paid = s == 502 || s == 504 || (s >= 520 && s <= 527);
        say(out, KG_LLM_FAILED, "%s answered HTTP %ld: %s", o->host, s, said);
        return;
    }
    if (broke)
        say(out, KG_LLM_FATAL, "%s: no credit left (HTTP 429): %s", o->host, said);
    else
        judge_refusal(o, r, said, out);
}

static void judge_answer(const kg_llm_options *o, const kg_llm_stream *s, kg_llm_state state,
                         const char *said, bool proven, kg_llm_dialect *d, kg_llm_outcome *out) {
    out->paid = true;
    out->again = true;
    switch (state) {
    case KG_LLM_WHOLE:
        out->again = false;
        out->end = KG_LLM_ANSWERED;
        return;
    case KG_LLM_CUT:
        say(out, KG_LLM_FAILED, "%s: the answer was cut or garbled", o->host);
        return;
    case KG_LLM_EMPTY:
        say(out, KG_LLM_FAILED, "%s answered without any choice", o->host);
        return;
    case KG_LLM_TOO_BIG:
        out->again = false;
        say(out, KG_LLM_FAILED, "%s sent more than %d MB for one answer", o->host,
            KG_LLM_MAX_ANSWER >> 20);
        return;
    case KG_LLM_OVERRUN:
        out->again = false;
        say(out, KG_LLM_FAILED,
            "%s ignores max_tokens: it was cut at some %" PRId64 " tokens, where %" PRId64
            " were asked for",
            o->host, kg_llm_stream_tokens(s), s->max_tokens);
        return;
    case KG_LLM_ERROR:
        out->paid = s->choice;
        out->adapted = !s->choice && kg_llm_adapt(d, said);
        say(out, KG_LLM_FAILED, "%s: %s", o->host, said);
        return;
    case KG_LLM_STRANGE:
        out->paid = false;
        out->again = proven;
        say(out, proven ? KG_LLM_FAILED : KG_LLM_FATAL,
            "%s does not speak the chat completions protocol; it answered: %s", o->host, said);
    }
}

void kg_llm_judge(const kg_llm_options *o, const kg_http_result *r, kg_llm_stream *s, bool proven,
                  kg_llm_dialect *d, kg_llm_outcome *out) {
    char said[256];
    *out = (kg_llm_outcome){.end = KG_LLM_FAILED};
    /* A stream that was whole before the connection broke is whole. */
    kg_llm_state state = kg_llm_stream_end(s);
    bool ok = r->status >= 200 && r->status < 300;
    bool whole = ok && r->failure == KG_HTTP_CUT && s->sse && s->done && state == KG_LLM_WHOLE;
    excerpt(s, r, said, sizeof said);
    if (state == KG_LLM_OVERRUN && ok)
        judge_answer(o, s, state, said, proven, d, out);
    else if (r->failure != KG_HTTP_OK && !whole && (r->failure != KG_HTTP_CUT || r->status < 400))
        judge_failure(o, r, proven, out);
    else if (!ok)
        judge_status(o, r, said, d, out);
    else
        judge_answer(o, s, state, said, proven, d, out);
}
