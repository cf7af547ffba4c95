/* An answer as it comes in: server-sent events or one JSON document, whichever it is; what the
 * content type says is not believed. Nothing of it is trusted: sizes are bounded, garbage makes the
 * answer a cut one. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>

#include "tune/llm_internal.h"

void kg_llm_stream_init(kg_llm_stream *s) {
    *s = (kg_llm_stream){0};
    kg_buf_init(&s->line, KG_LLM_MAX_EVENT);
    kg_buf_init(&s->event, KG_LLM_MAX_EVENT);
    kg_buf_init(&s->answer, KG_LLM_MAX_ANSWER);
    kg_buf_init(&s->reasoning, KG_LLM_MAX_ANSWER);
    kg_buf_init(&s->error, 4096);
}

void kg_llm_stream_free(kg_llm_stream *s) {
    kg_buf_free(&s->line);
    kg_buf_free(&s->event);
    kg_buf_free(&s->answer);
    kg_buf_free(&s->reasoning);
    kg_buf_free(&s->error);
}

/* --- JSON --- */

static const char *text_of(const kg_json *j) {
    const char *s = NULL;
    return kg_json_is_string(j) && !kg_json_str(j, "text", &s, NULL) ? s : NULL;
}

/* A string, or a list of {"type": "text", "text": ...}. */
static void put_content(kg_buf *out, const kg_json *j) {
    const char *s = text_of(j);
    if (s)
        kg_buf_puts(out, s);
    for (size_t i = 0; kg_json_is_array(j) && i < kg_json_size(j); i++) {
        const char *part = text_of(kg_json_get(kg_json_at(j, i), "text"));
        if (part)
            kg_buf_puts(out, part);
    }
}

static int64_t count_of(const kg_json *o, const char *key) {
    int64_t v = 0;
    return kg_json_int(kg_json_get(o, key), key, &v, NULL) || v < 0 ? 0 : v;
}

static void take_usage(kg_llm_stream *s, const kg_json *u) {
    if (!kg_json_is_object(u) || !kg_json_is_number(kg_json_get(u, "prompt_tokens")))
        return;
    int64_t cached = count_of(kg_json_get(u, "prompt_tokens_details"), "cached_tokens");
    if (!cached)
        cached = count_of(u, "prompt_cache_hit_tokens");
    s->usage = (kg_llm_usage){
        .known = true,
        .prompt = count_of(u, "prompt_tokens"),
        .cached = cached,
        .completion = count_of(u, "completion_tokens"),
        .reasoning = count_of(kg_json_get(u, "completion_tokens_details"), "reasoning_tokens")};
}

static void take_error(kg_llm_stream *s, const kg_json *e) {
    const char *parts[] = {text_of(kg_json_get(e, "message")), text_of(kg_json_get(e, "code")),
                           text_of(kg_json_get(e, "param"))};
    kg_buf_clear(&s->error);
    if (text_of(e))
        kg_buf_printf(&s->error, "%.1500s", text_of(e));
    for (size_t i = 0; i < 3; i++)
        if (parts[i])
            kg_buf_printf(&s->error, "%s%.1500s", s->error.len ? "; " : "", parts[i]);
    if (!s->error.len)
        kg_buf_puts(&s->error, "an error without a message");
}

static size_t text_bytes(const kg_json *j) {
    const char *s = text_of(j);
    return s ? strlen(s) : 0;
}

/* Whatever a model writes is billed: calls of tools and other choices than the first, too. */
static size_t written_in(const kg_json *m) {
    const kg_json *calls = kg_json_get(m, "tool_calls"), *content = kg_json_get(m, "content");
    size_t r = text_bytes(kg_json_get(m, "reasoning_content"));
    size_t n = r ? r : text_bytes(kg_json_get(m, "reasoning"));
    n += text_bytes(content);
    for (size_t i = 0; kg_json_is_array(content) && i < kg_json_size(content); i++)
        n += text_bytes(kg_json_get(kg_json_at(content, i), "text"));
    for (size_t i = 0; i < kg_json_size(calls); i++)
        n += text_bytes(kg_json_get(kg_json_get(kg_json_at(calls, i), "function"), "arguments"));
    return n + text_bytes(kg_json_get(kg_json_get(m, "function_call"), "arguments"));
}

int64_t kg_llm_stream_tokens(const kg_llm_stream *s) {
    int64_t counted = (int64_t)((s->written + 3) / 4);
    return counted > s->usage.completion ? counted : s->usage.completion;
}

/* Only of a stream that goes on: what has ended is paid for, and may be of use. */
static void look_for_overrun(kg_llm_stream *s) {
    if (!s->sse || s->finish[0] || s->max_tokens <= 0)
        return;
    size_t most = (size_t)s->max_tokens * KG_LLM_OVERRUN_BYTES + KG_LLM_OVERRUN_SLACK;
    s->overrun = s->written > most || s->usage.completion > s->max_tokens + KG_LLM_OVERRUN_TOKENS;
}

static void take_message(kg_llm_stream *s, const kg_json *m) {
    /* DeepSeek, vLLM and llama.cpp say reasoning_content; Ollama, newer vLLM and OpenRouter
     * reasoning. A server that says both says the same twice. */
    const kg_json *r = kg_json_get(m, "reasoning_content");
    put_content(&s->reasoning, text_of(r) ? r : kg_json_get(m, "reasoning"));
    put_content(&s->answer, kg_json_get(m, "content"));
    if (kg_json_size(kg_json_get(m, "tool_calls")) ||
        kg_json_is_object(kg_json_get(m, "function_call")))
        s->tool_calls = true;
}

static void take_document(kg_llm_stream *s, const char *text, size_t n) {
    kg_json *root = NULL;
    if (kg_json_parse(text, n, "answer", &root, NULL) || !kg_json_is_object(root)) {
        s->garbage = true;
        kg_json_free(root);
        return;
    }
    const kg_json *choices = kg_json_get(root, "choices"), *error = kg_json_get(root, "error");
    if (error && !kg_json_is_null(error))
        take_error(s, error);
    else if (text_of(kg_json_get(root, "object")) && text_of(kg_json_get(root, "message")))
        take_error(s, root); /* vLLM's older form */
    else if (text_of(kg_json_get(root, "detail")))
        take_error(s, kg_json_get(root, "detail"));
    else if (!kg_json_is_array(choices) && !kg_json_is_object(kg_json_get(root, "usage")))
        s->garbage = true;
    take_usage(s, kg_json_get(root, "usage"));
    for (size_t i = 0; i < kg_json_size(choices); i++) {
        const kg_json *c = kg_json_at(choices, i);
        const kg_json *m = kg_json_get(c, s->sse ? "delta" : "message");
        s->written += written_in(m);
        if (count_of(c, "index") != 0)
            continue; /* one was asked for */
        const char *finish = text_of(kg_json_get(c, "finish_reason"));
        s->choice = true;
        take_message(s, m);
        if (finish && *finish)
            snprintf(s->finish, sizeof s->finish, "%s", finish);
    }
    if (s->answer.status || s->reasoning.status)
        s->too_big = true;
    if (kg_json_size(choices))
        look_for_overrun(s);
    kg_json_free(root);
}

/* --- server-sent events --- */

static void dispatch(kg_llm_stream *s) {
    if (s->event.len && !s->done) {
        if (strcmp(s->event.data, "[DONE]") == 0)
            s->done = true;
        else
            take_document(s, s->event.data, s->event.len);
    }
    kg_buf_clear(&s->event);
}

static void take_line(kg_llm_stream *s) {
    const char *line = s->line.data ? s->line.data : "";
    size_t n = s->line.len;
    if (n > 0 && line[n - 1] == '\r')
        n--;
    if (n == 0) {
        dispatch(s);
    } else if (n >= 5 && strncmp(line, "data:", 5) == 0) {
        size_t from = n > 5 && line[5] == ' ' ? 6 : 5;
        /* Some servers forget the empty line between events. */
        if (s->event.len && n > from && (line[from] == '{' || line[from] == '['))
            dispatch(s);
        if (s->event.len)
            kg_buf_putc(&s->event, '\n');
        kg_buf_add(&s->event, line + from, n - from);
    } else if (line[0] != ':' && strncmp(line, "event:", 6) != 0 && strncmp(line, "id:", 3) != 0 &&
               strncmp(line, "retry:", 6) != 0) {
        s->garbage = true;
    }
    if (s->event.status || s->line.status)
        s->too_big = true;
    kg_buf_clear(&s->line);
}

static void feed_events(kg_llm_stream *s, const char *bytes, size_t n) {
    while (n > 0 && !s->too_big && !s->overrun) {
        const char *end = memchr(bytes, '\n', n);
        size_t part = end ? (size_t)(end - bytes) : n;
        if (kg_buf_add(&s->line, bytes, part))
            s->too_big = true;
        else if (end)
            take_line(s);
        bytes += part + (end ? 1 : 0);
        n -= part + (end ? 1 : 0);
    }
}

static bool opens_events(const char *text) {
    static const char *const openings[] = {"data:", "event:", ":", "id:", "retry:"};
    for (size_t i = 0; i < sizeof openings / sizeof *openings; i++)
        if (strncmp(text, openings[i], strlen(openings[i])) == 0)
            return true;
    return false;
}

/* Until five bytes that are no blanks came, nothing says which of the two it is. */
static bool settle_kind(kg_llm_stream *s, const char *bytes, size_t n) {
    if (kg_buf_add(&s->line, bytes, n))
        s->too_big = true;
    const char *text = s->line.data ? s->line.data : "";
    if (strncmp(text, "\xef\xbb\xbf", 3) == 0)
        text += 3;
    text += strspn(text, " \t\r\n");
    if (strlen(text) < 6 && *text != '{' && *text != ':')
        return false;
    s->begun = true;
    s->sse = opens_events(text);
    return s->sse;
}

bool kg_llm_stream_feed(kg_llm_stream *s, const char *bytes, size_t n) {
    s->total += n;
    if (s->total > KG_LLM_MAX_BODY)
        s->too_big = true;
    if (s->too_big || s->overrun)
        return false;
    if (s->begun && s->sse) {
        feed_events(s, bytes, n);
    } else if (s->begun) {
        if (kg_buf_add(&s->line, bytes, n))
            s->too_big = true;
    } else if (settle_kind(s, bytes, n)) {
        kg_buf first = s->line;
        kg_buf_init(&s->line, KG_LLM_MAX_EVENT);
        size_t skip = strncmp(first.data, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
        feed_events(s, first.data + skip, first.len - skip);
        kg_buf_free(&first);
    }
    return !s->too_big && !s->overrun;
}

/* --- the end --- */

/* Moves what stands before </think> from the answer to the reasoning; the opening tag is often in
 * the prompt and not in the answer. */
static void part_thinking(kg_llm_stream *s) {
    static const char open[] = "<think>", close[] = "</think>";
    const char *text = s->answer.data ? s->answer.data : "";
    const char *begin = text + strspn(text, " \t\r\n");
    bool opened = strncmp(begin, open, sizeof open - 1) == 0;
    const char *end = strstr(text, close);
    if (opened)
        begin += sizeof open - 1;
    if (!opened && !end)
        return;
    if (s->reasoning.len)
        kg_buf_putc(&s->reasoning, '\n');
    if (!end) { /* it never came to an answer */
        kg_buf_puts(&s->reasoning, begin);
        kg_buf_clear(&s->answer);
        return;
    }
    kg_buf rest;
    kg_buf_init(&rest, KG_LLM_MAX_ANSWER);
    kg_buf_add(&s->reasoning, begin, (size_t)(end - begin));
    const char *after = end + sizeof close - 1;
    kg_buf_puts(&rest, after + strspn(after, "\r\n"));
    kg_buf_free(&s->answer);
    s->answer = rest;
}

static char last_visible(const char *text) {
    size_t n = strlen(text);
    while (n > 0 && strchr(" \t\r\n", text[n - 1]))
        n--;
    return n > 0 ? text[n - 1] : '\0';
}

kg_llm_state kg_llm_stream_end(kg_llm_stream *s) {
    if (s->too_big)
        return KG_LLM_TOO_BIG;
    const char *text = s->line.data ? s->line.data : "";
    if (!s->sse && s->line.len) {
        bool html = strcasestr(text, "<html") || strcasestr(text, "<!doctype");
        if (text[strspn(text, " \t\r\n")] != '{' || html)
            return KG_LLM_STRANGE;
        take_document(s, text, s->line.len);
        if (!s->choice && s->garbage && !s->error.len && last_visible(text) == '}')
            return KG_LLM_STRANGE;
    } else if (s->sse) {
        /* The last line may lack its end; what is incomplete shows as garbage. */
        if (s->line.len)
            take_line(s);
        dispatch(s);
    }
    part_thinking(s);
    if (s->too_big)
        return KG_LLM_TOO_BIG;
    if (s->overrun)
        return KG_LLM_OVERRUN;
    if (s->error.len)
        return KG_LLM_ERROR;
    if (s->garbage || !s->total)
        return KG_LLM_CUT;
    if (!s->choice)
        return KG_LLM_EMPTY;
    /* A stream is whole when the model said why it ended; [DONE] alone will do for servers that
     * give no reason. */
    if (s->sse && !s->finish[0] && !s->done)
        return KG_LLM_CUT;
    return KG_LLM_WHOLE;
}
