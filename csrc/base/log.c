/* Messages for people. The sink is called without a lock held: a sink may log, and one that needs a
 * lock of its host (an interpreter's) cannot deadlock against a thread that holds it and logs. So a
 * sink's ctx must outlive calls that were under way when the sink was replaced. */
#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

/* Longer messages end in "...". */
#define MESSAGE_MAX 2048
/* Beyond this many different once-messages a process is flooding: the rest are dropped. */
#define ONCE_MAX 16384

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static kg_log_sink the_sink;
static void *the_ctx;
static uint64_t *seen;
static size_t nseen, seen_cap;

void kg_log_set_sink(kg_log_sink sink, void *ctx) {
    pthread_mutex_lock(&lock);
    the_sink = sink;
    the_ctx = ctx;
    pthread_mutex_unlock(&lock);
}

static kg_log_level level_of_environment(const char *value) {
    if (strcmp(value, "debug") == 0)
        return KG_LOG_DEBUG;
    if (strcmp(value, "info") == 0)
        return KG_LOG_INFO;
    if (strcmp(value, "error") == 0)
        return KG_LOG_ERROR;
    return KG_LOG_WARNING;
}

static void to_stderr(kg_log_level level, const char *message) {
    static const char *const names[] = {"debug", "info", "warning", "error"};
    const char *value = getenv("KGEN_LOG");
    if (!value || !*value || strcmp(value, "0") == 0 || level < level_of_environment(value))
        return;
    fprintf(stderr, "kgen: %s: %s\n", names[level], message);
}

static void emit(kg_log_level level, const char *message) {
    pthread_mutex_lock(&lock);
    kg_log_sink sink = the_sink;
    void *ctx = the_ctx;
    pthread_mutex_unlock(&lock);
    if (sink)
        sink(ctx, level, message);
    else
        to_stderr(level, message);
}

static void format(char out[MESSAGE_MAX], const char *fmt, va_list ap)
    __attribute__((format(printf, 2, 0)));

static void format(char out[MESSAGE_MAX], const char *fmt, va_list ap) {
    out[0] = '\0';
    int n = vsnprintf(out, MESSAGE_MAX, fmt, ap);
    if (n >= MESSAGE_MAX)
        memcpy(out + MESSAGE_MAX - 4, "...", 4);
}

void kg_log(kg_log_level level, const char *fmt, ...) {
    char message[MESSAGE_MAX];
    va_list ap;
    va_start(ap, fmt);
    format(message, fmt, ap);
    va_end(ap);
    emit(level, message);
}

/* True the first time; without memory the message counts as new, for a repeated warning is better
 * than none. Called with the lock held. */
static bool remember(uint64_t hash) {
    for (size_t i = 0; i < nseen; i++)
        if (seen[i] == hash)
            return false;
    if (nseen == ONCE_MAX)
        return false;
    if (nseen == seen_cap) {
        size_t cap = seen_cap ? 2 * seen_cap : 16;
        uint64_t *grown = realloc(seen, cap * sizeof *grown);
        if (!grown)
            return true;
        seen = grown;
        seen_cap = cap;
    }
    seen[nseen++] = hash;
    return true;
}

void kg_log_once(kg_log_level level, const char *fmt, ...) {
    char message[MESSAGE_MAX];
    va_list ap;
    va_start(ap, fmt);
    format(message, fmt, ap);
    va_end(ap);
    pthread_mutex_lock(&lock);
    bool fresh = remember(kg_xxh64(message, strlen(message)));
    pthread_mutex_unlock(&lock);
    if (fresh)
        emit(level, message);
}
