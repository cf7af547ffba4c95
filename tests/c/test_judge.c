/* The judge from C: a Candidate right, one wrong, one that dies, and nothing left behind. What each
 * verdict needs is in tests/python/test_judge.py, where oracles are easy to come by. */
#include "test.h"

#include <dirent.h>

#include "base/fs.h"
#include "base/stop.h"
#include "kgen_judge.h"
#include "tune/judge.h"

enum { ROWS = 6, COLUMNS = 50, COUNT = ROWS * COLUMNS };

static const char CASE[] = "{\"format\": 1, \"op\": \"softmax\", \"device\": \"cpu\", "
                           "\"precision\": \"native\", \"args\": {\"input\": "
                           "{\"dtype\": \"float32\", \"shape\": [6, 50], \"stride\": [50, 1], "
                           "\"align\": 64, \"fill\": {\"kind\": "
                           "\"normal\", \"mean\": 0, \"std\": 1}}, \"dim\": -1}, \"count\": 1}";

typedef struct rig {
    kg_judge *judge;
    float input[COUNT];
    double oracle[COUNT];
} rig;

static void softmax(const float *x, double *y) {
    for (int row = 0; row < ROWS; row++) {
        double sum = 0;
        for (int i = 0; i < COLUMNS; i++)
            sum += exp((double)x[row * COLUMNS + i]);
        for (int i = 0; i < COLUMNS; i++)
            y[row * COLUMNS + i] = exp((double)x[row * COLUMNS + i]) / sum;
    }
}

static void rig_open(rig *r, int64_t timeout_ms) {
    kg_error err = {0};
    kg_buf op;
    size_t index;
    setenv("KGEN_CACHE", test_path("cache"), 1);
    kg_buf_init(&op, 0);
    CHECK_OK(kg_read_file(KGEN_SOURCE_DIR "/kernels/ops/softmax.json", 1 << 20, &op, &err), err);
    kg_judge_options o = {.worker = KGEN_BINARY_DIR "/kgen-worker", .timeout_ms = timeout_ms};
    CHECK_OK(kg_judge_open(op.data, op.len, "softmax.json", &o, &r->judge, &err), err);
    kg_buf_free(&op);
    CHECK_OK(kg_judge_add_case(r->judge, CASE, strlen(CASE), "a Case", &index, &err), err);
    for (int i = 0; i < COUNT; i++)
        r->input[i] = (float)(i * 37 % 101) / 50.0f;
    softmax(r->input, r->oracle);
    const void *inputs[] = {r->input}, *oracles[] = {r->oracle};
    kg_judge_set set = {
        .name = "made up", .inputs = inputs, .ninputs = 1, .oracles = oracles, .noutputs = 1};
    CHECK_OK(kg_judge_add_set(r->judge, index, &set, &err), err);
}

/* Judges a file of tests/judge/candidates and leaves the report to the caller. */
static kg_judge_report *judge_file(rig *r, const char *name, uint32_t reps) {
    kg_error err = {0};
    kg_buf text;
    char path[512];
    kg_judge_report *report;
    kg_buf_init(&text, 0);
    snprintf(path, sizeof path, "%s/tests/judge/candidates/%s.c", KGEN_SOURCE_DIR, name);
    CHECK_OK(kg_read_file(path, 1 << 20, &text, &err), err);
    kg_judge_request q = {
        .text = text.data, .n = text.len, .name = name, .all_sets = true, .reps = reps};
    CHECK_OK(kg_judge_run(r->judge, &q, &report, &err), err);
    kg_buf_free(&text);
    return report;
}

static void verdict_of(rig *r, const char *name, kg_verdict verdict) {
    kg_judge_report *report = judge_file(r, name, 0);
    if (kg_judge_verdict(report) != verdict)
        FAIL("%s: %s: %s", name, kg_verdict_name((int)kg_judge_verdict(report)),
             kg_judge_message(report));
    kg_judge_report_free(report);
}

TEST(judge_tells_right_from_wrong) {
    rig r;
    rig_open(&r, 10000);
    verdict_of(&r, "pass_plain", KG_VERDICT_PASS);
    verdict_of(&r, "wrong_values_zeros", KG_VERDICT_WRONG_VALUES);
    verdict_of(&r, "crash_trap",
               KG_VERDICT_PASS); /* it waits for row 64, which this Case has not */
    verdict_of(&r, "input_modified_zeroed", KG_VERDICT_INPUT_MODIFIED);
    verdict_of(&r, "out_of_bounds_before", KG_VERDICT_OUT_OF_BOUNDS);
    verdict_of(&r, "not_all_written_nothing", KG_VERDICT_NOT_ALL_WRITTEN);
    verdict_of(&r, "policy_counter", KG_VERDICT_POLICY);
    verdict_of(&r, "compile_error_type", KG_VERDICT_COMPILE_ERROR);
    verdict_of(&r, "plan_error_key", KG_VERDICT_PLAN_ERROR);
    verdict_of(&r, "pass_plain", KG_VERDICT_PASS);
    kg_judge_close(r.judge);
}

/* One part in 10^5 is wrong, unless the set says that its inputs leave that open. */
TEST(judge_grants_the_slack_of_a_set) {
    rig r;
    rig_open(&r, 10000);
    kg_error err = {0};
    double off[COUNT];
    for (int i = 0; i < COUNT; i++)
        off[i] = r.oracle[i] * (1 + 1e-5);
    const void *inputs[] = {r.input}, *oracles[] = {off};
    const kg_errors slack = {2e-5, 2e-5};
    kg_judge_set set = {.name = "off",
                        .inputs = inputs,
                        .ninputs = 1,
                        .oracles = oracles,
                        .noutputs = 1,
                        .slack = &slack};
    CHECK_OK(kg_judge_add_set(r.judge, 0, &set, &err), err);
    verdict_of(&r, "pass_plain", KG_VERDICT_PASS);
    set.slack = NULL;
    CHECK_OK(kg_judge_add_set(r.judge, 0, &set, &err), err);
    verdict_of(&r, "pass_plain", KG_VERDICT_WRONG_VALUES);
    kg_judge_close(r.judge);
}

TEST(judge_kills_what_hangs) {
    rig r;
    rig_open(&r, 300);
    verdict_of(&r, "timeout_spin", KG_VERDICT_TIMEOUT);
    verdict_of(&r, "pass_plain", KG_VERDICT_PASS);
    kg_judge_close(r.judge);
}

TEST(judge_times_and_records) {
    rig r;
    rig_open(&r, 10000);
    kg_error err = {0};
    kg_judge_report *report = judge_file(&r, "pass_plain", 5);
    CHECK_INT(kg_judge_verdict(report), KG_VERDICT_PASS);
    CHECK(kg_judge_time(report, 0) > 0);
    CHECK_NEAR(kg_judge_time(report, 1), 0, 0);
    kg_json *record;
    CHECK_OK(kg_judge_record(report, &record, &err), err);
    const kg_json *one = kg_json_at(kg_json_get(record, "cases"), 0);
    double median;
    CHECK_OK(
        kg_json_double(kg_json_get(kg_json_get(one, "time_ns"), "median"), "median", &median, &err),
        err);
    CHECK_NEAR(median, kg_judge_time(report, 0), 1);
    kg_json_free(record);
    kg_judge_report_free(report);
    kg_judge_close(r.judge);
}

TEST(judge_stops_when_asked) {
    rig r;
    rig_open(&r, 60000);
    kg_error err = {0};
    kg_judge_report *report;
    const char *text = "no plan";
    kg_judge_request q = {.text = text, .n = strlen(text), .name = "x.c"};
    CHECK_OK(kg_judge_run(r.judge, &q, &report, &err), err);
    CHECK_INT(kg_judge_verdict(report), KG_VERDICT_PLAN_ERROR);
    kg_judge_report_free(report);
    verdict_of(&r, "pass_plain", KG_VERDICT_PASS);
    kg_stop_set(true);
    kg_buf source;
    kg_buf_init(&source, 0);
    CHECK_OK(kg_read_file(KGEN_SOURCE_DIR "/tests/judge/candidates/pass_plain.c", 1 << 20, &source,
                          &err),
             err);
    q = (kg_judge_request){.text = source.data, .n = source.len, .name = "x.c"};
    CHECK_INT(kg_judge_run(r.judge, &q, &report, &err), KG_EINTR);
    kg_stop_set(false);
    kg_buf_free(&source);
    kg_judge_close(r.judge);
}

TEST(judge_refuses_bad_sets) {
    rig r;
    rig_open(&r, 1000);
    kg_error err = {0};
    const void *inputs[] = {r.input, r.input}, *oracles[] = {r.oracle}, *none[] = {NULL};
    kg_judge_set set = {.inputs = inputs, .ninputs = 2, .oracles = oracles, .noutputs = 1};
    CHECK_ERR(kg_judge_add_set(r.judge, 0, &set, &err), err, KG_EINVAL, "1 inputs");
    CHECK_ERR(kg_judge_add_set(r.judge, 7, &set, &err), err, KG_EINVAL, "no Case 7");
    set.ninputs = 1;
    set.inputs = none;
    CHECK_ERR(kg_judge_add_set(r.judge, 0, &set, &err), err, KG_EINVAL, "missing");
    set.inputs = inputs;
    set.oracles = none;
    CHECK_ERR(kg_judge_add_set(r.judge, 0, &set, &err), err, KG_EINVAL, "output output");
    kg_judge_close(r.judge);
}

TEST(verdicts_have_names_both_ways) {
    for (int i = 0; i < KG_VERDICT_COUNT; i++)
        CHECK_INT(kg_verdict_parse(kg_verdict_name(i)), i);
    CHECK_INT(kg_verdict_parse("fine"), -1);
    CHECK_STR(kg_verdict_name(KG_VERDICT_COUNT), NULL);
    CHECK_STR(kg_verdict_name(KG_VERDICT_NOT_ALL_WRITTEN), "not_all_written");
}
