/* Times a Candidate on a GPU, and the floor under its time.
 *
 * Cold first: the L2 is flushed before each timed call, which decides. Then warm, with what an
 * untimed call before it left. A call shorter than 20 us is replayed as a graph of its own, where
 * the host's latency between its launches does not count. The device's clock is held against the
 * host's over the whole window, and a time that drifts, or during which the GPU was slowed down, is
 * measured again. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "tune/judge_cuda.h"
#include "tune/watch.h"

enum { TRIES = 3, PILOTS = 3, EMPTY_CALLS = 16, WARM_FROM = 15, MAX_GPUS = 64 };

/* Below this a call is replayed as a graph. */
static const double GRAPH_NS = 20e3;
/* A floor below this is within what a launch takes. */
static const double MIN_FLOOR_NS = 2e3;
/* Halves of the calls that differ by more are measured again. */
static const double DRIFT = 0.03;
/* What the host may need beyond the device's own window: the wake-up of its thread and a few
 * submissions. */
static const double HOST_NS = 300e3;
static const size_t RATE_BYTES = (size_t)1 << 30;

/* ---- how fast the device moves bytes, once a process and device ---- */

static pthread_mutex_t rates_lock = PTHREAD_MUTEX_INITIALIZER;
static double best_rate[MAX_GPUS]; /* 0: not measured */

/* Buffers as large as there is room for, and much larger than the L2. */
static int rate_buffers(kg_cuda_judge *c, kg_cu_ptr at[2], size_t *bytes) {
    size_t n = RATE_BYTES, least = 2 * (size_t)c->gpu->l2_bytes;
    for (; n >= least && n > 0; n /= 2) {
        at[0] = at[1] = 0;
        if (kg_cuda_alloc(n, &at[0], NULL) == KG_OK && kg_cuda_alloc(n, &at[1], NULL) == KG_OK) {
            *bytes = n;
            return KG_OK;
        }
        kg_cuda_free(at[0]);
    }
    return KG_ENOMEM;
}

static int measure(kg_cuda_judge *c, double *best, kg_error *err) {
    double read = 0, write = 0, copy = 0;
    kg_cu_ptr at[2];
    size_t bytes;
    if (rate_buffers(c, at, &bytes) != KG_OK)
        return KG_OK; /* a full device has no floor, which is no reason to refuse a Candidate */
    int rc = kg_check_rates(c, at[0], at[1], bytes, &read, &write, &copy, err);
    kg_cuda_free(at[0]);
    kg_cuda_free(at[1]);
    double most = fmax(read, fmax(write, copy));
    /* A second measurement can only find the device faster. */
    if (rc == KG_OK && most > *best)
        *best = most;
    return rc;
}

static int rate_of(kg_cuda_judge *c, bool again, double *rate, kg_error *err) {
    kg_cuda_scope scope;
    int rc = KG_OK;
    if (c->index >= MAX_GPUS)
        return kg_fail(err, KG_EINVAL, "GPU %d is beyond the first %d", c->index, MAX_GPUS);
    pthread_mutex_lock(&rates_lock);
    if (again || best_rate[c->index] == 0) {
        rc = kg_cuda_enter(c->index, &scope, err);
        if (rc == KG_OK) {
            rc = measure(c, &best_rate[c->index], err);
            kg_cuda_leave(&scope);
        }
    }
    *rate = best_rate[c->index];
    pthread_mutex_unlock(&rates_lock);
    return rc;
}

/* What is written may stay in the L2 when the call ends. */
static int set_floor(kg_bench *b, bool again, kg_error *err) {
    kg_cuda_judge *c = b->j->state;
    double rate = 0;
    int64_t kept = b->jc->output_bytes < c->gpu->l2_bytes ? b->jc->output_bytes : c->gpu->l2_bytes;
    int64_t bytes = b->jc->bytes > kept ? b->jc->bytes - kept : 0;
    int rc = rate_of(c, again, &rate, err);
    if (rc != KG_OK)
        return rc;
    b->cr->floor_ns = rate > 0 ? (double)b->jc->bytes / rate * 1e9 : 0;
    b->floor_counts = rate > 0 && (double)bytes / rate * 1e9 >= MIN_FLOOR_NS;
    b->least_ns = rate > 0 ? (double)bytes / rate * 1e9 : 0;
    return KG_OK;
}

/* ---- calls ---- */

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *values, size_t n) {
    double sorted[KG_MAX_REPS];
    if (n == 0)
        return 0;
    memcpy(sorted, values, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, compare_doubles);
    return sorted[n / 2];
}

/* The medians of the first and of the second half, as a share of the whole. */
static double drift_of(const double *ns, size_t n) {
    double all = median(ns, n);
    return n < 8 || all <= 0 ? 0 : fabs(median(ns, n / 2) - median(ns + n / 2, n - n / 2)) / all;
}

typedef struct timing {
    kg_mode mode;
    size_t n, tries;
    bool graph; /* what was measured were replays */
    double ns[KG_MAX_REPS];
    double drift;
    kg_watch watch;
    double lag_ns; /* median of what the host's window has beyond the device's */
    double window_ns;
} timing;

/* n calls in the mode; measured again while the clock wanders or the GPU is slowed down. */
static int take(kg_bench *b, timing *t, bool *ok, kg_error *err) {
    const kg_cuda_judge *c = b->j->state;
    kg_call_time times[KG_MAX_REPS];
    double lag[KG_MAX_REPS], window[KG_MAX_REPS];
    for (t->tries = 1;; t->tries++) {
        kg_watch_begin(&t->watch, c->gpu);
        int rc = kg_time_calls(b, &t->mode, times, t->n, ok, err);
        kg_watch_end(&t->watch, c->gpu);
        if (rc != KG_OK || !*ok)
            return rc;
        for (size_t i = 0; i < t->n; i++) {
            t->ns[i] = times[i].ns > 0 ? (double)times[i].ns : 1;
            window[i] = (double)times[i].window_ns;
            lag[i] = (double)times[i].wall_ns - window[i];
            t->graph = times[i].graph;
        }
        t->drift = drift_of(t->ns, t->n);
        t->lag_ns = median(lag, t->n);
        t->window_ns = median(window, t->n);
        if ((t->drift <= DRIFT && !kg_watch_slowed(&t->watch)) || t->tries == TRIES)
            return KG_OK;
    }
}

/* Two events with nothing between them, as they stand around a call. */
static int empty_calls(kg_bench *b, double *ns, kg_error *err) {
    kg_call_time times[EMPTY_CALLS];
    double all[EMPTY_CALLS];
    kg_run *run = calloc(1, sizeof *run);
    if (!run)
        return kg_fail(err, KG_ENOMEM, "a run: out of memory");
    run->timed = EMPTY_CALLS;
    run->cold = true;
    int rc = kg_worker_run(b->worker, run, b->limit_ms, times, err);
    free(run);
    for (size_t i = 0; rc == KG_OK && i < EMPTY_CALLS; i++)
        all[i] = (double)times[i].ns;
    if (rc == KG_OK)
        *ns = median(all, EMPTY_CALLS);
    return rc;
}

static int time_cold(kg_bench *b, timing *t, bool *ok, kg_error *err) {
    t->mode = (kg_mode){.cold = true};
    t->n = PILOTS;
    int rc = take(b, t, ok, err);
    if (rc != KG_OK || !*ok)
        return rc;
    t->mode.graph = median(t->ns, t->n) < GRAPH_NS;
    t->n = b->cand->request->reps < KG_MAX_REPS ? b->cand->request->reps : KG_MAX_REPS;
    rc = take(b, t, ok, err);
    if (rc == KG_OK && *ok)
        rc = kg_summarize(t->ns, t->n, &b->cr->time, err);
    return rc;
}

static int time_warm(kg_bench *b, const timing *cold, bool *ok, kg_error *err) {
    timing t = {.mode = {.warm = 1, .graph = cold->mode.graph}, .n = cold->n / 2 + 1};
    int rc = take(b, &t, ok, err);
    return rc == KG_OK && *ok ? kg_summarize(t.ns, t.n, &b->cr->warm, err) : rc;
}

static void keep_measure(kg_bench *b, const timing *t, double empty_ns) {
    kg_json *o = b->cr->measure;
    kg_json_set_str(o, "caches", "cold");
    kg_json_set_bool(o, "graph", t->graph);
    kg_json_set_int(o, "tries", (int64_t)t->tries);
    kg_json_set_double(o, "drift", t->drift);
    kg_json_set_double(o, "event_overhead_ns", empty_ns);
    kg_json_set_double(o, "host_lag_ns", t->lag_ns);
    if (t->watch.told)
        kg_json_set_bool(o, "slowed", kg_watch_slowed(&t->watch));
    kg_watch_keep(&t->watch, ((const kg_cuda_judge *)b->j->state)->gpu, o);
}

/* The device went on after the event that ends the call. */
static bool lingers(const timing *t) {
    return t->lag_ns > HOST_NS && t->lag_ns > DRIFT * t->window_ns;
}

static int time_and_floor(kg_bench *b, timing *t, bool *ok, kg_error *err) {
    int rc = set_floor(b, false, err);
    if (rc == KG_OK)
        rc = time_cold(b, t, ok, err);
    if (rc == KG_OK && *ok && (!kg_time_plausible(b) || lingers(t))) {
        /* Something else may have had the device, or the host, meanwhile. */
        rc = set_floor(b, true, err);
        if (rc == KG_OK)
            rc = time_cold(b, t, ok, err);
    }
    return rc;
}

int kg_cuda_time(kg_bench *b, bool *ok, kg_error *err) {
    timing t = {.n = 0};
    double empty_ns = 0;
    int rc = time_and_floor(b, &t, ok, err);
    if (rc == KG_OK && *ok)
        rc = empty_calls(b, &empty_ns, err);
    if (rc == KG_OK && *ok && t.n >= WARM_FROM)
        rc = time_warm(b, &t, ok, err);
    if (rc != KG_OK || !*ok)
        return rc;
    keep_measure(b, &t, empty_ns);
    if (!lingers(&t))
        return KG_OK;
    kg_condemn(b, KG_VERDICT_IMPLAUSIBLE,
               "by the host's clock the device was at work %.3g us beyond the %.3g us that its own "
               "events show: work went on after the call's end",
               t.lag_ns / 1e3, t.window_ns / 1e3);
    *ok = false;
    return KG_OK;
}
