/* Times a Candidate on the CPU, and the floor under its time.
 *
 * The number of calls is fixed beforehand by the size of the Case, never by how long the first ones
 * took. The judge sleeps while a call runs. Small Cases are timed in the caches (one untimed call
 * before each timed one, as a model that runs the op in a loop has it); a Case that no cache holds
 * is timed as it comes. A full measurement whose halves differ is made again, from its second half
 * on, and the steadiest one counts. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "tune/exclusive.h"
#include "tune/judge_cpu.h"

enum { SIZES = 6, MANY_SMALL = 4, TRIES = 3, STEADY_FROM = 15 };

/* Halves of the calls that differ by more are measured again, where there are enough of them. */
static const double DRIFT = 0.03;

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

/* The medians of the first and of the second half, as a share of the whole. */
static int drift_of(const double *ns, size_t n, double *drift, kg_error *err) {
    kg_summary all, first, second;
    int rc = kg_summarize(ns, n, &all, err);
    if (rc == KG_OK)
        rc = kg_summarize(ns, n / 2, &first, err);
    if (rc == KG_OK)
        rc = kg_summarize(ns + n / 2, n - n / 2, &second, err);
    if (rc == KG_OK)
        *drift = fabs(first.median - second.median) / all.median;
    return rc;
}

static int time_calls(kg_bench *b, double *ns, size_t n, bool *ok, kg_error *err) {
    kg_call_time times[KG_MAX_REPS];
    const kg_mode mode = {.split = KG_SPLIT_SERVED,
                          .warm = b->jc->footprint <= CACHED_BYTES ? 1 : 0};
    int rc = kg_time_calls(b, &mode, times, n, ok, err);
    for (size_t i = 0; rc == KG_OK && *ok && i < n; i++)
        ns[i] = times[i].ns > 0 ? (double)times[i].ns : 1;
    return rc;
}

/* How a full measurement went, for the Record. */
static void keep_measure(kg_bench *b, int tries, double drift) {
    kg_json_free(b->cr->measure);
    b->cr->measure = kg_json_new_object();
    kg_json_set_int(b->cr->measure, "tries", tries);
    kg_json_set_double(b->cr->measure, "drift", drift);
}

/* The measurement that is made again begins with the second half of the one before it: what changed
 * in between lies behind it. */
static int time_steady(kg_bench *b, size_t n, bool *ok, kg_error *err) {
    double ns[KG_MAX_REPS], best[KG_MAX_REPS], drift = 0, least = INFINITY;
    size_t kept = 0;
    int tries = 0, rc;
    do {
        rc = time_calls(b, ns + kept, n - kept, ok, err);
        if (rc == KG_OK && *ok)
            rc = drift_of(ns, n, &drift, err);
        if (rc != KG_OK || !*ok)
            return rc;
        if (drift < least)
            memcpy(best, ns, n * sizeof *best);
        least = drift < least ? drift : least;
        kept = n - n / 2;
        memmove(ns, ns + n / 2, kept * sizeof *ns);
    } while (++tries < TRIES && least > DRIFT);
    keep_measure(b, tries, least);
    return kg_summarize(best, n, &b->cr->time, err);
}

static int time_once(kg_bench *b, bool *ok, kg_error *err) {
    double ns[KG_MAX_REPS];
    size_t n = b->cand->request->reps;
    bool full = n >= STEADY_FROM;
    n *= b->jc->footprint <= SMALL_BYTES ? MANY_SMALL : 1;
    n = n < KG_MAX_REPS ? n : KG_MAX_REPS;
    if (full)
        return time_steady(b, n, ok, err);
    int rc = time_calls(b, ns, n, ok, err);
    return rc == KG_OK && *ok ? kg_summarize(ns, n, &b->cr->time, err) : rc;
}

/* A floor below what it takes to start a loop is none. */
static int set_floor(kg_bench *b, bool again, kg_error *err) {
    int rc = floor_of(b->j, b->jc->bytes, again, &b->cr->floor_ns, err);
    b->least_ns = b->cr->floor_ns;
    b->floor_counts = b->least_ns >= MIN_FLOOR_NS;
    return rc;
}

static int time_alone(kg_bench *b, bool *ok, kg_error *err) {
    int rc = set_floor(b, false, err);
    if (rc == KG_OK)
        rc = time_once(b, ok, err);
    if (rc == KG_OK && *ok && !kg_time_plausible(b)) {
        /* The machine may have been busy when its rates were measured. */
        rc = set_floor(b, true, err);
        if (rc == KG_OK)
            rc = time_once(b, ok, err);
    }
    return rc;
}

int kg_cpu_time(kg_bench *b, bool *ok, kg_error *err) {
    int rc = kg_timing_begin(err);
    if (rc != KG_OK)
        return rc;
    rc = time_alone(b, ok, err);
    kg_timing_end();
    return rc;
}
