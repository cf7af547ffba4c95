/* What timing has in common, whatever the device: each timed call gets an input set at random,
 * copied into the same buffers, finds there poison or another set's results, and its whole output
 * is compared with that set's oracle; and a time that cannot be true is no time. */
#include "tune/judge_internal.h"

enum { KEPT_CALLS = 8 }; /* one in so many */

/* None in which tensors share memory: less would have to be read. */
static size_t pick_set(const kg_bench *b) {
    size_t n = b->cand->request->all_sets ? b->jc->nsets : 1;
    size_t at = (size_t)(kg_random() % n);
    for (size_t tries = 0; tries < n && b->jc->sets[at].shares; tries++)
        at = (at + 1) % n;
    return at;
}

/* Between timed calls, now and then and never counted: the same call again, in other surroundings
 * than a timed one has. */
static int check_again(kg_bench *b, const kg_mode *mode, bool *ok, kg_error *err) {
    kg_call_time time;
    kg_mode kept = {.split = mode->split, .keep = true};
    if (kg_random() % KEPT_CALLS != 0)
        return KG_OK;
    int rc = kg_bench_run(b, 0, &kept, &time, ok, err);
    return rc == KG_OK && *ok ? kg_bench_compare(b, 0, ok, err) : rc;
}

int kg_time_calls(kg_bench *b, const kg_mode *mode, kg_call_time *times, size_t n, bool *ok,
                  kg_error *err) {
    *ok = true;
    for (size_t i = 0; i < n; i++) {
        kg_mode now = *mode;
        now.stale = kg_random() & 1;
        int rc = kg_bench_inputs(b, pick_set(b), err);
        if (rc == KG_OK)
            rc = kg_bench_run(b, 0, &now, &times[i], ok, err);
        if (rc == KG_OK && *ok)
            rc = kg_bench_compare(b, 0, ok, err);
        if (rc == KG_OK && *ok)
            rc = check_again(b, mode, ok, err);
        if (rc != KG_OK || !*ok)
            return rc;
    }
    return KG_OK;
}

bool kg_time_plausible(const kg_bench *b) {
    return !b->floor_counts || b->cr->time.median >= 0.9 * b->least_ns;
}

int kg_bench_time(kg_bench *b, bool *ok, kg_error *err) {
    int rc = b->j->device->time(b, ok, err);
    if (rc != KG_OK || !*ok)
        return rc;
    b->cr->timed = kg_time_plausible(b);
    *ok = b->cr->timed;
    if (!*ok)
        kg_condemn(b, KG_VERDICT_IMPLAUSIBLE,
                   "a call took %.3g us, but to move its %.3g MB takes at least %.3g us on this "
                   "machine: the work was not done in the call, or the bytes that must move are "
                   "overstated",
                   b->cr->time.median / 1e3, (double)b->jc->bytes / 1e6, b->least_ns / 1e3);
    return KG_OK;
}
