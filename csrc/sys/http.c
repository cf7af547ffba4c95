/* Binds libcurl by hand, so that kgen runs where there is none as long as nobody asks for a model.
 * Deadlines are kept here and not by curl: curl knows none between bytes. */
#define _GNU_SOURCE
#define CURL_DISABLE_TYPECHECK
#include "sys/http.h"

#include <curl/curl.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sys/proc.h"

/* A wait longer than this is no longer the server's to ask for. */
#define MAX_RETRY_AFTER_MS INT64_C(86400000)

/* The names that Debian, Fedora and Alpine give the same ABI. */
static const char *const libraries[] = {"libcurl.so.4", "libcurl-gnutls.so.4", NULL};

/* Declared by hand and not by typeof: the header's macros of the same names stay out of it. */
typedef struct api {
    CURLcode (*global_init)(long);
    CURL *(*easy_init)(void);
    void (*easy_cleanup)(CURL *);
    CURLcode (*easy_setopt)(CURL *, CURLoption, ...);
    CURLcode (*easy_getinfo)(CURL *, CURLINFO, ...);
    const char *(*easy_strerror)(CURLcode);
    struct curl_slist *(*slist_append)(struct curl_slist *, const char *);
    void (*slist_free_all)(struct curl_slist *);
    CURLM *(*multi_init)(void);
    CURLMcode (*multi_cleanup)(CURLM *);
    CURLMcode (*multi_add_handle)(CURLM *, CURL *);
    CURLMcode (*multi_remove_handle)(CURLM *, CURL *);
    CURLMcode (*multi_perform)(CURLM *, int *);
    CURLMcode (*multi_poll)(CURLM *, struct curl_waitfd *, unsigned, int, int *);
    CURLMcode (*multi_wakeup)(CURLM *);
    CURLMsg *(*multi_info_read)(CURLM *, int *);
    time_t (*getdate)(const char *, const time_t *);
} api;

static api curl;
static char why[256]; /* empty: curl is bound */
static pthread_once_t once = PTHREAD_ONCE_INIT;

typedef struct transfer {
    struct transfer *next;
    kg_http *http;
    CURL *easy;
    struct curl_slist *headers;
    char *body;
    kg_http_request asked;                   /* the deadlines and on_data */
    int64_t start_ns, connected_ns, last_ns; /* last: the last byte of the body; 0: none yet */
    bool stopped;
    int64_t retry_after_ms;
    char detail[CURL_ERROR_SIZE];
} transfer;

struct kg_http {
    CURLM *multi;
    char *proxy, *ca_file;
    transfer *first;
    size_t running;
};

/* --- libcurl --- */

static bool find(void *lib, const char *name, void *slot) {
    void *symbol = dlsym(lib, name);
    if (!symbol)
        snprintf(why, sizeof why, "libcurl has no %s; it is older than 7.68", name);
    memcpy(slot, &symbol, sizeof symbol);
    return symbol != NULL;
}

static bool bind_all(void *lib) {
    return find(lib, "curl_global_init", &curl.global_init) &&
           find(lib, "curl_easy_init", &curl.easy_init) &&
           find(lib, "curl_easy_cleanup", &curl.easy_cleanup) &&
           find(lib, "curl_easy_setopt", &curl.easy_setopt) &&
           find(lib, "curl_easy_getinfo", &curl.easy_getinfo) &&
           find(lib, "curl_easy_strerror", &curl.easy_strerror) &&
           find(lib, "curl_slist_append", &curl.slist_append) &&
           find(lib, "curl_slist_free_all", &curl.slist_free_all) &&
           find(lib, "curl_multi_init", &curl.multi_init) &&
           find(lib, "curl_multi_cleanup", &curl.multi_cleanup) &&
           find(lib, "curl_multi_add_handle", &curl.multi_add_handle) &&
           find(lib, "curl_multi_remove_handle", &curl.multi_remove_handle) &&
           find(lib, "curl_multi_perform", &curl.multi_perform) &&
           find(lib, "curl_multi_poll", &curl.multi_poll) &&
           find(lib, "curl_multi_wakeup", &curl.multi_wakeup) &&
           find(lib, "curl_multi_info_read", &curl.multi_info_read) &&
           find(lib, "curl_getdate", &curl.getdate);
}

static void load(void) {
    void *lib = NULL;
    for (size_t i = 0; !lib && libraries[i]; i++)
        lib = dlopen(libraries[i], RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        snprintf(why, sizeof why,
                 "no libcurl here: install it (Debian: libcurl4; Fedora: libcurl)");
        return;
    }
    if (bind_all(lib) && curl.global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        snprintf(why, sizeof why, "curl_global_init failed");
}

int kg_http_open(const kg_http_options *options, kg_http **out, kg_error *err) {
    pthread_once(&once, load);
    if (why[0])
        return kg_fail(err, KG_EENV, "%s", why);
    kg_http *h = calloc(1, sizeof *h);
    bool whole = h != NULL;
    if (whole && options && options->proxy)
        whole = (h->proxy = strdup(options->proxy)) != NULL;
    if (whole && options && options->ca_file)
        whole = (h->ca_file = strdup(options->ca_file)) != NULL;
    if (whole)
        whole = (h->multi = curl.multi_init()) != NULL;
    if (!whole) {
        kg_http_close(h);
        return kg_fail(err, KG_ENOMEM, "an HTTP client");
    }
    *out = h;
    return KG_OK;
}

static void transfer_free(transfer *t) {
    if (t->easy)
        curl.easy_cleanup(t->easy);
    curl.slist_free_all(t->headers);
    free(t->body);
    free(t);
}

static void unlink_transfer(kg_http *h, transfer *t) {
    transfer **at = &h->first;
    while (*at && *at != t)
        at = &(*at)->next;
    if (*at)
        *at = t->next;
    h->running--;
    curl.multi_remove_handle(h->multi, t->easy);
}

void kg_http_close(kg_http *h) {
    if (!h)
        return;
    while (h->first) {
        transfer *t = h->first;
        unlink_transfer(h, t);
        transfer_free(t);
    }
    if (h->multi)
        curl.multi_cleanup(h->multi);
    free(h->proxy);
    free(h->ca_file);
    free(h);
}

size_t kg_http_running(const kg_http *h) {
    return h->running;
}

/* --- one transfer --- */

int64_t kg_http_retry_after(const char *value) {
    char *end = NULL;
    double seconds = strtod(value, &end);
    if (end != value) {
        while (*end == ' ' || *end == '\r' || *end == '\n')
            end++;
        if (*end == '\0' && seconds >= 0 && seconds * 1000 <= (double)MAX_RETRY_AFTER_MS)
            return (int64_t)(seconds * 1000);
        if (*end == '\0')
            return -1;
    }
    time_t now = time(NULL), then = curl.getdate ? curl.getdate(value, NULL) : (time_t)-1;
    if (then == (time_t)-1 || (int64_t)(then - now) > MAX_RETRY_AFTER_MS / 1000)
        return -1;
    return then > now ? (int64_t)(then - now) * 1000 : 0;
}

static size_t on_header(char *line, size_t size, size_t n, void *ctx) {
    static const char name[] = "retry-after:", ms[] = "retry-after-ms:";
    transfer *t = ctx;
    char value[128];
    size_t len = size * n, skip = 0;
    if (len > sizeof ms - 1 && strncasecmp(line, ms, sizeof ms - 1) == 0)
        skip = sizeof ms - 1;
    else if (len > sizeof name - 1 && strncasecmp(line, name, sizeof name - 1) == 0)
        skip = sizeof name - 1;
    if (skip && len - skip < sizeof value) {
        memcpy(value, line + skip, len - skip);
        value[len - skip] = '\0';
        int64_t after = kg_http_retry_after(value + strspn(value, " \t"));
        if (after >= 0)
            t->retry_after_ms = skip == sizeof ms - 1 ? after / 1000 : after;
    }
    return len;
}

static size_t on_body(char *bytes, size_t size, size_t n, void *ctx) {
    transfer *t = ctx;
    size_t len = size * n;
    t->last_ns = kg_now_ns();
    if (t->asked.on_data && !t->asked.on_data(t->asked.ctx, bytes, len)) {
        t->stopped = true;
        return len ? 0 : 1;
    }
    return len;
}

static int add_headers(transfer *t, const char *const *headers, kg_error *err) {
    /* No "Expect: 100-continue": some servers wait for ever over it. */
    static const char *const ours[] = {"Expect:", "User-Agent: kgen/" KGEN_VERSION, NULL};
    const char *const *lists[] = {ours, headers ? headers : ours + 2};
    for (size_t l = 0; l < 2; l++)
        for (const char *const *one = lists[l]; *one; one++) {
            struct curl_slist *longer = curl.slist_append(t->headers, *one);
            if (!longer)
                return kg_fail(err, KG_ENOMEM, "headers of a request");
            t->headers = longer;
        }
    return KG_OK;
}

static void limit_protocols(CURL *e) {
#if LIBCURL_VERSION_NUM >= 0x075500
    /* The library may be older than the header that this was built with. */
    if (curl.easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https") == CURLE_OK)
        return;
#endif
    /* CURLOPT_PROTOCOLS by its number: the name is deprecated. CURLPROTO_HTTP | CURLPROTO_HTTPS. */
    curl.easy_setopt(e, (CURLoption)(CURLOPTTYPE_LONG + 181), 3L);
}

static void set_options(transfer *t, const kg_http *h, const kg_http_request *r) {
    CURL *e = t->easy;
    limit_protocols(e);
    curl.easy_setopt(e, CURLOPT_URL, r->url);
    curl.easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
    curl.easy_setopt(e, CURLOPT_FOLLOWLOCATION, 0L);
    curl.easy_setopt(e, CURLOPT_HTTPHEADER, t->headers);
    curl.easy_setopt(e, CURLOPT_ERRORBUFFER, t->detail);
    curl.easy_setopt(e, CURLOPT_HEADERFUNCTION, on_header);
    curl.easy_setopt(e, CURLOPT_HEADERDATA, t);
    curl.easy_setopt(e, CURLOPT_WRITEFUNCTION, on_body);
    curl.easy_setopt(e, CURLOPT_WRITEDATA, t);
    curl.easy_setopt(e, CURLOPT_PRIVATE, t);
    if (r->connect_ms > 0)
        curl.easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS, (long)r->connect_ms);
    if (h->proxy)
        curl.easy_setopt(e, CURLOPT_PROXY, h->proxy);
    if (h->ca_file)
        curl.easy_setopt(e, CURLOPT_CAINFO, h->ca_file);
    if (t->body) {
        curl.easy_setopt(e, CURLOPT_POST, 1L);
        curl.easy_setopt(e, CURLOPT_POSTFIELDS, t->body);
        curl.easy_setopt(e, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)r->body_len);
    }
}

int kg_http_start(kg_http *h, const kg_http_request *request, kg_error *err) {
    transfer *t = calloc(1, sizeof *t);
    if (!t)
        return kg_fail(err, KG_ENOMEM, "a request");
    *t = (transfer){.http = h, .asked = *request, .retry_after_ms = -1, .start_ns = kg_now_ns()};
    int rc = add_headers(t, request->headers, err);
    if (!rc && request->body) {
        t->body = malloc(request->body_len + 1);
        if (t->body)
            memcpy(t->body, request->body, request->body_len);
        else
            rc = kg_fail(err, KG_ENOMEM, "a request of %zu bytes", request->body_len);
    }
    if (!rc && !(t->easy = curl.easy_init()))
        rc = kg_fail(err, KG_ENOMEM, "a request");
    if (!rc) {
        set_options(t, h, request);
        if (curl.multi_add_handle(h->multi, t->easy) != CURLM_OK)
            rc = kg_fail(err, KG_EIO, "curl_multi_add_handle failed");
    }
    if (rc) {
        transfer_free(t);
        return rc;
    }
    t->next = h->first;
    h->first = t;
    h->running++;
    return KG_OK;
}

/* --- all of them --- */

void kg_http_sleep(kg_http *h, int wait_ms) {
    curl.multi_poll(h->multi, NULL, 0, wait_ms, NULL);
}

void kg_http_wake(kg_http *h) {
    curl.multi_wakeup(h->multi);
}

static kg_http_failure failure_of(CURLcode code) {
    switch (code) {
    case CURLE_OK:
        return KG_HTTP_OK;
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
        return KG_HTTP_URL;
    case CURLE_COULDNT_RESOLVE_HOST:
        return KG_HTTP_RESOLVE;
    case CURLE_COULDNT_CONNECT:
    case CURLE_COULDNT_RESOLVE_PROXY:
        return KG_HTTP_CONNECT;
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_SSL_CIPHER:
        return KG_HTTP_TLS;
    case CURLE_OPERATION_TIMEDOUT:
        return KG_HTTP_TIMEOUT;
    case CURLE_PARTIAL_FILE:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
        return KG_HTTP_CUT;
    default:
        return KG_HTTP_OTHER;
    }
}

static void fill(transfer *t, kg_http_failure failure, const char *message, kg_http_result *out) {
    const char *type = NULL;
    long sent = 0;
    *out = (kg_http_result){
        .ctx = t->asked.ctx, .failure = failure, .retry_after_ms = t->retry_after_ms};
    curl.easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &out->status);
    curl.easy_getinfo(t->easy, CURLINFO_CONTENT_TYPE, &type);
    curl.easy_getinfo(t->easy, CURLINFO_REQUEST_SIZE, &sent);
    out->sent = sent > 0;
    if (type)
        snprintf(out->content_type, sizeof out->content_type, "%s", type);
    snprintf(out->message, sizeof out->message, "%s", message);
}

static void finish(transfer *t, kg_http_failure failure, const char *message, kg_http_result *out) {
    fill(t, failure, message, out);
    unlink_transfer(t->http, t);
    transfer_free(t);
}

static bool finish_one(kg_http *h, kg_http_result *out) {
    int left;
    for (CURLMsg *m; (m = curl.multi_info_read(h->multi, &left));) {
        char *ptr = NULL;
        if (m->msg != CURLMSG_DONE)
            continue;
        CURLcode code = m->data.result;
        curl.easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &ptr);
        transfer *t = (transfer *)(void *)ptr;
        kg_http_failure failure = t->stopped ? KG_HTTP_STOPPED : failure_of(code);
        const char *said = t->detail[0] ? t->detail : curl.easy_strerror(code);
        finish(t, failure, failure == KG_HTTP_OK ? "" : said, out);
        return true;
    }
    return false;
}

static bool past(int64_t since_ns, int64_t limit_ms, int64_t now) {
    return limit_ms > 0 && now - since_ns > limit_ms * 1000000;
}

/* The deadline that has passed, in words; NULL: none. */
static const char *overdue(transfer *t, int64_t now) {
    const kg_http_request *r = &t->asked;
    if (past(t->start_ns, r->total_ms, now))
        return "the whole answer took longer than its limit";
    if (!t->connected_ns) {
        curl_off_t us = 0;
        curl.easy_getinfo(t->easy, CURLINFO_PRETRANSFER_TIME_T, &us);
        if (us > 0)
            t->connected_ns = now;
        return NULL;
    }
    if (!t->last_ns)
        return past(t->connected_ns, r->first_byte_ms, now) ? "no byte of an answer came in time"
                                                            : NULL;
    return past(t->last_ns, r->idle_ms, now) ? "the answer stood still for too long" : NULL;
}

bool kg_http_step(kg_http *h, kg_http_result *out) {
    int running;
    curl.multi_perform(h->multi, &running);
    if (finish_one(h, out))
        return true;
    int64_t now = kg_now_ns();
    for (transfer *t = h->first; t; t = t->next) {
        const char *late = overdue(t, now);
        if (!late)
            continue;
        finish(t, KG_HTTP_TIMEOUT, late, out);
        return true;
    }
    return false;
}
