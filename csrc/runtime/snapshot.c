/* Publishes snapshots and frees those that no reader can see. A reader writes the epoch it entered
 * in before it loads the snapshot; whoever swaps the snapshot raises the epoch after; so a reader
 * whose epoch is lower may hold the old one, and any other cannot. */
#include "runtime/snapshot.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct retired {
    kg_snapshot *snapshot;
    uint64_t epoch;
    struct retired *next;
} retired;

static _Atomic uint64_t epoch = 1;
static _Atomic(kg_snapshot *) current;
static _Atomic(kg_reader_slot *) readers;
static _Thread_local kg_reader_slot *mine;
static pthread_mutex_t writers = PTHREAD_MUTEX_INITIALIZER;
static retired *old; /* under writers */
static pthread_key_t thread_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* ---- readers ---- */

static void thread_ends(void *slot) {
    kg_reader_slot *me = slot;
    atomic_store(&me->active, 0);
    me->depth = 0;
    atomic_store(&me->taken, false);
}

static void lock_before_fork(void) {
    pthread_mutex_lock(&writers);
}

static void unlock_after_fork(void) {
    pthread_mutex_unlock(&writers);
}

/* Only the forking thread lives on in the child: the others are inside nothing any more. */
static void child_after_fork(void) {
    for (kg_reader_slot *r = atomic_load(&readers); r != NULL; r = r->next)
        if (r != mine)
            thread_ends(r);
    pthread_mutex_unlock(&writers);
}

static void set_up(void) {
    pthread_key_create(&thread_key, thread_ends);
    pthread_atfork(lock_before_fork, unlock_after_fork, child_after_fork);
}

static kg_reader_slot *claim(void) {
    pthread_once(&once, set_up);
    for (kg_reader_slot *r = atomic_load(&readers); r != NULL; r = r->next) {
        bool was = false;
        if (atomic_compare_exchange_strong(&r->taken, &was, true))
            return r;
    }
    kg_reader_slot *r = calloc(1, sizeof(*r));
    if (r == NULL)
        return NULL;
    atomic_store(&r->taken, true);
    r->next = atomic_load(&readers);
    while (!atomic_compare_exchange_weak(&readers, &r->next, r))
        ;
    return r;
}

kg_reader_slot *kg_reader_enter(void) {
    kg_reader_slot *me = mine;
    if (me == NULL) {
        me = claim();
        if (me == NULL)
            return NULL;
        mine = me;
        pthread_setspecific(thread_key, me);
    }
    if (me->depth++ == 0)
        atomic_store(&me->active, atomic_load_explicit(&epoch, memory_order_acquire));
    return me;
}

void kg_reader_leave(kg_reader_slot *me) {
    if (--me->depth == 0)
        atomic_store_explicit(&me->active, 0, memory_order_release);
}

void kg_reader_sum(uint64_t *served, uint64_t *fallbacks) {
    *served = *fallbacks = 0;
    for (kg_reader_slot *r = atomic_load(&readers); r != NULL; r = r->next) {
        *served += atomic_load_explicit(&r->served, memory_order_relaxed);
        *fallbacks += atomic_load_explicit(&r->fallbacks, memory_order_relaxed);
    }
}

const kg_snapshot *kg_snapshot_current(void) {
    return atomic_load(&current);
}

static size_t home(uint64_t hash) {
    return (size_t)hash & (2 * KG_CLASSES_MAX - 1);
}

/* At most half of the slots are ever taken, so a probe ends. */
kg_class *kg_snapshot_find(const kg_snapshot *s, uint64_t hash, const void *signature, size_t n) {
    for (size_t i = home(hash);; i = home(i + 1)) {
        kg_class *c = atomic_load_explicit(&s->slots[i], memory_order_acquire);
        if (c == NULL)
            return NULL;
        if (c->hash == hash && c->nsignature == n && memcmp(c->signature, signature, n) == 0)
            return c;
    }
}

kg_class *kg_reader_recall(const kg_reader_slot *me, const kg_snapshot *s, const void *signature,
                           size_t n) {
    kg_class *c = me->in == s->serial ? me->last : NULL;
    return c != NULL && c->nsignature == n && memcmp(c->signature, signature, n) == 0 ? c : NULL;
}

/* ---- writers ---- */

typedef struct message {
    struct message *next;
    void *sink;
    kg_log_level level;
    char text[];
} message;

static _Thread_local bool holding;
static _Thread_local message *waiting, **last;

static void deliver(void *sink, kg_log_level level, const char *text) {
    kg_log_sink call;
    memcpy(&call, &sink, sizeof(call));
    call(NULL, level, text);
}

void kg_deferred_sink(void *ctx, kg_log_level level, const char *text) {
    size_t n = strlen(text) + 1;
    message *m = holding ? malloc(sizeof(*m) + n) : NULL;
    if (!holding)
        deliver(ctx, level, text);
    if (m == NULL)
        return;
    *m = (message){.sink = ctx, .level = level};
    memcpy(m->text, text, n);
    *(waiting == NULL ? &waiting : last) = m;
    last = &m->next;
}

void kg_writers_lock(void) {
    pthread_mutex_lock(&writers);
    holding = true;
}

void kg_writers_unlock(void) {
    message *m = waiting;
    waiting = NULL;
    holding = false;
    pthread_mutex_unlock(&writers);
    while (m != NULL) {
        message *next = m->next;
        deliver(m->sink, m->level, m->text);
        free(m);
        m = next;
    }
}

void kg_reg_release(kg_reg *r) {
    if (r == NULL || atomic_fetch_sub(&r->refs, 1) != 1)
        return;
    kg_index_free(r->index);
    free(r->path);
    free(r);
}

void kg_class_free(kg_class *c) {
    if (c != NULL)
        kg_ready_clear(&c->ready);
    free(c);
}

static void free_snapshot(kg_snapshot *s) {
    for (size_t i = 0; i < 2 * KG_CLASSES_MAX; i++)
        kg_class_free(atomic_load_explicit(&s->slots[i], memory_order_relaxed));
    for (size_t i = 0; i < s->nregs; i++)
        kg_reg_release(s->regs[i]);
    free(s);
}

kg_snapshot *kg_snapshot_new(kg_reg *const *regs, size_t n, kg_policy policy) {
    static _Atomic uint64_t serials;
    kg_snapshot *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return NULL;
    s->serial = atomic_fetch_add(&serials, 1) + 1;
    s->policy = policy;
    s->nregs = n;
    for (size_t i = 0; i < n; i++) {
        s->regs[i] = regs[i];
        atomic_fetch_add(&regs[i]->refs, 1);
    }
    return s;
}

static uint64_t oldest_reader(void) {
    uint64_t oldest = UINT64_MAX;
    for (kg_reader_slot *r = atomic_load(&readers); r != NULL; r = r->next) {
        uint64_t at = atomic_load(&r->active);
        if (at != 0 && at < oldest)
            oldest = at;
    }
    return oldest;
}

static void free_unseen(void) {
    uint64_t oldest = oldest_reader();
    for (retired **p = &old; *p != NULL;) {
        retired *r = *p;
        if (r->epoch > oldest) {
            p = &r->next;
            continue;
        }
        *p = r->next;
        free_snapshot(r->snapshot);
        free(r);
    }
}

void kg_snapshot_publish(kg_snapshot *s) {
    kg_snapshot *before = atomic_exchange(&current, s);
    uint64_t now = atomic_fetch_add(&epoch, 1) + 1;
    retired *r = before != NULL ? malloc(sizeof(*r)) : NULL;
    if (r != NULL) { /* else it leaks, which is better than freeing it under a reader */
        *r = (retired){.snapshot = before, .epoch = now, .next = old};
        old = r;
    }
    free_unseen();
}

kg_class *kg_snapshot_insert(kg_class *c) {
    kg_snapshot *s = atomic_load(&current);
    if (s->nclasses == KG_CLASSES_MAX) {
        kg_snapshot *fresh = kg_snapshot_new(s->regs, s->nregs, s->policy);
        if (fresh == NULL) {
            kg_class_free(c);
            return NULL;
        }
        kg_snapshot_publish(fresh);
        s = fresh;
    }
    size_t i = home(c->hash);
    while (atomic_load_explicit(&s->slots[i], memory_order_relaxed) != NULL)
        i = home(i + 1);
    s->nclasses++;
    atomic_store_explicit(&s->slots[i], c, memory_order_release);
    return c;
}
