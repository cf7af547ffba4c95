/* HTTP over libcurl's multi interface: several transfers at once on one thread, each with deadlines
 * of its own. The only place that knows libcurl, which is opened (dlopen) at the first use.
 *
 * It follows no redirect (a key would travel along), speaks http and https alone, checks
 * certificates always, and reads neither .netrc nor cookies. It does not retry: what is worth a
 * second try is the caller's to say. One kg_http is of one thread at a time, but for kg_http_wake.
 */
#ifndef KG_SYS_HTTP_H
#define KG_SYS_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

typedef struct kg_http kg_http;

typedef struct kg_http_options {
    const char *proxy;   /* NULL: what the environment says (https_proxy, no_proxy ...) */
    const char *ca_file; /* PEM; NULL: the system's */
} kg_http_options;

/* Why a transfer did not come to its end. */
typedef enum kg_http_failure {
    KG_HTTP_OK,      /* the whole response came, whatever its status */
    KG_HTTP_URL,     /* the URL cannot be used */
    KG_HTTP_RESOLVE, /* no such host */
    KG_HTTP_CONNECT, /* refused, unreachable, or the proxy said no */
    KG_HTTP_TLS,     /* no TLS, or a certificate that is not trusted */
    KG_HTTP_TIMEOUT, /* a deadline passed; the message names which */
    KG_HTTP_CUT,     /* reset or closed before its end */
    KG_HTTP_STOPPED, /* on_data stopped it */
    KG_HTTP_OTHER
} kg_http_failure;

/* What to send. All is copied but ctx. */
typedef struct kg_http_request {
    const char *url;
    const char *const *headers; /* "Name: value", NULL at the end; or NULL */
    const char *body;           /* POST; NULL: GET */
    size_t body_len;
    /* 0: none. connect: until connected; first_byte: from then to the first byte of the body;
     * idle: between bytes of it; total: all of it. */
    int64_t connect_ms, first_byte_ms, idle_ms, total_ms;
    /* Gets the body as it comes; false stops the transfer. */
    bool (*on_data)(void *ctx, const char *bytes, size_t n);
    void *ctx;
} kg_http_request;

typedef struct kg_http_result {
    void *ctx; /* the request's */
    kg_http_failure failure;
    bool sent; /* bytes of the request may have reached the server */
    long status;
    char content_type[128];
    int64_t retry_after_ms; /* -1: not said */
    char message[256];      /* empty when all came */
} kg_http_result;

/* KG_EENV: no libcurl here. */
int kg_http_open(const kg_http_options *options, kg_http **out, kg_error *err);
/* Ends what is under way without a result. */
void kg_http_close(kg_http *h);

int kg_http_start(kg_http *h, const kg_http_request *request, kg_error *err);
size_t kg_http_running(const kg_http *h);
/* Sleeps until there is something to do, at most wait_ms. */
void kg_http_sleep(kg_http *h, int wait_ms);
/* Ends a kg_http_sleep of another thread. */
void kg_http_wake(kg_http *h);
/* Moves bytes, calls on_data and looks at the deadlines; never waits. true: *out is a transfer that
 * ended, and there may be more. */
bool kg_http_step(kg_http *h, kg_http_result *out);

/* Seconds ("120", "1.5") or an HTTP date, as Retry-After has it, in ms from now; -1: neither. */
int64_t kg_http_retry_after(const char *value);

#endif
