/* Prices and the budget: integers, so that a sum of many small costs is exact. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "tune/llm_internal.h"

/* What a server wraps around each message: role names and separators; measured at 4 to 7 tokens a
 * message on the models that publish their templates, rounded up a lot. */
#define TEMPLATE_TOKENS 128
#define MAX_PRICE_FILE ((size_t)1 << 20)
/* USD a million tokens, above which a price is a slip of the pen. */
#define MAX_PRICE 1e6

static int64_t add(int64_t a, int64_t b) {
    int64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? INT64_MAX : sum;
}

static int64_t times(int64_t a, int64_t b) {
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

static int64_t dearest(const kg_llm_price *p) {
    return p->input > p->cached ? p->input : p->cached;
}

kg_spend kg_llm_worst(const kg_llm_options *o, int64_t max_tokens, size_t prompt_bytes) {
    int64_t in = add((int64_t)prompt_bytes, TEMPLATE_TOKENS);
    return (kg_spend){.calls = 1,
                      .tokens = add(in, max_tokens),
                      .nano_usd =
                          add(times(in, dearest(&o->price)), times(max_tokens, o->price.output))};
}

kg_spend kg_llm_cost(const kg_llm_options *o, const kg_llm_usage *u) {
    int64_t cached = u->cached < u->prompt ? u->cached : u->prompt;
    return (kg_spend){.calls = 1,
                      .tokens = add(u->prompt, u->completion),
                      .nano_usd = add(add(times(u->prompt - cached, o->price.input),
                                          times(cached, o->price.cached)),
                                      times(u->completion, o->price.output))};
}

static bool fits(int64_t limit, int64_t used, int64_t more) {
    return limit <= 0 || add(used, more) <= limit;
}

static bool all_fit(const kg_spend *limit, const kg_spend *used, const kg_spend *more) {
    return fits(limit->calls, used->calls, more->calls) &&
           fits(limit->tokens, used->tokens, more->tokens) &&
           fits(limit->nano_usd, used->nano_usd, more->nano_usd);
}

static kg_spend sum(const kg_spend *a, const kg_spend *b) {
    return (kg_spend){add(a->calls, b->calls), add(a->tokens, b->tokens),
                      add(a->nano_usd, b->nano_usd)};
}

kg_llm_room kg_llm_reserve(kg_llm_budget *b, const kg_spend *worst) {
    kg_spend used = sum(&b->spent, &b->reserved);
    /* A call counts whatever it costs, so calls under way are as good as spent. */
    kg_spend least = b->spent;
    least.calls = used.calls;
    if (!all_fit(&b->limit, &least, worst))
        return KG_LLM_NEVER;
    if (!all_fit(&b->limit, &used, worst))
        return KG_LLM_LATER;
    b->reserved = sum(&b->reserved, worst);
    return KG_LLM_FITS;
}

void kg_llm_settle(kg_llm_budget *b, const kg_spend *worst, const kg_spend *cost) {
    b->reserved.calls -= worst->calls;
    b->reserved.tokens -= worst->tokens;
    b->reserved.nano_usd -= worst->nano_usd;
    b->spent = sum(&b->spent, cost);
}

void kg_llm_budget_text(const kg_llm_budget *b, char *out, size_t n) {
    kg_buf text;
    kg_buf_init(&text, 0);
    kg_buf_printf(&text, "%" PRId64, add(b->spent.calls, b->reserved.calls));
    if (b->limit.calls)
        kg_buf_printf(&text, " of %" PRId64, b->limit.calls);
    kg_buf_printf(&text, " calls, %" PRId64, b->spent.tokens);
    if (b->limit.tokens)
        kg_buf_printf(&text, " of %" PRId64, b->limit.tokens);
    kg_buf_printf(&text, " tokens, %.4f", (double)b->spent.nano_usd * 1e-9);
    if (b->limit.nano_usd)
        kg_buf_printf(&text, " of %g", (double)b->limit.nano_usd * 1e-9);
    kg_buf_puts(&text, " USD");
    snprintf(out, n, "%s", text.data ? text.data : "");
    kg_buf_free(&text);
}

/* --- the price table --- */

static int read_rate(const kg_json *row, const char *key, const char *what, int64_t *nano,
                     kg_error *err) {
    double usd = 0;
    char at[320];
    snprintf(at, sizeof at, "%s: %s", what, key);
    int rc = kg_json_double(kg_json_get(row, key), at, &usd, err);
    if (!rc && !(usd >= 0 && usd <= MAX_PRICE))
        rc = kg_fail(err, KG_EFORMAT, "%s is %g; it is USD for a million tokens, at least 0", at,
                     usd);
    if (!rc)
        *nano = (int64_t)ceil(usd * 1000 - 1e-6); /* a million tokens a USD are 1000 nano each */
    return rc;
}

static int read_row(const kg_json *row, const char *what, const char *model, size_t *best,
                    kg_llm_price *out, kg_error *err) {
    static const char *const keys[] = {"model", "input", "cached", "output", NULL};
    kg_llm_price p = {.known = true};
    const char *name = "";
    int rc = kg_json_only(row, what, keys, err);
    if (!rc)
        rc = kg_json_str(kg_json_get(row, "model"), what, &name, err);
    if (!rc)
        rc = read_rate(row, "input", what, &p.input, err);
    if (!rc)
        rc = read_rate(row, "output", what, &p.output, err);
    p.cached = p.input;
    if (!rc && kg_json_get(row, "cached"))
        rc = read_rate(row, "cached", what, &p.cached, err);
    if (rc)
        return rc;
    /* "gpt-5-mini*" stands for dated names; the longest that fits is meant. */
    size_t n = strlen(name);
    bool open = n > 0 && name[n - 1] == '*';
    bool hit = open ? strncmp(model, name, n - 1) == 0 : strcmp(model, name) == 0;
    size_t weight = open ? n : n + 2;
    if (hit && weight > *best) {
        *best = weight;
        *out = p;
    }
    return KG_OK;
}

int kg_llm_price_find(const char *path, const char *model, kg_llm_price *out, kg_error *err) {
    static const char *const keys[] = {"format", "unit", "as_of", "note", "models", NULL};
    kg_buf text;
    kg_json *root = NULL;
    size_t best = 0;
    kg_buf_init(&text, 0);
    int rc = kg_read_file(path, MAX_PRICE_FILE, &text, err);
    if (!rc)
        rc = kg_json_parse(text.data ? text.data : "", text.len, path, &root, err);
    if (!rc)
        rc = kg_json_format(root, path, 1, err);
    if (!rc)
        rc = kg_json_only(root, path, keys, err);
    const kg_json *models = rc ? NULL : kg_json_get(root, "models");
    if (!rc && !kg_json_is_array(models))
        rc = kg_fail(err, KG_EFORMAT, "%s: models is %s; give a list", path, kg_json_type(models));
    for (size_t i = 0; !rc && i < kg_json_size(models); i++) {
        char what[256];
        snprintf(what, sizeof what, "%.200s: models[%zu]", path, i);
        rc = read_row(kg_json_at(models, i), what, model, &best, out, err);
    }
    const char *as_of = "";
    if (!rc && best && !kg_json_str(kg_json_get(root, "as_of"), "as_of", &as_of, NULL))
        snprintf(out->as_of, sizeof out->as_of, "%s", as_of);
    kg_json_free(root);
    kg_buf_free(&text);
    return rc;
}
