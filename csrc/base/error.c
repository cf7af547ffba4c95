/* The text of failures. Formatting goes through a copy, so a message may be built from the one that
 * it replaces; nothing here allocates, prints or changes errno. */
#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A message that does not fit ends in "...", cut before a UTF-8 sequence rather than inside it. */
static void store(kg_error *err, const char *text, int would_be) {
    size_t cap = sizeof err->msg;
    size_t n = would_be < 0 ? 0 : (size_t)would_be;
    if (n < cap) {
        memcpy(err->msg, text, n);
        err->msg[n] = '\0';
        return;
    }
    n = cap - 4;
    while (n > 0 && ((unsigned char)text[n] & 0xC0) == 0x80)
        n--;
    memcpy(err->msg, text, n);
    memcpy(err->msg + n, "...", 4);
}

int kg_fail(kg_error *err, int code, const char *fmt, ...) {
    if (!err)
        return code;
    int saved = errno;
    char text[sizeof err->msg];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    err->code = code;
    store(err, text, n);
    errno = saved;
    return code;
}

int kg_fail_prefix(kg_error *err, int code, const char *fmt, ...) {
    if (!err)
        return code;
    int saved = errno;
    char prefix[sizeof err->msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(prefix, sizeof prefix, fmt, ap);
    va_end(ap);
    char text[sizeof err->msg];
    const char *old = err->code == KG_OK ? kg_status_text(code) : err->msg;
    int n = snprintf(text, sizeof text, "%s: %s", prefix, old);
    if (err->code == KG_OK)
        err->code = code;
    store(err, text, n);
    errno = saved;
    return err->code;
}

int kg_give(int rc, const kg_error *e, char *err, size_t nerr) {
    if (rc != KG_OK && err && nerr > 0)
        snprintf(err, nerr, "%s", e->msg);
    return rc;
}

const char *kg_status_name(int code) {
    switch (code) {
#define KG_X(name, value, text)                                                                    \
    case value:                                                                                    \
        return #name;
        KG_STATUS(KG_X)
#undef KG_X
    default:
        return "unknown";
    }
}

const char *kg_status_text(int code) {
    switch (code) {
#define KG_X(name, value, text)                                                                    \
    case value:                                                                                    \
        return text;
        KG_STATUS(KG_X)
#undef KG_X
    default:
        return "unknown";
    }
}
