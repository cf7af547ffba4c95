/* The parts of the model client that need no server: answers in any splitting, what a server
 * refuses, the budget's arithmetic, endpoints. */
#include <math.h>
#include <stdlib.h>

#include "test.h"
#include "tune/llm_internal.h"

static const char events[] =
    ": hello\r\n"
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"reasoning_content\":\"hm\"}}]}\r\n\r\n"
    "event: x\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"caf\xc3\xa9\"},"
    "\"finish_reason\":null}]}\n\n"
    "data:{\"choices\":[{\"index\":1,\"delta\":{\"content\":\"another choice\"}}]}\n"
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":[{\"type\":\"text\",\"text\":\"!\"}]},"
    "\"finish_reason\":\"stop\"}]}\n\n"
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":6}}\n\n"
    "data: [DONE]\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"late\"}}]}\n\n";

static kg_llm_state read_text(kg_llm_stream *s, const char *text, size_t n, size_t piece) {
    kg_llm_stream_init(s);
    for (size_t i = 0; i < n; i += piece)
        if (!kg_llm_stream_feed(s, text + i, n - i < piece ? n - i : piece))
            break;
    return kg_llm_stream_end(s);
}

TEST(llm_stream_in_any_splitting) {
    for (size_t piece = 1; piece < sizeof events; piece++) {
        kg_llm_stream s;
        CHECK_INT(read_text(&s, events, sizeof events - 1, piece), KG_LLM_WHOLE);
        CHECK_STR(s.answer.data, "caf\xc3\xa9!");
        CHECK_STR(s.reasoning.data, "hm");
        CHECK_STR(s.finish, "stop");
        CHECK_INT(s.usage.prompt + s.usage.completion, 11);
        kg_llm_stream_free(&s);
    }
}

/* Wherever a stream is cut before the model said that it was done, it is a cut one. */
TEST(llm_stream_cut_anywhere) {
    const char *stop = strstr(events, "\"stop\"");
    for (size_t n = 0; n < (size_t)(stop - events); n++) {
        kg_llm_stream s;
        CHECK_INT(read_text(&s, events, n, 7) == KG_LLM_WHOLE, false);
        kg_llm_stream_free(&s);
    }
}

TEST(llm_stream_documents) {
    static const struct {
        const char *text;
        kg_llm_state state;
        const char *answer, *error;
    } rows[] = {
        {"{\"choices\":[{\"message\":{\"content\":\"x\"}}]}", KG_LLM_WHOLE, "x", ""},
        {" \n{\"choices\":[{\"message\":{\"content\":\"<think>a</think>\\nb\"}}]}\n", KG_LLM_WHOLE,
         "b", ""},
        {"{\"choices\":[{\"message\":{\"content\":null}}]}", KG_LLM_WHOLE, "", ""},
        {"{\"choices\":[]}", KG_LLM_EMPTY, "", ""},
        {"{\"choices\":[{\"message\":{\"content\":\"x", KG_LLM_CUT, "", ""},
        {"{\"error\":{\"message\":\"no\",\"code\":\"c\",\"param\":\"p\"}}", KG_LLM_ERROR, "",
         "no; c; p"},
        {"{\"error\":\"words\"}", KG_LLM_ERROR, "", "words"},
        {"{\"detail\":\"words\"}", KG_LLM_ERROR, "", "words"},
        {"{\"object\":\"error\",\"message\":\"old\"}", KG_LLM_ERROR, "", "old"},
        {"{\"hello\":1}", KG_LLM_STRANGE, "", ""},
        {"<!DOCTYPE html>", KG_LLM_STRANGE, "", ""},
        {"data", KG_LLM_STRANGE, "", ""},
        {"", KG_LLM_CUT, "", ""},
        {"data: {\"error\":{\"message\":\"overloaded\"}}\n\n", KG_LLM_ERROR, "", "overloaded"},
        {"data: [DONE]\n\n", KG_LLM_EMPTY, "", ""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kg_llm_stream s;
        int state = (int)read_text(&s, rows[i].text, strlen(rows[i].text), 5);
        if (state != (int)rows[i].state)
            FAIL("%s is %d, not %d", rows[i].text, state, (int)rows[i].state);
        CHECK_STR(s.answer.data ? s.answer.data : "", rows[i].answer);
        CHECK_STR(s.error.data ? s.error.data : "", rows[i].error);
        kg_llm_stream_free(&s);
    }
}

TEST(llm_stream_stops_at_its_bounds) {
    kg_llm_stream s;
    size_t n = 1 << 20, fed = 0;
    char *block = malloc(n);
    memset(block, 'x', n);
    kg_llm_stream_init(&s);
    CHECK(kg_llm_stream_feed(&s, "data: {\"x\":\"", 12));
    while (kg_llm_stream_feed(&s, block, n))
        CHECK(++fed <= KG_LLM_MAX_EVENT >> 20);
    CHECK_INT(kg_llm_stream_end(&s), KG_LLM_TOO_BIG);
    kg_llm_stream_free(&s);
    free(block);
}

/* Of a tool's arguments and of a choice that nobody asked for, too; no byte after the bound. */
TEST(llm_stream_ends_where_max_tokens_are_ignored) {
    static const char *const deltas[] = {
        "\"index\":0,\"delta\":{\"content\":\"%s\"}",
        "\"index\":3,\"delta\":{\"content\":[{\"text\":\"%s\"}]}",
        "\"index\":0,\"delta\":{\"tool_calls\":[{\"function\":{\"arguments\":\"%s\"}}]}",
    };
    char text[1001], choice[1200], event[1300];
    memset(text, 'x', 1000);
    text[1000] = '\0';
    for (size_t i = 0; i < 3; i++) {
        kg_llm_stream s;
        size_t fed = 0;
        kg_llm_stream_init(&s);
        s.max_tokens = 1000;
        snprintf(choice, sizeof choice, deltas[i], text);
        snprintf(event, sizeof event, "data: {\"choices\":[{%s}]}\n\n", choice);
        while (kg_llm_stream_feed(&s, event, strlen(event)))
            CHECK(++fed < 100);
        CHECK_UINT(fed, (1000 * KG_LLM_OVERRUN_BYTES + KG_LLM_OVERRUN_SLACK) / 1000);
        CHECK_INT(kg_llm_stream_end(&s), KG_LLM_OVERRUN);
        CHECK_INT(kg_llm_stream_tokens(&s), (int64_t)(fed + 1) * 250);
        kg_llm_stream_free(&s);
    }
}

TEST(llm_budget_holds_what_may_come) {
    kg_llm_options o = {.price = {.known = true, .input = 2, .cached = 1, .output = 10}};
    kg_spend worst = kg_llm_worst(&o, 1000, 372);
    CHECK_INT(worst.calls, 1);
    CHECK_INT(worst.tokens, 372 + 128 + 1000);
    CHECK_INT(worst.nano_usd, 500 * 2 + 1000 * 10);
    kg_llm_budget b = {.limit = {.calls = 3, .tokens = 3200}};
    CHECK_INT(kg_llm_reserve(&b, &worst), KG_LLM_FITS);
    CHECK_INT(kg_llm_reserve(&b, &worst), KG_LLM_FITS);
    CHECK_INT(kg_llm_reserve(&b, &worst),
              KG_LLM_LATER); /* 4500 tokens, if the first two cost all */
    kg_llm_usage usage = {.known = true, .prompt = 100, .cached = 40, .completion = 20};
    kg_spend cost = kg_llm_cost(&o, &usage);
    CHECK_INT(cost.nano_usd, 60 * 2 + 40 + 20 * 10);
    kg_llm_settle(&b, &worst, &cost);
    CHECK_INT(kg_llm_reserve(&b, &worst), KG_LLM_FITS);
    CHECK_INT(kg_llm_reserve(&b, &worst), KG_LLM_NEVER); /* the calls */
    kg_llm_settle(&b, &worst, &worst);
    kg_llm_settle(&b, &worst, &cost);
    CHECK_INT(b.spent.tokens, 120 + 1500 + 120);
    CHECK_INT(b.reserved.tokens, 0);
    worst = kg_llm_worst(&o, INT64_MAX / 2, SIZE_MAX / 4);
    CHECK(worst.tokens > 0 && worst.nano_usd == INT64_MAX);
}

/* Whatever the words, adapting ends: nothing is dropped twice. */
TEST(llm_adapt_ends) {
    static const char *const complaints[] = {"temperature",
                                             "max_tokens",
                                             "use max_completion_tokens",
                                             "unsupported max_completion_tokens",
                                             "max_tokens at most 600",
                                             "maximum context length is 9 tokens",
                                             "the system message role",
                                             "stream_options",
                                             "stream",
                                             "reasoning_effort"};
    kg_llm_options o = {.host = (char *)"https://x", .stream = true, .max_tokens = 8192};
    kg_llm_dialect d;
    kg_llm_dialect_begin(&o, &d);
    CHECK_INT(kg_llm_adapt(&d, "you are not welcome"), false);
    for (size_t i = 0; i < sizeof complaints / sizeof *complaints; i++) {
        int n = 0;
        while (kg_llm_adapt(&d, complaints[i]) && n < 10)
            n++;
        CHECK(n < 10);
    }
    CHECK(!d.temperature && !d.system && !d.stream && !d.stream_usage && !d.effort);
    CHECK_INT(d.max_tokens, 300); /* 600, and half of it */
}

TEST(llm_endpoints) {
    static const char *const rows[][2] = {
        {"http://h", "http://h/v1/chat/completions"},
        {"http://h:1/", "http://h:1/v1/chat/completions"},
        {"https://h/api/v3/", "https://h/api/v3/chat/completions"},
        {"https://h/v1/chat/completions", "https://h/v1/chat/completions"},
        {"https://h/openai/deployments/d?api-version=1",
         "https://h/openai/deployments/d/chat/completions?api-version=1"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kg_json *json = kg_json_new_object();
        kg_llm_options o;
        kg_error err;
        kg_json_set_str(json, "model", "m");
        kg_json_set_str(json, "endpoint", rows[i][0]);
        CHECK_OK(kg_llm_options_read(json, &o, &err), err);
        CHECK_STR(o.url, rows[i][1]);
        CHECK(isnan(o.temperature));
        kg_llm_options_free(&o);
        kg_json_free(json);
    }
}

TEST(llm_free_only_on_this_machine) {
    static const struct {
        const char *url;
        bool free_of_charge;
    } rows[] = {{"http://localhost:8000/v1", true},     {"http://127.0.0.1/v1", true},
                {"http://[::1]:80/v1", true},           {"http://localhost.example/v1", false},
                {"http://127.0.0.1.example/v1", false}, {"https://example/v1", false}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kg_json *json = kg_json_new_object();
        kg_llm_options o;
        kg_error err;
        kg_json_set_str(json, "model", "m");
        kg_json_set_str(json, "endpoint", rows[i].url);
        kg_json_set_double(json, "usd", 1.5);
        int rc = kg_llm_options_read(json, &o, &err);
        if ((rc == KG_OK) != rows[i].free_of_charge)
            FAIL("%s", rows[i].url);
        kg_llm_options_free(&o);
        kg_json_free(json);
    }
}
