/* The client's thread: takes questions from a queue, keeps as many in flight as was asked for,
 * repeats what is worth repeating. It handles bytes as a busy job (tune/exclusive.h), so that
 * nothing of it runs while a Candidate is timed on this CPU. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/stop.h"
#include "sys/proc.h"
#include "tune/exclusive.h"
#include "tune/llm_outcome.h"

/* A stop is seen this often. */
#define SLICE_MS 100
#define MAX_BACKOFF_MS 60000
/* Attempts to reach a host that never answered: its name may simply be wrong. */
#define STRANGER_RETRIES 2
/* Of what a server refuses, one at a time: more than kg_llm_adapt can take out. */
#define MAX_ADAPTATIONS 16

typedef struct question {
    struct question *next;
    char id[64];
    char *system, *user;
    int attempt, failures, adaptations;
    int64_t not_before_ns, began_ns;
    kg_spend worst;
    kg_llm_dialect sent_with;
    kg_llm_stream stream;
} question;

typedef struct answer {
    struct answer *next;
    kg_llm_reply reply;
} answer;

struct kg_llm {
    const kg_llm_options *o;
    kg_llm_hooks hooks;
    kg_http *http;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t came;
    /* Under the mutex. */
    question *waiting;
    answer *answers;
    kg_llm_budget budget;
    size_t pending;
    bool closing;
    /* Of the thread alone. */
    kg_llm_dialect dialect;
    question *aloft; /* in flight */
    size_t flying;
    int64_t hold_until_ns, deadline_ns;
    uint64_t random;
    bool proven;
    char fatal[512];  /* empty: none */
    bool unreachable; /* why it is fatal */
};

void kg_llm_reply_free(kg_llm_reply *r) {
    free(r->answer);
    free(r->reasoning);
    *r = (kg_llm_reply){0};
}

static void question_free(question *q) {
    kg_llm_stream_free(&q->stream);
    free(q->system);
    free(q->user);
    free(q);
}

static size_t prompt_bytes(const question *q) {
    return strlen(q->user) + (q->system ? strlen(q->system) : 0);
}

/* xorshift64*: for the jitter, where any will do. */
static double fraction(kg_llm *c) {
    uint64_t x = c->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    c->random = x;
    return (double)((x * UINT64_C(2685821657736338717)) >> 11) * 0x1p-53;
}

/* --- replies --- */

static void append(kg_llm *c, answer *a) {
    pthread_mutex_lock(&c->mutex);
    answer **at = &c->answers;
    while (*at)
        at = &(*at)->next;
    *at = a;
    pthread_cond_broadcast(&c->came);
    pthread_mutex_unlock(&c->mutex);
}

static void scrub_one(const char *secret, char *text) {
    static const char mark[] = "[key]";
    size_t n = strlen(secret);
    if (n < sizeof mark)
        return; /* shorter than its mark: no key that anybody uses */
    for (char *at; (at = strstr(text, secret)) != NULL;) {
        memcpy(at, mark, sizeof mark - 1);
        memmove(at + sizeof mark - 1, at + n, strlen(at + n) + 1);
    }
}

/* Replaces the key, and what headers have out of the environment, wherever it stands. */
static void scrub(const kg_llm *c, char *text) {
    for (size_t i = 0; i < c->o->nsecrets; i++)
        scrub_one(c->o->secrets[i], text);
}

static char *text_or_empty(kg_buf *b) {
    char *text = b->len && !b->status ? kg_buf_take(b) : NULL;
    return text ? text : strdup("");
}

static void fill_reply(kg_llm *c, question *q, const kg_llm_outcome *o, const kg_spend *cost,
                       kg_llm_reply *r) {
    *r = (kg_llm_reply){.end = o->end,
                        .tool_calls = q->stream.tool_calls,
                        .usage = q->stream.usage,
                        .charged = *cost,
                        .attempt = q->attempt,
                        .unreachable = o->unreachable};
    if (q->began_ns)
        r->seconds = (double)(kg_now_ns() - q->began_ns) * 1e-9;
    snprintf(r->id, sizeof r->id, "%s", q->id);
    snprintf(r->finish, sizeof r->finish, "%s", q->stream.finish);
    snprintf(r->message, sizeof r->message, "%s", o->message);
    r->answer = text_or_empty(&q->stream.answer);
    r->reasoning = text_or_empty(&q->stream.reasoning);
    scrub(c, r->message);
    if (r->answer)
        scrub(c, r->answer);
    if (r->reasoning)
        scrub(c, r->reasoning);
}

/* Tells the hook. true: q was answered and is gone. Without memory for the answer it is an empty
 * one that the caller's budget of time ends. */
static bool end_attempt(kg_llm *c, question *q, const kg_llm_outcome *o, const kg_spend *cost,
                        bool final) {
    kg_error err = {0};
    answer *a = calloc(1, sizeof *a);
    if (!a) {
        question_free(q);
        return true;
    }
    fill_reply(c, q, o, cost, &a->reply);
    if (c->hooks.ended && c->hooks.ended(c->hooks.ctx, &a->reply, final, &err)) {
        a->reply.end = KG_LLM_FATAL;
        a->reply.unreachable = false;
        snprintf(a->reply.message, sizeof a->reply.message, "%s", err.msg);
        final = true;
    }
    if (a->reply.end == KG_LLM_FATAL && final && !c->fatal[0]) {
        snprintf(c->fatal, sizeof c->fatal, "%s", a->reply.message);
        c->unreachable = a->reply.unreachable;
    }
    if (!final) {
        kg_llm_reply_free(&a->reply);
        free(a);
        return false;
    }
    append(c, a);
    question_free(q);
    return true;
}

static void refuse(kg_llm *c, question *q, kg_llm_end end, const char *message) {
    static const kg_spend nothing = {0};
    kg_llm_outcome o = {.end = end, .unreachable = c->fatal[0] && c->unreachable};
    q->attempt = 0; /* nothing was sent: what earlier attempts cost is told already */
    snprintf(o.message, sizeof o.message, "%s", message);
    end_attempt(c, q, &o, &nothing, true);
}

/* --- sending --- */

static bool on_data(void *ctx, const char *bytes, size_t n) {
    question *q = ctx;
    return kg_llm_stream_feed(&q->stream, bytes, n);
}

static int send(kg_llm *c, question *q, kg_error *err) {
    kg_buf body;
    kg_buf_init(&body, 0);
    int64_t total = c->o->total_ms;
    if (c->deadline_ns) {
        int64_t left = (c->deadline_ns - kg_now_ns()) / 1000000;
        total = left < total ? left : total;
    }
    int rc = kg_llm_body(c->o, &c->dialect, q->system, q->user, &body, err);
    if (!rc && c->hooks.sending)
        rc = c->hooks.sending(c->hooks.ctx, q->id, q->attempt + 1, &q->worst, err);
    if (!rc) {
        kg_http_request r = {.url = c->o->url,
                             .headers = (const char *const *)c->o->headers,
                             .body = body.data,
                             .body_len = body.len,
                             .connect_ms = c->o->connect_ms,
                             .first_byte_ms = c->o->first_byte_ms,
                             .idle_ms = c->o->idle_ms,
                             .total_ms = total > 0 ? total : 1,
                             .on_data = on_data,
                             .ctx = q};
        q->attempt++;
        q->began_ns = kg_now_ns();
        q->sent_with = c->dialect;
        q->stream.max_tokens = c->dialect.max_tokens;
        rc = kg_http_start(c->http, &r, err);
    }
    kg_buf_free(&body);
    return rc;
}

/* Takes the first question that is due out of the queue; NULL: none, and *wait_ms is how long. */
static question *take_due(kg_llm *c, int *wait_ms) {
    int64_t now = kg_now_ns(), soonest = now + (int64_t)SLICE_MS * 1000000;
    question *found = NULL;
    pthread_mutex_lock(&c->mutex);
    for (question **at = &c->waiting; *at && !found; at = found ? at : &(*at)->next) {
        int64_t due = (*at)->not_before_ns;
        if (due < c->hold_until_ns)
            due = c->hold_until_ns;
        if (due <= now) {
            found = *at;
            *at = found->next;
            found->next = NULL;
            break;
        }
        soonest = due < soonest ? due : soonest;
    }
    pthread_mutex_unlock(&c->mutex);
    *wait_ms = (int)((soonest - now) / 1000000) + 1;
    return found;
}

static void put_back(kg_llm *c, question *q) {
    pthread_mutex_lock(&c->mutex);
    q->next = c->waiting;
    c->waiting = q;
    pthread_mutex_unlock(&c->mutex);
}

static kg_llm_room reserve(kg_llm *c, question *q, char *text, size_t n) {
    pthread_mutex_lock(&c->mutex);
    q->worst = kg_llm_worst(c->o, c->dialect.max_tokens, prompt_bytes(q));
    kg_llm_room room = kg_llm_reserve(&c->budget, &q->worst);
    kg_llm_budget_text(&c->budget, text, n);
    pthread_mutex_unlock(&c->mutex);
    return room;
}

static void settle(kg_llm *c, const question *q, const kg_spend *cost) {
    pthread_mutex_lock(&c->mutex);
    kg_llm_settle(&c->budget, &q->worst, cost);
    pthread_mutex_unlock(&c->mutex);
}

/* Why nothing may be sent any more; NULL: go on. */
static const char *over(const kg_llm *c, kg_llm_end *end) {
    *end = KG_LLM_STOPPED;
    if (kg_stop_wanted())
        return "stopped";
    if (c->deadline_ns && kg_now_ns() >= c->deadline_ns)
        return "the time is up";
    *end = KG_LLM_FATAL;
    return c->fatal[0] ? c->fatal : NULL;
}

/* false: nothing more can be sent now. */
static bool start_one(kg_llm *c, int *wait_ms) {
    static const kg_spend nothing = {0};
    char text[256], message[512];
    kg_error err = {0};
    kg_llm_end end;
    if (c->flying >= (size_t)c->o->in_flight && !over(c, &end))
        return false;
    question *q = take_due(c, wait_ms);
    if (!q)
        return false;
    const char *ended = over(c, &end);
    if (ended) {
        refuse(c, q, end, ended);
        return true;
    }
    switch (reserve(c, q, text, sizeof text)) {
    case KG_LLM_LATER:
        put_back(c, q);
        return false;
    case KG_LLM_NEVER:
        snprintf(message, sizeof message,
                 "the budget has no room for another request, which may take %lld tokens: %s used",
                 (long long)q->worst.tokens, text);
        refuse(c, q, KG_LLM_NO_BUDGET, message);
        return true;
    case KG_LLM_FITS:
        break;
    }
    if (send(c, q, &err)) {
        settle(c, q, &nothing);
        refuse(c, q, KG_LLM_FATAL, err.msg);
        return true;
    }
    q->next = c->aloft;
    c->aloft = q;
    c->flying++;
    return true;
}

/* --- what came --- */

static int64_t wait_before(kg_llm *c, const question *q, int64_t retry_after_ms) {
    int64_t ms = c->o->backoff_ms;
    for (int i = 1; i < q->failures && ms < MAX_BACKOFF_MS; i++)
        ms *= 2;
    ms = ms < MAX_BACKOFF_MS ? ms : MAX_BACKOFF_MS;
    ms = ms / 2 + (int64_t)((double)ms / 2 * fraction(c)) + 1;
    /* What the server asks for is the least, and not everybody at the same moment after it. */
    return retry_after_ms > 0 ? retry_after_ms + ms / 4 : ms;
}

static bool may_repeat(kg_llm *c, question *q, kg_llm_outcome *o, int64_t retry_after_ms) {
    if (!o->again)
        return false;
    if (o->adapted)
        return ++q->adaptations <= MAX_ADAPTATIONS;
    int most = c->o->retries;
    if (o->end == KG_LLM_FATAL && most > STRANGER_RETRIES)
        most = STRANGER_RETRIES;
    if (++q->failures > most)
        return false;
    int64_t wait_ms = wait_before(c, q, retry_after_ms);
    q->not_before_ns = kg_now_ns() + wait_ms * 1000000;
    if (c->deadline_ns && q->not_before_ns >= c->deadline_ns) {
        o->end = KG_LLM_STOPPED;
        return false;
    }
    if (o->hold && q->not_before_ns > c->hold_until_ns)
        c->hold_until_ns = q->not_before_ns;
    return true;
}

static void land(kg_llm *c, question *q) {
    question **at = &c->aloft;
    while (*at != q)
        at = &(*at)->next;
    *at = q->next;
    q->next = NULL;
    c->flying--;
}

static bool same_dialect(const kg_llm_dialect *a, const kg_llm_dialect *b) {
    return a->completion_tokens == b->completion_tokens && a->temperature == b->temperature &&
           a->system == b->system && a->effort == b->effort && a->stream == b->stream &&
           a->stream_usage == b->stream_usage && a->max_tokens == b->max_tokens;
}

/* Of what may have been billed. Who went on past max_tokens bills more than was reserved, and the
 * budget is to know. */
static kg_spend cost_of(const kg_llm *c, const question *q) {
    const kg_llm_stream *s = &q->stream;
    if (!s->overrun)
        return s->usage.known ? kg_llm_cost(c->o, &s->usage) : q->worst;
    int64_t written = kg_llm_stream_tokens(s), most = q->sent_with.max_tokens;
    return kg_llm_worst(c->o, written > most ? written : most, prompt_bytes(q));
}

static void handle(kg_llm *c, const kg_http_result *r) {
    question *q = r->ctx;
    kg_llm_outcome o;
    kg_llm_dialect learnt = q->sent_with;
    kg_spend cost = {.calls = r->sent ? 1 : 0};
    land(c, q);
    kg_llm_judge(c->o, r, &q->stream, c->proven, &learnt, &o);
    /* Of several that were refused for the same thing, one teaches; all are sent again. */
    if (o.adapted && same_dialect(&c->dialect, &q->sent_with))
        c->dialect = learnt;
    if (o.end == KG_LLM_ANSWERED)
        c->proven = true;
    if (o.paid)
        cost = cost_of(c, q);
    settle(c, q, &cost);
    bool again = may_repeat(c, q, &o, r->retry_after_ms);
    if (o.end != KG_LLM_ANSWERED && c->deadline_ns && kg_now_ns() >= c->deadline_ns)
        o.end = KG_LLM_STOPPED;
    if (end_attempt(c, q, &o, &cost, !again))
        return;
    kg_llm_stream_free(&q->stream);
    kg_llm_stream_init(&q->stream);
    put_back(c, q);
}

static bool closing(kg_llm *c) {
    pthread_mutex_lock(&c->mutex);
    bool is = c->closing;
    pthread_mutex_unlock(&c->mutex);
    return is;
}

static void *run(void *arg) {
    kg_llm *c = arg;
    while (!closing(c)) {
        kg_http_result r;
        int wait_ms = SLICE_MS;
        kg_busy_begin();
        while (start_one(c, &wait_ms))
            ;
        while (kg_http_step(c->http, &r))
            handle(c, &r);
        kg_busy_end();
        kg_http_sleep(c->http, wait_ms < SLICE_MS ? wait_ms : SLICE_MS);
    }
    return NULL;
}

/* --- the outside --- */

int kg_llm_open(const kg_llm_options *options, const kg_llm_hooks *hooks, const kg_spend *spent,
                int64_t deadline_ns, kg_llm **out, kg_error *err) {
    kg_http_options http = {.proxy = options->proxy, .ca_file = options->ca_file};
    kg_llm *c = calloc(1, sizeof *c);
    if (!c)
        return kg_fail(err, KG_ENOMEM, "a client");
    c->o = options;
    c->hooks = hooks ? *hooks : (kg_llm_hooks){0};
    c->budget = (kg_llm_budget){.limit = options->limit, .spent = spent ? *spent : (kg_spend){0}};
    c->deadline_ns = deadline_ns;
    c->random = options->seed * UINT64_C(0x9E3779B97F4A7C15) + UINT64_C(0x2545F4914F6CDD1D);
    kg_llm_dialect_begin(options, &c->dialect);
    int rc = kg_http_open(&http, &c->http, err);
    if (rc) {
        free(c);
        return rc;
    }
    pthread_mutex_init(&c->mutex, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&c->came, &clock);
    pthread_condattr_destroy(&clock);
    if (pthread_create(&c->thread, NULL, run, c)) {
        kg_http_close(c->http);
        free(c);
        return kg_fail(err, KG_ENOMEM, "a thread for the client");
    }
    *out = c;
    return KG_OK;
}

int kg_llm_ask(kg_llm *c, const char *id, const char *system, const char *user, kg_error *err) {
    question *q = calloc(1, sizeof *q);
    if (!q || strlen(id) >= sizeof q->id) {
        free(q);
        return kg_fail(err, q ? KG_EINVAL : KG_ENOMEM, "question %.80s", id);
    }
    kg_llm_stream_init(&q->stream);
    snprintf(q->id, sizeof q->id, "%s", id);
    q->user = strdup(user);
    q->system = system ? strdup(system) : NULL;
    if (!q->user || (system && !q->system)) {
        question_free(q);
        return kg_fail(err, KG_ENOMEM, "question %s", id);
    }
    pthread_mutex_lock(&c->mutex);
    question **at = &c->waiting;
    while (*at)
        at = &(*at)->next;
    *at = q;
    c->pending++;
    pthread_mutex_unlock(&c->mutex);
    kg_http_wake(c->http);
    return KG_OK;
}

bool kg_llm_collect(kg_llm *c, int wait_ms, kg_llm_reply *out) {
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += wait_ms / 1000;
    end.tv_nsec += (long)(wait_ms % 1000) * 1000000;
    if (end.tv_nsec >= 1000000000) {
        end.tv_sec++;
        end.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&c->mutex);
    while (!c->answers && pthread_cond_timedwait(&c->came, &c->mutex, &end) == 0)
        ;
    answer *a = c->answers;
    if (a) {
        c->answers = a->next;
        c->pending--;
    }
    pthread_mutex_unlock(&c->mutex);
    if (!a)
        return false;
    *out = a->reply;
    free(a);
    return true;
}

size_t kg_llm_pending(kg_llm *c) {
    pthread_mutex_lock(&c->mutex);
    size_t n = c->pending;
    pthread_mutex_unlock(&c->mutex);
    return n;
}

kg_spend kg_llm_spent(kg_llm *c) {
    pthread_mutex_lock(&c->mutex);
    kg_spend s = c->budget.spent;
    pthread_mutex_unlock(&c->mutex);
    return s;
}

static void drop_list(question *q) {
    while (q) {
        question *next = q->next;
        question_free(q);
        q = next;
    }
}

static void drop_all(kg_llm *c) {
    drop_list(c->waiting);
    drop_list(c->aloft);
    while (c->answers) {
        answer *a = c->answers;
        c->answers = a->next;
        kg_llm_reply_free(&a->reply);
        free(a);
    }
}

void kg_llm_close(kg_llm *c) {
    if (!c)
        return;
    pthread_mutex_lock(&c->mutex);
    c->closing = true;
    pthread_mutex_unlock(&c->mutex);
    kg_http_wake(c->http);
    pthread_join(c->thread, NULL);
    kg_http_close(c->http);
    drop_all(c);
    pthread_mutex_destroy(&c->mutex);
    pthread_cond_destroy(&c->came);
    free(c);
}
