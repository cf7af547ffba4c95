/* How to reach a model: options out of JSON, defaults, and the environment's part. It refuses an
 * endpoint that would carry a secret where logs see it. */
#define _GNU_SOURCE
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "tune/llm_internal.h"

/* A reasoning model may think for minutes before its first visible byte. */
#define CONNECT_MS 15000
#define FIRST_BYTE_MS 600000
#define IDLE_MS 180000
#define TOTAL_MS 1800000
#define BACKOFF_MS 1000
#define MAX_TOKENS 32768
#define MOST_MS INT64_C(86400000)

static const char openai[] = "https://api.openai.com/v1";

void kg_llm_options_free(kg_llm_options *o) {
    free(o->url);
    free(o->host);
    free(o->model);
    if (o->key)
        explicit_bzero(o->key, strlen(o->key));
    free(o->key);
    for (size_t i = 0; i < o->nheaders; i++)
        free(o->headers[i]);
    free(o->headers);
    for (size_t i = 0; i < o->nsecrets; i++) {
        explicit_bzero(o->secrets[i], strlen(o->secrets[i]));
        free(o->secrets[i]);
    }
    free(o->secrets);
    free(o->proxy);
    free(o->ca_file);
    free(o->effort);
    *o = (kg_llm_options){0};
}

static const kg_json *given(const kg_json *o, const char *key) {
    const kg_json *v = kg_json_get(o, key);
    return !v || kg_json_is_null(v) ? NULL : v;
}

static int copy_text(const kg_json *json, const char *key, char **out, kg_error *err) {
    const char *s = NULL;
    if (!given(json, key))
        return KG_OK;
    int rc = kg_json_str(given(json, key), key, &s, err);
    if (!rc && !(*out = strdup(s)))
        rc = kg_fail(err, KG_ENOMEM, "option %s", key);
    return rc;
}

static int read_number(const kg_json *json, const char *key, int64_t low, int64_t high,
                       int64_t *out, kg_error *err) {
    int64_t v = *out;
    int rc = given(json, key) ? kg_json_int(given(json, key), key, &v, err) : KG_OK;
    if (!rc && (v < low || v > high))
        rc = kg_fail(err, KG_EINVAL, "%s is %lld; give %lld to %lld", key, (long long)v,
                     (long long)low, (long long)high);
    if (!rc)
        *out = v;
    return rc;
}

/* --- endpoint --- */

static bool local_host(const char *host) {
    size_t n = *host == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":/");
    return (n == 9 && !strncmp(host, "localhost", n)) || (n == 5 && !strncmp(host, "[::1]", n)) ||
           (strspn(host, "0123456789.") == n && !strncmp(host, "127.", 4));
}

static int check_endpoint(const char *text, const char **path, kg_error *err) {
    const char *rest = strstr(text, "://");
    bool http = !strncmp(text, "http://", 7) || !strncmp(text, "https://", 8);
    if (!http || !rest || !rest[3])
        return kg_fail(err, KG_EINVAL,
                       "endpoint %.200s: give a URL such as https://api.deepseek.com/v1 or "
                       "http://localhost:8000/v1",
                       text);
    rest += 3;
    size_t host = strcspn(rest, "/?#");
    if (memchr(rest, '@', host))
        return kg_fail(err, KG_EINVAL,
                       "the endpoint holds a user or password: put secrets into the environment "
                       "(--key-env NAME, --header \"Name: env:VARIABLE\")");
    for (const char *p = text; *p; p++)
        if (isspace((unsigned char)*p) || (unsigned char)*p < 32)
            return kg_fail(err, KG_EINVAL, "endpoint %.200s: has white space in it", text);
    *path = rest + host;
    return KG_OK;
}

/* https://host[:port][/path] becomes .../chat/completions; without a path, /v1 is meant. */
static int set_endpoint(const char *text, kg_llm_options *o, kg_error *err) {
    static const char tail[] = "/chat/completions";
    const char *path = NULL;
    kg_buf url, host;
    int rc = check_endpoint(text, &path, err);
    if (rc)
        return rc;
    kg_buf_init(&url, 4096);
    kg_buf_init(&host, 4096);
    size_t n = strcspn(path, "?#");
    while (n > 0 && path[n - 1] == '/')
        n--;
    kg_buf_add(&host, text, (size_t)(path - text));
    kg_buf_printf(&url, "%s%.*s", host.data ? host.data : "", (int)n, n ? path : "");
    if (n == 0)
        kg_buf_puts(&url, "/v1");
    if (n < sizeof tail - 1 || strncmp(path + n - (sizeof tail - 1), tail, sizeof tail - 1) != 0)
        kg_buf_puts(&url, tail);
    kg_buf_puts(&url, path + strcspn(path, "?#"));
    rc = kg_buf_check(&url, "the endpoint", err);
    if (!rc && (!(o->url = kg_buf_take(&url)) || !(o->host = kg_buf_take(&host))))
        rc = kg_fail(err, KG_ENOMEM, "the endpoint");
    kg_buf_free(&url);
    kg_buf_free(&host);
    return rc;
}

static int find_endpoint(const kg_json *json, kg_llm_options *o, kg_error *err) {
    const char *text = NULL, *base = getenv("OPENAI_BASE_URL");
    int rc = given(json, "endpoint") ? kg_json_str(given(json, "endpoint"), "endpoint", &text, err)
                                     : KG_OK;
    if (rc)
        return rc;
    if (!text && base && *base)
        text = base;
    if (!text && o->key)
        text = openai;
    if (!text)
        return kg_fail(err, KG_EINVAL,
                       "no endpoint: give --endpoint URL (or OPENAI_BASE_URL), or set "
                       "OPENAI_API_KEY for api.openai.com");
    return set_endpoint(text, o, err);
}

/* --- secrets --- */

static int check_secret(const char *value, const char *name, kg_error *err) {
    for (const char *p = value; *p; p++)
        if ((unsigned char)*p < 32 || (unsigned char)*p == 127)
            return kg_fail(err, KG_EINVAL, "%s holds a line end or another control character",
                           name);
    return KG_OK;
}

static int add_secret(kg_llm_options *o, const char *value, kg_error *err) {
    char *text = strdup(value);
    char **grown = text ? realloc(o->secrets, (o->nsecrets + 1) * sizeof *grown) : NULL;
    if (!grown) {
        free(text);
        return kg_fail(err, KG_ENOMEM, "a secret");
    }
    o->secrets = grown;
    o->secrets[o->nsecrets++] = text;
    return KG_OK;
}

static int read_key(const kg_json *json, kg_llm_options *o, kg_error *err) {
    const char *name = "OPENAI_API_KEY";
    bool asked = given(json, "key_env") != NULL;
    int rc = asked ? kg_json_str(given(json, "key_env"), "key_env", &name, err) : KG_OK;
    const char *value = rc ? NULL : getenv(name);
    if (!rc && asked && (!value || !*value))
        rc = kg_fail(err, KG_EINVAL, "--key-env %s: the environment has no such variable", name);
    if (!rc && value && *value)
        rc = check_secret(value, name, err);
    if (!rc && value && *value && !(o->key = strdup(value)))
        rc = kg_fail(err, KG_ENOMEM, "a key");
    if (!rc && o->key)
        rc = add_secret(o, o->key, err);
    return rc;
}

/* Takes text. */
static int push_header(kg_llm_options *o, char *text, kg_error *err) {
    char **grown = text ? realloc(o->headers, (o->nheaders + 2) * sizeof *grown) : NULL;
    if (!grown) {
        free(text);
        return kg_fail(err, KG_ENOMEM, "a header");
    }
    o->headers = grown;
    o->headers[o->nheaders++] = text;
    o->headers[o->nheaders] = NULL;
    return KG_OK;
}

static int add_header(kg_llm_options *o, const char *name, size_t n, const char *value,
                      kg_error *err) {
    kg_buf text;
    kg_buf_init(&text, 64 << 10);
    kg_buf_printf(&text, "%.*s: %s", (int)n, name, value);
    int rc = kg_buf_check(&text, "a header", err);
    if (!rc)
        rc = push_header(o, kg_buf_take(&text), err);
    kg_buf_free(&text);
    return rc;
}

/* What carries a secret by its name; its value on a command line would be in the shell's history
 * and in what kgen says of how to go on. */
static bool carries_secret(const char *name, size_t n) {
    static const char *const all[] = {"authorization", "proxy-authorization", "api-key",
                                      "x-api-key",     "x-goog-api-key",      "cookie"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strlen(all[i]) == n && strncasecmp(name, all[i], n) == 0)
            return true;
    return false;
}

/* "Bearer sk-1" is a secret, and a server that complains repeats the last word of it alone. */
static int header_secret(kg_llm_options *o, const char *value, kg_error *err) {
    const char *last = strrchr(value, ' ');
    int rc = *value ? add_secret(o, value, err) : KG_OK;
    return !rc && last && last[1] ? add_secret(o, last + 1, err) : rc;
}

/* The value may be env:VARIABLE, so that a secret need not be on a command line. */
static int user_header(kg_llm_options *o, const char *text, kg_error *err) {
    size_t n = strcspn(text, ":");
    const char *value = text[n] ? text + n + 1 : NULL;
    bool named = n > 0 && value;
    for (size_t i = 0; named && i < n; i++)
        named = isalnum((unsigned char)text[i]) || strchr("-_.!#$%&'*+^`|~", text[i]);
    if (!named)
        return kg_fail(err, KG_EINVAL, "--header %.*s: give \"Name: value\"",
                       (int)(n < 60 ? n : 60), text);
    value += strspn(value, " \t");
    bool hidden = !strncmp(value, "env:", 4);
    if (!hidden && carries_secret(text, n))
        return kg_fail(err, KG_EINVAL,
                       "--header %.*s: put its value into the environment and give \"%.*s: "
                       "env:VARIABLE\"",
                       (int)n, text, (int)n, text);
    if (hidden) {
        const char *variable = value + 4;
        value = getenv(variable);
        if (!value)
            return kg_fail(err, KG_EINVAL, "--header %.*s: the environment has no variable %.100s",
                           (int)n, text, variable);
    }
    int rc = check_secret(value, "a header", err);
    if (!rc && hidden)
        rc = header_secret(o, value, err);
    return rc ? rc : add_header(o, text, n, value, err);
}

static int read_headers(const kg_json *json, kg_llm_options *o, kg_error *err) {
    const kg_json *list = given(json, "headers");
    int rc = add_header(o, "Content-Type", 12, "application/json", err);
    if (!rc && o->key) {
        kg_buf bearer;
        kg_buf_init(&bearer, 0);
        kg_buf_printf(&bearer, "Bearer %s", o->key);
        rc = kg_buf_check(&bearer, "a header", err);
        if (!rc)
            rc = add_header(o, "Authorization", 13, bearer.data, err);
        kg_buf_free(&bearer);
    }
    for (size_t i = 0; !rc && i < kg_json_size(list); i++) {
        const char *text = "";
        rc = kg_json_str(kg_json_at(list, i), "headers", &text, err);
        if (!rc)
            rc = user_header(o, text, err);
    }
    return rc;
}

/* --- the rest --- */

static int read_prices(const kg_json *json, kg_llm_options *o, kg_error *err) {
    const kg_json *list = given(json, "prices");
    int rc = KG_OK;
    for (size_t i = kg_json_size(list); !rc && !o->price.known && i-- > 0;) {
        const char *path = "";
        rc = kg_json_str(kg_json_at(list, i), "prices", &path, err);
        if (!rc)
            rc = kg_llm_price_find(path, o->model, &o->price, err);
    }
    if (rc || o->price.known)
        return rc;
    const char *host = strstr(o->host, "://");
    if (host && local_host(host + 3)) {
        o->price.known = true; /* one's own machine costs nothing a token */
        return KG_OK;
    }
    if (o->limit.nano_usd)
        return kg_fail(err, KG_EINVAL,
                       "a budget in money needs the price of %s, which no price table has: give "
                       "--prices FILE (as kernels/prompts/prices.json), or another kind of budget",
                       o->model);
    return KG_OK;
}

static int read_limits(const kg_json *json, kg_llm_options *o, kg_error *err) {
    double usd = 0;
    int rc = read_number(json, "calls", 0, INT64_C(1) << 40, &o->limit.calls, err);
    if (!rc)
        rc = read_number(json, "tokens", 0, INT64_C(1) << 50, &o->limit.tokens, err);
    if (!rc && given(json, "usd"))
        rc = kg_json_double(given(json, "usd"), "usd", &usd, err);
    if (!rc && !(usd >= 0 && usd <= 1e6))
        rc = kg_fail(err, KG_EINVAL, "usd is %g; give 0 (no limit) to 1000000", usd);
    if (!rc)
        o->limit.nano_usd = (int64_t)floor(usd * 1e9 + 0.5);
    return rc;
}

static int read_numbers(const kg_json *json, kg_llm_options *o, kg_error *err) {
    int64_t in_flight = 4, retries = 6, seed = 0;
    bool stream = true;
    double t = NAN;
    int rc = read_number(json, "in_flight", 1, KG_LLM_MAX_IN_FLIGHT, &in_flight, err);
    if (!rc)
        rc = read_number(json, "retries", 0, 100, &retries, err);
    if (!rc)
        rc = read_number(json, "seed", 0, INT64_C(1) << 52, &seed, err);
    if (!rc)
        rc = read_number(json, "max_tokens", 1, 10000000, &o->max_tokens, err);
    if (!rc)
        rc = read_number(json, "connect_ms", 1, MOST_MS, &o->connect_ms, err);
    if (!rc)
        rc = read_number(json, "first_byte_ms", 1, MOST_MS, &o->first_byte_ms, err);
    if (!rc)
        rc = read_number(json, "idle_ms", 1, MOST_MS, &o->idle_ms, err);
    if (!rc)
        rc = read_number(json, "total_ms", 1, MOST_MS, &o->total_ms, err);
    if (!rc)
        rc = read_number(json, "backoff_ms", 1, MOST_MS, &o->backoff_ms, err);
    if (!rc && given(json, "stream"))
        rc = kg_json_bool(given(json, "stream"), "stream", &stream, err);
    if (!rc && given(json, "temperature"))
        rc = kg_json_double(given(json, "temperature"), "temperature", &t, err);
    o->in_flight = (int)in_flight;
    o->retries = (int)retries;
    o->seed = (uint64_t)seed;
    o->stream = stream;
    o->temperature = t;
    return rc;
}

int kg_llm_options_read(const kg_json *json, kg_llm_options *o, kg_error *err) {
    static const char *const keys[] = {
        "endpoint",   "model",         "key_env",   "headers",  "proxy",      "ca",
        "effort",     "stream",        "in_flight", "retries",  "max_tokens", "temperature",
        "connect_ms", "first_byte_ms", "idle_ms",   "total_ms", "backoff_ms", "seed",
        "calls",      "tokens",        "usd",       "prices",   NULL};
    *o = (kg_llm_options){.max_tokens = MAX_TOKENS,
                          .connect_ms = CONNECT_MS,
                          .first_byte_ms = FIRST_BYTE_MS,
                          .idle_ms = IDLE_MS,
                          .total_ms = TOTAL_MS,
                          .backoff_ms = BACKOFF_MS};
    int rc = kg_json_only(json, "llm", keys, err);
    if (!rc && !given(json, "model"))
        rc = kg_fail(err, KG_EINVAL, "no model: name one with --llm NAME");
    if (!rc)
        rc = copy_text(json, "model", &o->model, err);
    if (!rc)
        rc = copy_text(json, "proxy", &o->proxy, err);
    if (!rc)
        rc = copy_text(json, "ca", &o->ca_file, err);
    if (!rc)
        rc = copy_text(json, "effort", &o->effort, err);
    if (!rc)
        rc = read_numbers(json, o, err);
    if (!rc)
        rc = read_limits(json, o, err);
    if (!rc)
        rc = read_key(json, o, err);
    if (!rc)
        rc = find_endpoint(json, o, err);
    if (!rc)
        rc = read_headers(json, o, err);
    if (!rc)
        rc = read_prices(json, o, err);
    return rc;
}
