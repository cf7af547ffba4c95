/* A search over made-up Candidates whose times are known, for tests: a journal in test_dir(), an
 * evaluator that may die after some judgements, and the winners that must come out. */
#ifndef KG_TEST_SEARCH_UTIL_H
#define KG_TEST_SEARCH_UTIL_H

#include <time.h>

#include "base/fs.h"
#include "base/stop.h"
#include "test.h"
#include "tune/search.h"

static const char search_op_text[] =
    "{\"format\":1,\"op\":\"twice\",\"schema\":\"twice(Tensor x) -> Tensor\","
    "\"args\":[{\"name\":\"x\",\"type\":\"Tensor\",\"dtypes\":[\"float32\"],\"shape\":[\"N\"]}],"
    "\"dims\":[],\"outputs\":[{\"name\":\"y\",\"dtype_as\":\"x\",\"like\":\"x\"}],\"holes\":[],"
    "\"reference\":{\"kind\":\"torch\",\"call\":\"torch.mul\"}}";

static const char search_source_text[] =
    "/* kgen\n{\"format\":1,\"op\":\"twice\",\"target\":\"cpu\","
    "\"tunables\":{\"A\":[0,1,2,3,4,5,6,7],\"B\":[0,1,2,3]},"
    "\"launches\":[{\"kernel\":\"twice\",\"range\":\"N\",\"args\":[\"x\",\"y\"]}]}\n*/\n"
    "void twice(long b, long e, const float *x, float *y) { for (; b < e; b++) y[b] = 2 * x[b]; "
    "}\n";

typedef struct fake {
    int judged[3], prepared, die_after;
    bool crash; /* it dies as a Candidate does whose worker was stopped */
    size_t lanes;
    int in_lane[KG_MAX_LANES], at_once, most_at_once; /* calls under way */
    int by_lane[KG_MAX_LANES];
    bool narrow;      /* nothing fits but A = 3 and A = 5 */
    size_t most;      /* Candidates a source */
    bool two;         /* sources */
    int second;       /* calls of the second */
    int apart;        /* quick judgements before the first that moves both tunables */
    int64_t pause_ms; /* of one judgement: */
    kg_level pause_level;
    int pause_nth;
} fake;

static inline kg_op *fake_read_op(void) {
    kg_op *op = NULL;
    kg_error err = {0};
    if (kg_op_from_json(search_op_text, strlen(search_op_text), "op", &op, &err))
        FAIL("%s", err.msg);
    return op;
}

static inline void fake_add_source(const kg_op *op, const char *name, const char *text,
                                   kg_sources *out) {
    kg_error err = {0};
    const char *path = test_path(name);
    if (kg_write_atomic(path, text, strlen(text), &err))
        FAIL("%s", err.msg);
    if (kg_sources_add_file(out, path, name, op, &err))
        FAIL("%s", err.msg);
}

static inline void fake_read_sources(const kg_op *op, kg_sources *out) {
    fake_add_source(op, "twice.c", search_source_text, out);
}

static inline void fake_read_second(const kg_op *op, kg_sources *out) {
    char text[2048];
    snprintf(text, sizeof text, "%s/* another */\n", search_source_text);
    fake_add_source(op, "other.c", text, out);
}

static inline int fake_prepare(void *ctx, const kg_source *source, const kg_tuning *t,
                               kg_error *err) {
    fake *f = ctx;
    (void)source, (void)err;
    __atomic_fetch_add(&f->prepared, 1, __ATOMIC_SEQ_CST);
    return t->value[0] == 7 ? KG_ENOTFOUND : KG_OK;
}

static inline int fake_fits(void *ctx, const kg_source *source, const kg_tuning *t, kg_error *err) {
    const fake *f = ctx;
    (void)source, (void)err;
    return f->narrow && t->value[0] != 3 && t->value[0] != 5 ? KG_ENOTFOUND : KG_OK;
}

/* One call of a lane at a time; with several lanes they take long enough to meet. */
static inline void fake_enter(fake *f, size_t lane) {
    const struct timespec pause = {.tv_nsec = 5000000};
    if (__atomic_add_fetch(&f->in_lane[lane], 1, __ATOMIC_SEQ_CST) != 1)
        FAIL("two calls in lane %zu", lane);
    int now = __atomic_add_fetch(&f->at_once, 1, __ATOMIC_SEQ_CST);
    if (now > __atomic_load_n(&f->most_at_once, __ATOMIC_SEQ_CST))
        __atomic_store_n(&f->most_at_once, now, __ATOMIC_SEQ_CST);
    f->by_lane[lane]++;
    if (f->lanes > 1)
        nanosleep(&pause, NULL);
    __atomic_sub_fetch(&f->at_once, 1, __ATOMIC_SEQ_CST);
    __atomic_sub_fetch(&f->in_lane[lane], 1, __ATOMIC_SEQ_CST);
}

/* Case 0 is fastest at A = 3, B = 2; Case 1 at A = 5, B = 1. A = 0 fails; B = 3 passes the short
 * test alone. */
static inline int fake_judge(void *ctx, size_t lane, const kg_source *source, const kg_tuning *t,
                             kg_level level, kg_outcome *out, kg_error *err) {
    fake *f = ctx;
    int64_t a = t->value[0], b = t->value[1];
    fake_enter(f, lane);
    int nth = __atomic_add_fetch(&f->judged[level], 1, __ATOMIC_SEQ_CST);
    if (level == KG_LEVEL_QUICK && a != 0 && b != 0 && f->apart == 0)
        f->apart = nth - 1;
    if (strcmp(source->name, "other.c") == 0)
        __atomic_fetch_add(&f->second, 1, __ATOMIC_SEQ_CST);
    if (level == f->pause_level && nth == f->pause_nth)
        nanosleep(&(struct timespec){.tv_sec = f->pause_ms / 1000,
                                     .tv_nsec = f->pause_ms % 1000 * 1000000},
                  NULL);
    if (f->die_after && f->judged[0] + f->judged[1] + f->judged[2] > f->die_after) {
        kg_stop_set(true);
        out->verdict = KG_VERDICT_CRASH;
        return f->crash ? KG_OK : kg_fail(err, KG_EINTR, "killed");
    }
    if (a == 0 || (b == 3 && level == KG_LEVEL_FULL)) {
        out->verdict = KG_VERDICT_WRONG_VALUES;
        return KG_OK;
    }
    out->verdict = KG_VERDICT_PASS;
    out->time_ns[0] =
        1000.0 + 100.0 * (double)((a - 3) * (a - 3)) + 10.0 * (double)((b - 2) * (b - 2));
    out->time_ns[1] =
        1000.0 + 100.0 * (double)((a - 5) * (a - 5)) + 10.0 * (double)((b - 1) * (b - 1));
    if (level == KG_LEVEL_FULL) {
        out->record = kg_json_new_object();
        kg_json_set_int(out->record, "a", a);
    }
    return KG_OK;
}

static inline int fake_run(fake *f, int64_t budget_ms, kg_search_result *out) {
    kg_op *op = fake_read_op();
    kg_sources sources = {0};
    kg_journal *journal = NULL;
    kg_error err = {0};
    kg_evaluator e = {.ctx = f,
                      .ncases = 2,
                      .lanes = f->lanes,
                      .fits = fake_fits,
                      .prepare = fake_prepare,
                      .judge = fake_judge};
    kg_search_options o = {.budget_ms = budget_ms, .compile_jobs = 2, .max_candidates = f->most};
    fake_read_sources(op, &sources);
    if (f->two)
        fake_read_second(op, &sources);
    if (kg_journal_open(test_dir(), &journal, &err))
        FAIL("%s", err.msg);
    int rc = kg_search("twice", &sources, &e, journal, &o, out, &err);
    if (rc && rc != KG_EINTR)
        FAIL("%s", err.msg);
    kg_journal_close(journal);
    kg_sources_free(&sources);
    kg_op_free(op);
    return rc;
}

static inline void fake_check_winners(const kg_search_result *r) {
    CHECK_INT(r->winners[0].source, 0);
    CHECK_INT(r->winners[0].tuning.value[0], 3);
    CHECK_INT(r->winners[0].tuning.value[1], 2);
    CHECK_INT(r->winners[1].tuning.value[0], 5);
    CHECK_INT(r->winners[1].tuning.value[1], 1);
    CHECK_INT(r->winners[0].time_ns, 1000);
}

#endif
