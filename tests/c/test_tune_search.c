/* The search against a made-up evaluator whose times are known, so that the winner is known too. */
#include <time.h>

#include "base/fs.h"
#include "base/stop.h"
#include "test.h"
#include "tune/search.h"

static const char op_text[] =
    "{\"format\":1,\"op\":\"twice\",\"schema\":\"twice(Tensor x) -> Tensor\","
    "\"args\":[{\"name\":\"x\",\"type\":\"Tensor\",\"dtypes\":[\"float32\"],\"shape\":[\"N\"]}],"
    "\"dims\":[],\"outputs\":[{\"name\":\"y\",\"dtype_as\":\"x\",\"like\":\"x\"}],\"holes\":[],"
    "\"reference\":{\"kind\":\"torch\",\"call\":\"torch.mul\"}}";

static const char source_text[] =
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
} fake;

static kg_op *read_op(void) {
    kg_op *op = NULL;
    kg_error err = {0};
    if (kg_op_from_json(op_text, strlen(op_text), "op", &op, &err))
        FAIL("%s", err.msg);
    return op;
}

static void read_sources(const kg_op *op, kg_sources *out) {
    kg_error err = {0};
    const char *path = test_path("twice.c");
    if (kg_write_atomic(path, source_text, strlen(source_text), &err))
        FAIL("%s", err.msg);
    if (kg_sources_add_file(out, path, "twice.c", op, &err))
        FAIL("%s", err.msg);
}

static int prepare(void *ctx, const kg_source *source, const kg_tuning *t, kg_error *err) {
    fake *f = ctx;
    (void)source, (void)err;
    __atomic_fetch_add(&f->prepared, 1, __ATOMIC_SEQ_CST);
    return t->value[0] == 7 ? KG_ENOTFOUND : KG_OK;
}

/* One call of a lane at a time; with several lanes they take long enough to meet. */
static void enter(fake *f, size_t lane) {
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
static int judge(void *ctx, size_t lane, const kg_source *source, const kg_tuning *t,
                 kg_level level, kg_outcome *out, kg_error *err) {
    fake *f = ctx;
    int64_t a = t->value[0], b = t->value[1];
    (void)source;
    enter(f, lane);
    __atomic_fetch_add(&f->judged[level], 1, __ATOMIC_SEQ_CST);
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

static int run(fake *f, int64_t budget_ms, kg_search_result *out) {
    kg_op *op = read_op();
    kg_sources sources = {0};
    kg_journal *journal = NULL;
    kg_error err = {0};
    kg_evaluator e = {.ctx = f, .ncases = 2, .lanes = f->lanes, .prepare = prepare, .judge = judge};
    kg_search_options o = {.budget_ms = budget_ms, .compile_jobs = 2};
    read_sources(op, &sources);
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

static void check_winners(const kg_search_result *r) {
    CHECK_INT(r->winners[0].source, 0);
    CHECK_INT(r->winners[0].tuning.value[0], 3);
    CHECK_INT(r->winners[0].tuning.value[1], 2);
    CHECK_INT(r->winners[1].tuning.value[0], 5);
    CHECK_INT(r->winners[1].tuning.value[1], 1);
    CHECK_INT(r->winners[0].time_ns, 1000);
}

TEST(search_finds_the_best_for_each_case) {
    fake f = {0};
    kg_search_result r;
    CHECK_INT(run(&f, 60000, &r), KG_OK);
    check_winners(&r);
    CHECK_INT(r.dropped, 4);    /* A = 7 */
    CHECK_INT(f.judged[0], 28); /* the rest, once */
    CHECK(f.judged[1] < 28 && f.judged[1] > 0);
    CHECK(f.judged[2] <= 4);
    CHECK_INT(r.verdicts[KG_VERDICT_WRONG_VALUES] >= 4, 1);
    int64_t a = 0;
    kg_json_int(kg_json_get(r.winners[1].record, "a"), "a", &a, NULL);
    CHECK_INT(a, 5);
    kg_search_result_free(&r);
}

TEST(search_over_several_devices_finds_the_same) {
    fake f = {.lanes = 3};
    kg_search_result r;
    CHECK_INT(run(&f, 60000, &r), KG_OK);
    check_winners(&r);
    CHECK_INT(f.judged[0], 28);
    CHECK_INT(r.dropped, 4);
    CHECK(f.most_at_once == 2 || f.most_at_once == 3);
    for (int i = 0; i < 3; i++)
        CHECK(f.by_lane[i] > 0);
    kg_search_result_free(&r);
    /* What the lanes learnt is in the journal, each once. */
    fake again = {.lanes = 2};
    CHECK_INT(run(&again, 60000, &r), KG_OK);
    check_winners(&r);
    CHECK_INT(again.judged[0] + again.judged[1] + again.judged[2], 0);
    kg_search_result_free(&r);
}

TEST(search_over_several_devices_stops_in_all_lanes) {
    fake killed = {.lanes = 3, .die_after = 20};
    kg_search_result r;
    CHECK_INT(run(&killed, 60000, &r), KG_EINTR);
    kg_stop_set(false);
    CHECK(killed.judged[0] < 28);
    kg_search_result_free(&r);
}

TEST(search_resumes_without_asking_twice) {
    fake killed = {.die_after = 20}, again = {0}, third = {0};
    kg_search_result r;
    CHECK_INT(run(&killed, 60000, &r), KG_EINTR);
    kg_stop_set(false);
    kg_search_result_free(&r);
    CHECK_INT(run(&again, 60000, &r), KG_OK);
    check_winners(&r);
    CHECK_INT(r.resumed, 20);
    CHECK_INT(again.judged[0], 8);
    kg_search_result_free(&r);
    CHECK_INT(run(&third, 60000, &r), KG_OK);
    check_winners(&r);
    CHECK_INT(third.judged[0] + third.judged[1] + third.judged[2], 0);
    kg_search_result_free(&r);
}

TEST(search_does_not_remember_what_a_stop_brought_about) {
    fake stopped = {.die_after = 20, .crash = true}, again = {0};
    kg_search_result r;
    CHECK_INT(run(&stopped, 60000, &r), KG_EINTR);
    kg_stop_set(false);
    kg_search_result_free(&r);
    CHECK_INT(run(&again, 60000, &r), KG_OK);
    check_winners(&r);
    CHECK_INT(r.resumed, 20);
    CHECK_INT(r.verdicts[KG_VERDICT_CRASH], 0);
    kg_search_result_free(&r);
}

TEST(search_answers_within_no_budget) {
    fake f = {0};
    kg_search_result r;
    CHECK_INT(run(&f, 0, &r), KG_OK);
    CHECK(r.out_of_time);
    CHECK_INT(f.judged[0] < 28, 1);
    CHECK(r.winners[0].source == 0);
    kg_search_result_free(&r);
}

/* The budget is the Run's: a life that used it up leaves nothing for the next, unless more is
 * given. */
TEST(search_spends_its_budget_once) {
    fake first = {0}, same = {0}, more = {0};
    kg_search_result r;
    CHECK_INT(run(&first, 0, &r), KG_OK);
    char winner[65];
    memcpy(winner, r.winners[0].id, sizeof winner);
    kg_search_result_free(&r);
    CHECK_INT(run(&same, 0, &r), KG_OK);
    CHECK_INT(same.judged[0] + same.judged[1] + same.judged[2], 0);
    CHECK(r.out_of_time);
    CHECK_STR(r.winners[0].id, winner);
    kg_search_result_free(&r);
    CHECK_INT(run(&more, 60000, &r), KG_OK);
    CHECK_INT(first.judged[0] + more.judged[0], 28);
    check_winners(&r);
    CHECK(r.spent_s > 0 && r.spent_s < 60);
    kg_search_result_free(&r);
}

TEST(tunings_thin_evenly_and_begin_with_the_default) {
    kg_op *op = read_op();
    kg_sources s = {0};
    kg_tuning *list = NULL;
    size_t n = 0;
    read_sources(op, &s);
    CHECK_INT(kg_tunings(s.items[0].plan, 1000, &list, &n, NULL), KG_OK);
    CHECK_INT(n, 32);
    free(list);
    CHECK_INT(kg_tunings(s.items[0].plan, 5, &list, &n, NULL), KG_OK);
    CHECK_INT(n, 5);
    CHECK_INT(list[0].value[0], 0);
    CHECK_INT(list[0].value[1], 0);
    CHECK_INT(list[4].value[0], 6);
    free(list);
    kg_sources_free(&s);
    kg_op_free(op);
}
