/* Times a Candidate, and the floor under its time.
 *
 * Each timed call gets an input set at random, copied into the same buffers, and its whole output
 * is compared with that set's oracle; the number of calls is fixed beforehand by the size of the
 * Case, never by how long the first ones took. The judge sleeps while a call runs. Small Cases are
 * timed in the caches (one untimed call before each timed one, as a model that runs the op in a
 * loop has it); a Case that no cache holds is timed as it comes. */
#include <pthread.h>
#include <stdlib.h>

#include "tune/exclusive.h"
#include "tune/judge_internal.h"

enum { SIZES = 6, MAX_REPS = 1024, MANY_SMALL = 4 };

static const uint64_t sizes[SIZES] = {64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20};
/* Above this a call finds little of what the one before left. */
static const int64_t CACHED_BYTES = 32 << 20;
/* Calls this small are repeated more: a wake-up weighs more in them. */
static const int64_t SMALL_BYTES = 4 << 20;
/* A floor below this is less than what it takes to start a loop on two threads. */
static const double MIN_FLOOR_NS = 2000;

static pthread_mutex_t rates_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    uint32_t threads; /* 0: not measured */
    double rate[SIZES];
} measured;

static int measure(const kg_judge *j, kg_error *err) {
    double rates[3 * SIZES];
    kg_worker *w = NULL;
    const kg_worker_options o = {.path = j->options.worker,
                                 .threads = j->options.threads,
                                 .stack = KG_STACK + KG_STACK_OURS};
    int rc = kg_worker_open(&o, &w, err);
    if (rc != KG_OK)
        return rc;
    rc = kg_worker_rates(w, sizes, SIZES, rates, err);
    kg_worker_close(w);
    for (size_t i = 0; rc == KG_OK && i < SIZES; i++) {
        double best = 0;
        for (size_t k = 0; k < 3; k++)
            best = rates[3 * i + k] > best ? rates[3 * i + k] : best;
        /* A second measurement can only find the machine faster. */
        if (measured.threads != j->options.threads || best > measured.rate[i])
            measured.rate[i] = best;
    }
    if (rc == KG_OK)
        measured.threads = j->options.threads;
    return rc;
}

/* The rate of the largest working set that is no larger than the Case: never slower than the Case's
 * own. */
static int floor_of(const kg_judge *j, int64_t bytes, bool again, double *floor_ns, kg_error *err) {
    pthread_mutex_lock(&rates_lock);
    int rc = KG_OK;
    if (again || measured.threads != j->options.threads)
        rc = measure(j, err);
    size_t at = 0;
    while (at + 1 < SIZES && (int64_t)sizes[at + 1] <= bytes)
        at++;
    double rate = measured.rate[at];
    pthread_mutex_unlock(&rates_lock);
    if (rc == KG_OK)
        *floor_ns = rate > 0 ? (double)bytes / rate * 1e9 : 0;
    return rc;
}

static size_t pick_set(const kg_bench *b) {
    size_t n = b->cand->request->all_sets ? b->jc->nsets : 1;
    return (size_t)(kg_random() % n);
}

static int time_calls(kg_bench *b, double *ns, size_t n, bool *ok, kg_error *err) {
    uint32_t warm = b->jc->footprint <= CACHED_BYTES ? 1 : 0;
    *ok = true;
    for (size_t i = 0; i < n; i++) {
        uint64_t one = 0;
        kg_bench_inputs(b, pick_set(b));
        int rc = kg_bench_run(b, 0, KG_SPLIT_SERVED, warm, &one, ok, err);
        if (rc == KG_OK && *ok)
            rc = kg_bench_compare(b, 0, ok, err);
        if (rc != KG_OK || !*ok)
            return rc;
        ns[i] = one > 0 ? (double)one : 1;
    }
    return KG_OK;
}

static int time_once(kg_bench *b, bool *ok, kg_error *err) {
    double ns[MAX_REPS];
    size_t n = b->cand->request->reps;
    n *= b->jc->footprint <= SMALL_BYTES ? MANY_SMALL : 1;
    n = n < MAX_REPS ? n : MAX_REPS;
    int rc = time_calls(b, ns, n, ok, err);
    if (rc == KG_OK && *ok)
        rc = kg_summarize(ns, n, &b->cr->time, err);
    return rc;
}

static bool plausible(const kg_bench *b) {
    return b->cr->floor_ns < MIN_FLOOR_NS || b->cr->time.median >= 0.9 * b->cr->floor_ns;
}

static int time_alone(kg_bench *b, bool *ok, kg_error *err) {
    int rc = floor_of(b->j, b->jc->bytes, false, &b->cr->floor_ns, err);
    if (rc == KG_OK)
        rc = time_once(b, ok, err);
    if (rc == KG_OK && *ok && !plausible(b)) {
        /* The machine may have been busy when its rates were measured. */
        rc = floor_of(b->j, b->jc->bytes, true, &b->cr->floor_ns, err);
        if (rc == KG_OK)
            rc = time_once(b, ok, err);
    }
    return rc;
}

int kg_bench_time(kg_bench *b, bool *ok, kg_error *err) {
    int rc = kg_timing_begin(err);
    if (rc != KG_OK)
        return rc;
    rc = time_alone(b, ok, err);
    kg_timing_end();
    if (rc != KG_OK || !*ok)
        return rc;
    b->cr->timed = true;
    if (plausible(b))
        return KG_OK;
    b->cr->timed = false;
    *ok = false;
    kg_condemn(
        b, KG_VERDICT_IMPLAUSIBLE,
        "a call took %.3g us, but to move its %.3g MB takes at least %.3g us on this machine: the "
        "work was not done in the call, or the bytes that must move are overstated",
        b->cr->time.median / 1e3, (double)b->jc->bytes / 1e6, b->cr->floor_ns / 1e3);
    return KG_OK;
}
