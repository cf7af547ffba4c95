/* Successive halving. Each rung judges what is left, longer than the one before, and keeps the best
 * third for each Case; the last rung judges fully and gives the Records. The sources take turns, so
 * that a short budget meets each. It refuses to look at a Candidate twice: what the journal has is
 * taken from there. */
#define _GNU_SOURCE /* the affinity of this process */
#include "tune/search.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/stop.h"
#include "sys/proc.h"

/* A third goes on: with the noise of a shared machine (a few percent) the best of a hundred is
 * among the best thirty-three of a short timing. */
#define KEEP_ONE_IN 3
/* Fully judged for each Case at most. */
#define FINALISTS 2
#define DEFAULT_CANDIDATES 96
#define MAX_GRID 65536 /* combinations of which those that fit are looked for */
/* Compiled ahead of being judged: enough to fill the pool, few enough that a budget is not spent on
 * it. */
#define BATCH 16
/* How much longer a Candidate is judged fully than at first: all sets, 41 calls and not 5. Time for
 * the last rung is kept by that, up to this part of the budget. */
#define FULL_COSTS 4
#define FULL_PART 4

typedef struct candidate {
    int source;
    size_t turn;  /* among the source's */
    size_t place; /* the best over the Cases, when thinned last */
    kg_tuning tuning;
    char id[65];
    bool dropped; /* for no Case */
    bool failed;  /* judged, and not `pass` */
    bool alive;   /* in the present rung */
    double time_ns[KG_MAX_CASES];
    int record; /* index in the result's records, or -1 */
} candidate;

typedef struct search {
    const char *op;
    const kg_sources *sources;
    const kg_evaluator *evaluator;
    kg_journal *journal;
    const kg_search_options *options;
    kg_search_result *result;
    candidate *all;
    size_t n;
    int64_t started_ns, deadline_ns;
    double spent_before;   /* seconds, by earlier lives of this Run */
    size_t journal_before; /* entries that were there when the search began */
    int64_t noted_ns;      /* wall clock that went into the journal */
    int64_t quick_ns;      /* for judging in the first rung, of how many */
    size_t nquick;
    pthread_mutex_t lock; /* over journal and result, while several lanes judge */
} search;

static size_t lanes_of(const search *s) {
    size_t n = s->evaluator->lanes;
    return n < 1 ? 1 : n < KG_MAX_LANES ? n : KG_MAX_LANES;
}

/* What the last rung will take, as far as the first tells. Under the lock. */
static int64_t reserve(const search *s, kg_level level) {
    int64_t most = s->options->budget_ms * 1000000 / FULL_PART;
    if (level == KG_LEVEL_FULL || s->nquick == 0)
        return 0;
    int64_t finalists = (int64_t)(FINALISTS * s->evaluator->ncases / lanes_of(s));
    int64_t all = FULL_COSTS * (s->quick_ns / (int64_t)s->nquick) * (finalists ? finalists : 1);
    return all < most ? all : most;
}

static bool late(const search *s, kg_level level) {
    return kg_now_ns() + reserve(s, level) >= s->deadline_ns;
}

static double spent(const search *s) {
    return s->spent_before + (double)(kg_now_ns() - s->started_ns) * 1e-9;
}

static void tell(const search *s, const kg_json *entry) {
    kg_buf text;
    if (!s->options->progress)
        return;
    kg_buf_init(&text, 0);
    kg_json_canonical(entry, &text);
    if (!text.status && text.data)
        s->options->progress(s->options->progress_ctx, text.data);
    kg_buf_free(&text);
}

/* Takes fields. */
static int note(search *s, const char *kind, kg_json *fields, kg_error *err) {
    int64_t start = kg_now_ns();
    kg_json_set_str(fields, "op", s->op);
    int rc = kg_journal_add(s->journal, kind, fields, err);
    if (!rc)
        tell(s, kg_journal_at(s->journal, kg_journal_size(s->journal) - 1));
    s->noted_ns += kg_now_ns() - start;
    return rc;
}

/* --- the list of Candidates --- */

static size_t changed(const kg_plan *p, const kg_tuning *a, const kg_tuning *b) {
    size_t n = 0;
    for (size_t i = 0; i < p->ntunables; i++)
        n += a->value[i] != b->value[i];
    return n;
}

/* The first of them and those that differ from it in one value alone to the front, as many as are
 * taken: what one tunable does is known early. Of the rest, evenly. */
static int near_first(const kg_plan *p, kg_tuning *list, size_t n, size_t take, kg_error *err) {
    kg_tuning *rest = malloc((n ? n : 1) * sizeof *rest);
    size_t near = 0, far = 0;
    if (!rest)
        return kg_fail(err, KG_ENOMEM, "%zu combinations", n);
    for (size_t i = 0; i < n; i++) {
        if (near < take && (!near || changed(p, &list[i], &list[0]) <= 1))
            list[near++] = list[i];
        else
            rest[far++] = list[i];
    }
    for (size_t i = near; i < take; i++)
        list[i] = rest[(i - near) * far / (take - near)];
    free(rest);
    return KG_OK;
}

/* Of a source's combinations those that are for some Case, thinned. Where none is, the default
 * alone, so that the search drops it and says why. */
static int fitting_tunings(const search *s, const kg_source *src, kg_tuning **out, size_t *n,
                           kg_error *err) {
    const kg_evaluator *e = s->evaluator;
    size_t most = s->options->max_candidates ? s->options->max_candidates : DEFAULT_CANDIDATES;
    kg_tuning *list = NULL;
    size_t all = 0, fit = 0;
    int rc = kg_tunings(src->plan, e->fits ? MAX_GRID : most, &list, &all, err);
    if (rc)
        return rc;
    for (size_t i = 0; e->fits && i < all; i++) {
        kg_error why;
        if (e->fits(e->ctx, src, &list[i], &why) == KG_OK)
            list[fit++] = list[i];
    }
    if (!e->fits)
        fit = all;
    size_t take = fit < most ? fit : most;
    rc = near_first(src->plan, list, fit, take, err);
    if (rc) {
        free(list);
        return rc;
    }
    *out = list;
    *n = take ? take : all != 0;
    return KG_OK;
}

static int add_source(search *s, int source, kg_error *err) {
    const kg_source *src = &s->sources->items[source];
    kg_tuning *list = NULL;
    size_t n = 0;
    int rc = fitting_tunings(s, src, &list, &n, err);
    candidate *grown = rc ? NULL : realloc(s->all, (s->n + n + 1) * sizeof *grown);
    if (!rc && !grown)
        rc = kg_fail(err, KG_ENOMEM, "%zu Candidates", s->n + n);
    if (grown)
        s->all = grown;
    for (size_t i = 0; !rc && i < n; i++) {
        candidate *c = &s->all[s->n];
        *c = (candidate){
            .source = source, .turn = i, .tuning = list[i], .record = -1, .alive = true};
        rc = kg_candidate_id(src->text, src->n, src->plan, &c->tuning, c->id, err);
        for (size_t k = 0; !rc && k < s->n; k++)
            if (!strcmp(s->all[k].id, c->id))
                c->alive = false;
        if (!rc && c->alive)
            s->n++;
    }
    free(list);
    return rc;
}

static int by_turn(const void *pa, const void *pb) {
    const candidate *a = pa, *b = pb;
    if (a->turn != b->turn)
        return a->turn < b->turn ? -1 : 1;
    return (a->source > b->source) - (a->source < b->source);
}

/* --- compiling ahead --- */

typedef struct pool {
    search *s;
    candidate **work;
    size_t n;
    atomic_size_t next;
} pool;

static void *prepare_some(void *arg) {
    pool *p = arg;
    for (;;) {
        size_t i = atomic_fetch_add(&p->next, 1);
        if (i >= p->n || kg_stop_wanted())
            return NULL;
        candidate *c = p->work[i];
        const kg_evaluator *e = p->s->evaluator;
        kg_error err;
        if (e->prepare(e->ctx, &p->s->sources->items[c->source], &c->tuning, &err) == KG_ENOTFOUND)
            c->dropped = true;
    }
}

static int jobs(const search *s) {
    cpu_set_t set;
    if (s->options->compile_jobs > 0)
        return s->options->compile_jobs;
    return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

/* Ends when every job has ended, so that nothing of it runs while something is timed. */
static void prepare(search *s, candidate **work, size_t n) {
    pthread_t threads[64];
    pool p = {.s = s, .work = work, .n = n};
    int want = jobs(s) < 64 ? jobs(s) : 64, started = 0;
    while (started < want - 1 && (size_t)started + 1 < n &&
           !pthread_create(&threads[started], NULL, prepare_some, &p))
        started++;
    prepare_some(&p);
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
}

/* --- judging one, or taking it from the journal --- */

static void take_times(candidate *c, const kg_json *times, size_t ncases) {
    for (size_t i = 0; i < ncases; i++) {
        double t = 0;
        if (kg_json_double(kg_json_at(times, i), "time_ns", &t, NULL))
            t = 0;
        c->time_ns[i] = t;
    }
}

static int keep_record(search *s, candidate *c, kg_json *record, kg_error *err) {
    kg_search_result *r = s->result;
    kg_json **grown = realloc(r->records, (r->nrecords + 1) * sizeof *grown);
    if (!grown) {
        kg_json_free(record);
        return kg_fail(err, KG_ENOMEM, "%zu Records", r->nrecords + 1);
    }
    r->records = grown;
    c->record = (int)r->nrecords;
    r->records[r->nrecords++] = record;
    return KG_OK;
}

static bool text_is(const kg_json *entry, const char *key, const char *want) {
    const char *s;
    return !kg_json_str(kg_json_get(entry, key), key, &s, NULL) && !strcmp(s, want);
}

/* The verdict that an earlier life of this Run gave at this level. */
static const kg_json *remembered(const search *s, const candidate *c, kg_level level) {
    for (size_t i = 0; i < s->journal_before; i++) {
        const kg_json *e = kg_journal_at(s->journal, i);
        int64_t l;
        if (text_is(e, "kind", "verdict") && text_is(e, "op", s->op) && text_is(e, "id", c->id) &&
            !kg_json_int(kg_json_get(e, "level"), "level", &l, NULL) && l == (int64_t)level)
            return e;
    }
    return NULL;
}

/* What earlier lives of this Run spent on this Op, in seconds. */
static double spent_before(const search *s) {
    double most = 0, x;
    for (size_t i = 0; i < s->journal_before; i++) {
        const kg_json *e = kg_journal_at(s->journal, i);
        if (text_is(e, "kind", "verdict") && text_is(e, "op", s->op) &&
            !kg_json_double(kg_json_get(e, "spent_s"), "spent_s", &x, NULL) && x > most)
            most = x;
    }
    return most;
}

static int resume(search *s, candidate *c, const kg_json *entry, kg_error *err) {
    const char *name = "";
    kg_json_str(kg_json_get(entry, "verdict"), "verdict", &name, NULL);
    int v = kg_verdict_parse(name);
    if (v < 0)
        return kg_fail(err, KG_EFORMAT, "journal: verdict \"%s\" is none", name);
    s->result->resumed++;
    s->result->verdicts[v]++;
    c->failed = v != KG_VERDICT_PASS;
    take_times(c, kg_json_get(entry, "time_ns"), s->evaluator->ncases);
    tell(s, entry);
    const kg_json *record = kg_json_get(entry, "record");
    if (!kg_json_is_object(record))
        return KG_OK;
    kg_json *copy = kg_json_copy(record);
    return copy ? keep_record(s, c, copy, err) : kg_fail(err, KG_ENOMEM, "Record");
}

static kg_json *verdict_entry(const search *s, const candidate *c, kg_level level,
                              const kg_outcome *o, int64_t took_ns) {
    const kg_source *src = &s->sources->items[c->source];
    kg_json *e = kg_json_new_object(), *times = kg_json_new_array();
    kg_json_set_str(e, "id", c->id);
    kg_json_set_str(e, "source", src->name);
    kg_json_set(e, "tunables", kg_tuning_to_json(src->plan, &c->tuning));
    kg_json_set_int(e, "level", (int64_t)level);
    kg_json_set_str(e, "verdict", kg_verdict_name((int)o->verdict));
    kg_json_set_str(e, "message", o->message);
    kg_json_set_double(e, "took_s", (double)took_ns * 1e-9);
    kg_json_set_double(e, "spent_s", spent(s));
    for (size_t i = 0; i < s->evaluator->ncases; i++)
        kg_json_push_double(times, o->time_ns[i]);
    kg_json_set(e, "time_ns", times);
    if (o->record)
        kg_json_set(e, "record", kg_json_copy(o->record));
    return e;
}

/* Under the lock. Takes the outcome's Record. */
static int learn(search *s, candidate *c, kg_level level, kg_outcome *o, int64_t took_ns,
                 kg_error *err) {
    int rc = note(s, "verdict", verdict_entry(s, c, level, o, took_ns), err);
    if (rc) {
        kg_json_free(o->record);
        return rc;
    }
    s->result->judged++;
    s->result->verdicts[o->verdict]++;
    if (level == KG_LEVEL_QUICK) {
        s->quick_ns += took_ns;
        s->nquick++;
    }
    c->failed = o->verdict != KG_VERDICT_PASS;
    memcpy(c->time_ns, o->time_ns, sizeof c->time_ns);
    return o->record ? keep_record(s, c, o->record, err) : KG_OK;
}

/* Under the lock: whether an earlier life of this Run has the answer, which is taken. */
static bool known(search *s, candidate *c, kg_level level, int *rc, kg_error *err) {
    const kg_json *before = remembered(s, c, level);
    if (before)
        *rc = resume(s, c, before, err);
    return before != NULL;
}

static int judge(search *s, candidate *c, size_t lane, kg_level level, kg_error *err) {
    int rc = KG_OK;
    pthread_mutex_lock(&s->lock);
    bool done = known(s, c, level, &rc, err);
    pthread_mutex_unlock(&s->lock);
    if (done)
        return rc;
    kg_outcome o = {0};
    int64_t start = kg_now_ns();
    rc = s->evaluator->judge(s->evaluator->ctx, lane, &s->sources->items[c->source], &c->tuning,
                             level, &o, err);
    if (rc)
        return rc;
    if (o.verdict != KG_VERDICT_PASS && kg_stop_wanted()) {
        /* It may be the stop that it failed of. */
        kg_json_free(o.record);
        return kg_fail(err, KG_EINTR, "search over %s stopped", s->op);
    }
    pthread_mutex_lock(&s->lock);
    rc = learn(s, c, level, &o, kg_now_ns() - start, err);
    pthread_mutex_unlock(&s->lock);
    return rc;
}

/* --- several at once, where there are several devices --- */

typedef struct lanes {
    search *s;
    candidate **work;
    size_t n;
    kg_level level;
    bool all; /* whatever the clock says */
    atomic_size_t next;
    atomic_int rc; /* the first that is not KG_OK ends all lanes after their present Candidate */
    kg_error err;  /* of the first; under the search's lock */
} lanes;

typedef struct lane {
    lanes *all;
    size_t index;
    pthread_t thread;
} lane;

static void fail_lanes(lanes *l, int rc, const kg_error *err) {
    pthread_mutex_lock(&l->s->lock);
    if (atomic_load(&l->rc) == KG_OK) {
        l->err = *err;
        atomic_store(&l->rc, rc);
    }
    pthread_mutex_unlock(&l->s->lock);
}

/* Whether a Candidate has passed for each Case; in the last rung, one with a Record. */
static bool answered(const search *s, kg_level level) {
    for (size_t k = 0; k < s->evaluator->ncases; k++) {
        size_t i = 0;
        while (i < s->n && (s->all[i].failed || s->all[i].time_ns[k] <= 0 ||
                            (level == KG_LEVEL_FULL && s->all[i].record < 0)))
            i++;
        if (i == s->n)
            return false;
    }
    return true;
}

/* The time is up for it. One without a time is out; one that the first rung has timed goes on with
 * that. */
static void leave_out(search *s, candidate *c, kg_level level) {
    c->alive = level == KG_LEVEL_LONG;
    s->result->out_of_time = true;
}

/* Whether the time is up for one that nobody knows yet. The default of each source is judged
 * whatever the clock says, and others until there is an answer: a budget too short still gives one.
 */
static bool left_out(lanes *l, candidate *c) {
    search *s = l->s;
    bool out = false;
    if (l->all || c->turn == 0)
        return false;
    pthread_mutex_lock(&s->lock);
    out = late(s, l->level) && answered(s, l->level) && !remembered(s, c, l->level);
    if (out)
        leave_out(s, c, l->level);
    pthread_mutex_unlock(&s->lock);
    return out;
}

static void *judge_some(void *arg) {
    const lane *me = arg;
    lanes *l = me->all;
    for (;;) {
        size_t i = atomic_fetch_add(&l->next, 1);
        kg_error err = {0};
        int rc = KG_OK;
        if (i >= l->n || atomic_load(&l->rc) != KG_OK)
            return NULL;
        if (kg_stop_wanted())
            rc = kg_fail(&err, KG_EINTR, "search over %s stopped", l->s->op);
        else if (!l->work[i]->dropped && !left_out(l, l->work[i]))
            rc = judge(l->s, l->work[i], me->index, l->level, &err);
        if (rc)
            fail_lanes(l, rc, &err);
    }
}

/* This thread is lane 0; a lane without a thread is done without. */
static int judge_batch(search *s, candidate **work, size_t n, kg_level level, bool finish,
                       kg_error *err) {
    lanes all = {.s = s, .work = work, .n = n, .level = level, .all = finish};
    lane each[KG_MAX_LANES];
    size_t want = lanes_of(s), started = 1;
    for (size_t i = 0; i < want; i++)
        each[i] = (lane){.all = &all, .index = i};
    while (started < want && started < n &&
           !pthread_create(&each[started].thread, NULL, judge_some, &each[started]))
        started++;
    judge_some(&each[0]);
    for (size_t i = 1; i < started; i++)
        pthread_join(each[i].thread, NULL);
    for (size_t i = 0; i < n; i++)
        s->result->dropped += work[i]->dropped;
    int rc = atomic_load(&all.rc);
    return rc == KG_OK ? KG_OK : kg_fail(err, rc, "%s", all.err.msg);
}

/* --- rungs --- */

static size_t alive_list(search *s, candidate **list) {
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++)
        if (s->all[i].alive && !s->all[i].dropped && !s->all[i].failed)
            list[n++] = &s->all[i];
    return n;
}

/* Those of a batch that are to be judged, to work; how many. When the time is up only what the
 * journal knows goes on. */
static size_t admit(search *s, candidate **batch, size_t n, kg_level level, bool time_up,
                    candidate **work) {
    size_t ready = 0;
    for (size_t i = 0; i < n; i++) {
        candidate *c = batch[i];
        if (!c->dropped && time_up && !remembered(s, c, level))
            leave_out(s, c, level);
        else
            work[ready++] = c;
    }
    return ready;
}

/* Compiles and judges, and keeps the time of both. Several lanes may wait for the journal at once,
 * which then counts as much as once for each. */
static int prepare_and_judge(search *s, candidate **batch, size_t n, bool time_up, candidate **work,
                             size_t ready, kg_level level, bool finish, kg_error *err) {
    int64_t start = kg_now_ns(), noted = s->noted_ns;
    if (!time_up)
        prepare(s, batch, n);
    int64_t compiled = kg_now_ns();
    int rc = judge_batch(s, work, ready, level, finish, err);
    s->result->compile_ns += compiled - start;
    s->result->judge_ns += kg_now_ns() - compiled - (s->noted_ns - noted);
    return rc;
}

/* Judges a list; what is not reached when the time is up is left out. finish: all of it is reached.
 */
static int run_list(search *s, kg_level level, candidate **list, size_t n, bool finish,
                    kg_error *err) {
    candidate *work[BATCH * KG_MAX_LANES];
    size_t most = BATCH * lanes_of(s), batch;
    int rc = KG_OK;
    for (size_t from = 0; !rc && from < n; from += batch) {
        batch = n - from < most ? n - from : most;
        bool time_up = from > 0 && !finish && late(s, level);
        size_t ready = admit(s, list + from, batch, level, time_up, work);
        rc = prepare_and_judge(s, list + from, batch, time_up, work, ready, level, finish, err);
    }
    return rc;
}

static int run_rung(search *s, kg_level level, candidate **list, kg_error *err) {
    return run_list(s, level, list, alive_list(s, list), false, err);
}

/* The last rung: the best for each Case whatever the clock says, the next best while there is time,
 * or as long as a Case has none that passed. */
static int run_finals(search *s, candidate **list, kg_error *err) {
    candidate *now[FINALISTS * KG_MAX_CASES];
    int rc = KG_OK;
    for (size_t place = 0; !rc && place < FINALISTS; place++) {
        size_t n = alive_list(s, list), ready = 0;
        for (size_t i = 0; i < n; i++)
            if (list[i]->place == place)
                now[ready++] = list[i];
        bool time_up = place > 0 && late(s, KG_LEVEL_FULL) && answered(s, KG_LEVEL_FULL);
        ready = admit(s, now, ready, KG_LEVEL_FULL, time_up, now);
        rc = run_list(s, KG_LEVEL_FULL, now, ready, true, err);
    }
    return rc;
}

static _Thread_local size_t sort_case;

static int by_time(const void *a, const void *b) {
    double x = (*(candidate *const *)a)->time_ns[sort_case];
    double y = (*(candidate *const *)b)->time_ns[sort_case];
    /* 0 is "no time": last. */
    if (x <= 0 || y <= 0)
        return (x <= 0) - (y <= 0);
    return (x > y) - (x < y);
}

/* Leaves alive the best `keep` for each Case. */
static void thin(search *s, candidate **list, size_t keep) {
    size_t n = alive_list(s, list);
    for (size_t i = 0; i < n; i++) {
        list[i]->alive = false;
        list[i]->place = keep;
    }
    for (size_t k = 0; k < s->evaluator->ncases; k++) {
        sort_case = k;
        qsort(list, n, sizeof *list, by_time);
        for (size_t i = 0; i < n && i < keep; i++)
            if (list[i]->time_ns[k] > 0) {
                list[i]->alive = true;
                list[i]->place = i < list[i]->place ? i : list[i]->place;
            }
    }
}

static size_t keep_of(size_t n) {
    size_t keep = (n + KEEP_ONE_IN - 1) / KEEP_ONE_IN;
    return keep < FINALISTS ? FINALISTS : keep;
}

static void choose(search *s) {
    kg_search_result *r = s->result;
    for (size_t k = 0; k < s->evaluator->ncases; k++) {
        kg_winner *w = &r->winners[k];
        *w = (kg_winner){.source = -1};
        for (size_t i = 0; i < s->n; i++) {
            const candidate *c = &s->all[i];
            if (c->failed || c->record < 0 || c->time_ns[k] <= 0)
                continue;
            if (w->source >= 0 && c->time_ns[k] >= w->time_ns)
                continue;
            *w = (kg_winner){.source = c->source,
                             .tuning = c->tuning,
                             .time_ns = c->time_ns[k],
                             .record = r->records[c->record]};
            memcpy(w->id, c->id, sizeof w->id);
        }
    }
}

static int note_rung(search *s, const char *name, size_t n, kg_error *err) {
    kg_json *e = kg_json_new_object();
    kg_json_set_str(e, "rung", name);
    kg_json_set_int(e, "candidates", (int64_t)n);
    return note(s, "rung", e, err);
}

static int run(search *s, candidate **list, kg_error *err) {
    int rc = note_rung(s, "quick", s->n, err);
    if (!rc)
        rc = run_rung(s, KG_LEVEL_QUICK, list, err);
    size_t n = rc ? 0 : alive_list(s, list);
    if (!rc && n > KEEP_ONE_IN * FINALISTS) {
        thin(s, list, keep_of(n));
        n = alive_list(s, list);
        rc = note_rung(s, "long", n, err);
        if (!rc)
            rc = run_rung(s, KG_LEVEL_LONG, list, err);
    }
    if (rc)
        return rc;
    thin(s, list, FINALISTS);
    n = alive_list(s, list);
    rc = note_rung(s, "full", n, err);
    return rc ? rc : run_finals(s, list, err);
}

int kg_search(const char *op, const kg_sources *sources, const kg_evaluator *evaluator,
              kg_journal *journal, const kg_search_options *options, kg_search_result *out,
              kg_error *err) {
    search s = {.op = op,
                .sources = sources,
                .evaluator = evaluator,
                .journal = journal,
                .options = options,
                .result = out,
                .started_ns = kg_now_ns(),
                .journal_before = kg_journal_size(journal)};
    s.spent_before = options->began_ns ? options->spent_s : spent_before(&s);
    if (options->began_ns)
        s.started_ns = options->began_ns;
    s.deadline_ns = s.started_ns + options->budget_ms * 1000000 - (int64_t)(s.spent_before * 1e9);
    pthread_mutex_init(&s.lock, NULL);
    *out = (kg_search_result){.ncases = evaluator->ncases};
    for (size_t i = 0; i < KG_MAX_CASES; i++)
        out->winners[i].source = -1;
    if (evaluator->ncases > KG_MAX_CASES)
        return kg_fail(err, KG_EINVAL, "%s has %zu Cases; %d at most", op, evaluator->ncases,
                       KG_MAX_CASES);
    int rc = KG_OK;
    for (size_t i = 0; !rc && i < sources->n; i++)
        rc = add_source(&s, (int)i, err);
    /* In turn, so that a budget too short for all has seen something of each source. */
    if (!rc && s.n)
        qsort(s.all, s.n, sizeof *s.all, by_turn);
    candidate **list = rc ? NULL : calloc(s.n ? s.n : 1, sizeof *list);
    if (!rc && !list)
        rc = kg_fail(err, KG_ENOMEM, "%zu Candidates", s.n);
    if (!rc && s.n)
        rc = run(&s, list, err);
    if (!rc || rc == KG_EINTR)
        choose(&s);
    out->spent_s = spent(&s);
    free(list);
    free(s.all);
    pthread_mutex_destroy(&s.lock);
    return rc;
}

void kg_search_result_free(kg_search_result *r) {
    for (size_t i = 0; i < r->nrecords; i++)
        kg_json_free(r->records[i]);
    free(r->records);
    *r = (kg_search_result){0};
}
