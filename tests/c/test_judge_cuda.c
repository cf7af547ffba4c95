/* The judge on CUDA against a stand-in for the driver (tests/fake): real cubins by NVRTC, real
 * workers, allocations that travel as descriptors; kernels are C functions of the same name
 * (tests/fake_kernels). What only a GPU can show is in tests/python/test_judge_cuda.py. */
#include "test.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "judge_cuda_util.h"
#include "sys/proc.h"
#include "tune/search_judge.h"

TEST_WITHIN(judge_cuda_tells_right_from_wrong, 240) {
    rig r;
    rig_open(&r, KERNELS);
    expect_kernel(&r, "right", KG_VERDICT_PASS, "");
    expect_kernel(&r, "wrong", KG_VERDICT_WRONG_VALUES, "[63, 99] expected");
    expect_kernel(&r, "short_by_a_row", KG_VERDICT_NOT_ALL_WRITTEN, "they lie in [63, 0..99]");
    expect_kernel(&r, "not_finite", KG_VERDICT_NONFINITE, "[0, 3] expected");
    expect_kernel(&r, "past_the_end", KG_VERDICT_OUT_OF_BOUNDS, "4 bytes behind its end");
    expect_kernel(&r, "before_the_begin", KG_VERDICT_OUT_OF_BOUNDS, "8 bytes before its begin");
    expect_kernel(&r, "by_turns", KG_VERDICT_NONDETERMINISTIC, "to other addresses");
    expect_kernel(&r, "writes_input", KG_VERDICT_INPUT_MODIFIED, "changed input 'input'");
    expect_kernel(&r, "late", KG_VERDICT_TOO_SLOW, "a call took 1.");
    expect_kernel(&r, "right", KG_VERDICT_PASS, "");
    kg_judge_close(r.judge);
    CHECK_UINT(r.driver->live_bytes(), 0);
    CHECK_UINT(r.driver->live_modules(), 0);
}

TEST_WITHIN(judge_cuda_condemns_before_anything_runs, 120) {
    rig r;
    kg_buf text;
    rig_open(&r, KERNELS);
    source_of(&text, "right", "", "static __device__ int broken = \"text\";");
    expect(&r, text.data, KG_VERDICT_COMPILE_ERROR, "softmax.cu(");
    kg_buf_free(&text);
    source_of(&text, "right", "",
              "__device__ int calls; extern \"C\" __global__ void count() { calls++; }");
    expect(&r, text.data, KG_VERDICT_POLICY, "");
    kg_buf_free(&text);
    source_of(&text, "right", ", \"colour\": 1", "");
    expect(&r, text.data, KG_VERDICT_PLAN_ERROR, "colour");
    kg_buf_free(&text);
    source_of(&text, "right", ", \"shared\": 1000000", "");
    expect(&r, text.data, KG_VERDICT_PLAN_ERROR, "shared");
    kg_buf_free(&text);
    /* The plan gives what the function does not take. */
    const char wrong_args[] =
        "/* kgen\n{ \"format\": 1, \"op\": \"softmax\", \"target\": \"cuda\", \"launches\": "
        "[{\"kernel\": \"right\", \"grid\": [1], \"block\": [32], \"args\": [\"input\", "
        "\"output\", "
        "{\"i64\": \"M\"}, {\"i32\": \"N\"}]}] }\n*/\nextern \"C\" __global__ void right(const "
        "float "
        "*x, float *y, int m, int n) { y[n] = x[m]; }\n";
    expect(&r, wrong_args, KG_VERDICT_COMPILE_ERROR, "parameter 2 has 4 bytes");
    kg_judge_close(r.judge);
}

TEST_WITHIN(judge_cuda_refuses_the_cpus_candidates, 60) {
    rig r;
    rig_open(&r, KERNELS);
    expect(&r,
           "/* kgen\n{ \"format\": 1, \"op\": \"softmax\", \"target\": \"cpu\", \"launches\": "
           "[{\"kernel\": \"f\", \"range\": \"M\", \"args\": [\"input\", \"output\"]}] }\n*/\n",
           KG_VERDICT_PLAN_ERROR, "has a CUDA device and no CPU");
    kg_judge_close(r.judge);
}

TEST_WITHIN(judge_cuda_names_what_a_launch_asks_too_much_of, 120) {
    rig r;
    kg_buf text;
    rig_open(&r, KERNELS ",clusters_fit=0");
    source_of(&text, "right", ", \"cooperative\": true", "");
    expect(&r, text.data, KG_VERDICT_PASS, "");
    kg_buf_free(&text);
    source_of(&text, "right", ", \"cluster\": [4]", "");
    expect(&r, text.data, KG_VERDICT_OUT_OF_RESOURCES, "cluster of 4 blocks");
    kg_buf_free(&text);
    expect_kernel(&r, "right", KG_VERDICT_PASS, "");
    kg_judge_close(r.judge);
}

/* What the driver says comes out as a verdict, and the next Candidate finds everything well. */
static void expect_fault(int result, kg_verdict verdict, const char *part) {
    rig r;
    char settings[400];
    snprintf(settings, sizeof settings, KERNELS ",fault=wrong:%d", result);
    rig_open(&r, settings);
    expect_kernel(&r, "wrong", verdict, part);
    expect_kernel(&r, "right", KG_VERDICT_PASS, "");
    kg_judge_close(r.judge);
    CHECK_UINT(r.driver->live_bytes(), 0);
}

TEST_WITHIN(judge_cuda_illegal_address, 120) {
    expect_fault(700, KG_VERDICT_ILLEGAL_ACCESS, "an address without memory");
}

TEST_WITHIN(judge_cuda_misaligned, 120) {
    expect_fault(716, KG_VERDICT_ILLEGAL_ACCESS, "not aligned");
}

TEST_WITHIN(judge_cuda_trap, 120) {
    expect_fault(715, KG_VERDICT_CRASH, "__trap()");
}

TEST_WITHIN(judge_cuda_unknown_fault_is_a_crash, 120) {
    expect_fault(999, KG_VERDICT_CRASH, "CUDA_ERROR_UNKNOWN");
}

TEST_WITHIN(judge_cuda_hang_costs_its_limit, 120) {
    rig r;
    rig_open_with(&r, KERNELS ",hang=wrong", (kg_judge_options){.timeout_ms = 400});
    expect_kernel(&r, "right", KG_VERDICT_PASS, "");
    kg_buf text;
    source_of(&text, "wrong", "", "");
    kg_judge_report *first = judge_text(&r, text.data, 0); /* compiles */
    kg_judge_report_free(first);
    int64_t start = kg_now_ns();
    expect(&r, text.data, KG_VERDICT_TIMEOUT, "within 400 ms");
    int64_t took = (kg_now_ns() - start) / 1000000;
    if (took < 400 || took > 4000) /* a worker's start is within it */
        FAIL("it took %lld ms", (long long)took);
    kg_buf_free(&text);
    expect_kernel(&r, "right", KG_VERDICT_PASS, "");
    kg_judge_close(r.judge);
}

TEST_WITHIN(judge_cuda_times_cold_and_warm, 120) {
    rig r;
    kg_error err = {0};
    kg_buf text;
    kg_json *record;
    rig_open(&r, KERNELS);
    source_of(&text, "right", "", "");
    kg_judge_report *report = judge_text(&r, text.data, 15);
    CHECK_STR(kg_judge_message(report), "");
    CHECK_INT(kg_judge_verdict(report), KG_VERDICT_PASS);
    CHECK_OK(kg_judge_record(report, &record, &err), err);
    const kg_json *one = kg_json_at(kg_json_get(record, "cases"), 0);
    int64_t n = 0, median = 0, registers = 0;
    CHECK_OK(kg_json_int(kg_json_get(kg_json_get(one, "time_ns"), "n"), "n", &n, &err), err);
    CHECK_INT(n, 15);
    CHECK_OK(
        kg_json_int(kg_json_get(kg_json_get(one, "warm_ns"), "median"), "median", &median, &err),
        err);
    CHECK(median > 0);
    const kg_json *device = kg_json_at(kg_json_get(kg_json_get(record, "details"), "device"), 0);
    const kg_json *kernel = kg_json_at(kg_json_get(device, "kernels"), 0);
    CHECK_OK(kg_json_int(kg_json_get(kernel, "registers"), "registers", &registers, &err), err);
    CHECK_INT(registers, 32); /* the stand-in's */
    bool scrubbed = false;
    CHECK_OK(kg_json_bool(kg_json_get(device, "scrubbed"), "scrubbed", &scrubbed, &err), err);
    CHECK(scrubbed);
    const char *source = "", *arch = "";
    CHECK_OK(kg_json_str(kg_json_get(record, "source"), "source", &source, &err), err);
    CHECK_STR(source, "kernel.cu");
    CHECK_OK(kg_json_str(kg_json_get(record, "arch"), "arch", &arch, &err), err);
    CHECK_STR(arch, "sm_90");
    kg_json_free(record);
    kg_judge_report_free(report);
    kg_buf_free(&text);
    kg_judge_close(r.judge);
}

/* A Record's details of its one Case, when NVML tells this; the caller frees the Record. */
static const kg_json *details_told(const char *told, kg_json **record) {
    rig r;
    kg_error err = {0};
    kg_buf text;
    CHECK_OK(kg_write_atomic(test_path("nvml"), told, strlen(told), &err), err);
    setenv("KGEN_LIBNVML", KGEN_BINARY_DIR "/libkgen_fakenvml.so", 1);
    setenv("KGEN_FAKE_NVML", test_path("nvml"), 1);
    rig_open(&r, KERNELS);
    source_of(&text, "right", "", "");
    kg_judge_report *report = judge_text(&r, text.data, 10);
    CHECK_INT(kg_judge_verdict(report), KG_VERDICT_PASS);
    CHECK_OK(kg_judge_record(report, record, &err), err);
    kg_judge_report_free(report);
    kg_buf_free(&text);
    kg_judge_close(r.judge);
    return kg_json_at(kg_json_get(kg_json_get(*record, "details"), "device"), 0);
}

/* The first four readings are of the pilot and of the first try. */
TEST_WITHIN(judge_cuda_measures_again_what_was_slowed, 120) {
    kg_error err = {0};
    kg_json *record;
    bool slowed = true;
    int64_t tries = 0, mhz = 0;
    const char *who = "";
    const kg_json *d =
        details_told("sm 1980\nreasons 0 0 0x40 0x40 0\npids self 999999999\n", &record);
    CHECK_OK(kg_json_bool(kg_json_get(d, "slowed"), "slowed", &slowed, &err), err);
    CHECK_OK(kg_json_int(kg_json_get(d, "tries"), "tries", &tries, &err), err);
    CHECK_OK(kg_json_int(kg_json_get(kg_json_get(d, "after"), "sm_mhz"), "sm_mhz", &mhz, &err),
             err);
    CHECK_OK(kg_json_str(kg_json_at(kg_json_get(d, "foreign"), 0), "foreign", &who, &err), err);
    CHECK(!slowed && tries >= 2);
    CHECK_INT(mhz, 1980);
    CHECK_STR(who, "process 999999999");
    kg_json_free(record);
}

TEST_WITHIN(judge_cuda_says_what_stayed_slowed, 120) {
    kg_error err = {0};
    kg_json *record;
    bool slowed = false;
    int64_t tries = 0;
    const kg_json *d = details_told("reasons 0x40\n", &record);
    CHECK_OK(kg_json_bool(kg_json_get(d, "slowed"), "slowed", &slowed, &err), err);
    CHECK_OK(kg_json_int(kg_json_get(d, "tries"), "tries", &tries, &err), err);
    CHECK(slowed);
    CHECK_INT(tries, 3);
    CHECK(kg_json_get(d, "foreign") == NULL);
    kg_json_free(record);
}

/* --- launches --- */

/* In /dev, where the worker may write; removed at the end. */
static void log_name(char out[64]) {
    snprintf(out, 64, "/dev/shm/kgen-test-%d", (int)getpid());
    unlink(out);
}

static void expect_log(const char *path, const char *part) {
    kg_error err = {0};
    kg_buf text;
    kg_buf_init(&text, 0);
    CHECK_OK(kg_read_file(path, 1 << 20, &text, &err), err);
    CHECK_HAS(text.data, part);
    kg_buf_free(&text);
}

TEST_WITHIN(judge_cuda_launches_as_the_plan_says, 120) {
    rig r;
    kg_buf text;
    char log[64], settings[400];
    log_name(log);
    snprintf(settings, sizeof settings, KERNELS ",devices=2,log=%s", log);
    rig_open_with(&r, settings, (kg_judge_options){.index = 1});
    source_of(&text, "right", ", \"cluster\": [2], \"shared\": 65536, \"pdl\": true", "");
    expect(&r, text.data, KG_VERDICT_PASS, "");
    kg_buf_free(&text);
    expect_log(log, "right grid 64,1,1 block 128,1,1 cluster 2,1,1 shared 65536 pdl device 1\n");
    source_of(&text, "right", ", \"cooperative\": true", "");
    expect(&r, text.data, KG_VERDICT_PASS, "");
    kg_buf_free(&text);
    expect_log(log, "cluster 1,1,1 shared 0 cooperative device 1\n");
    expect_log(log, "kg_check_compare_float32");
    /* All shared memory of every multiprocessor is filled between calls. */
    expect_log(log,
               "kg_check_scrub grid 132,1,1 block 1024,1,1 cluster 1,1,1 shared 232448 device 1\n");
    unlink(log);
    kg_judge_close(r.judge);
}

TEST_WITHIN(judge_cuda_maps_tensors_and_clears_workspace, 120) {
    rig r;
    rig_open(&r, KERNELS);
    expect(
        &r,
        "/* kgen\n{ \"format\": 1, \"op\": \"softmax\", \"target\": \"cuda\", "
        "\"workspace\": {\"zeros\": {\"dtype\": \"int32\", \"shape\": [\"M\"], \"zero\": true}}, "
        "\"tensor_maps\": {\"in\": {\"tensor\": \"input\", \"dims\": [\"N\", \"M\"], "
        "\"strides\": [\"4 * N\"], \"box\": [\"20\", \"2\"], \"swizzle\": 0, \"l2\": 128}}, "
        "\"launches\": [{\"kernel\": \"mapped\", \"grid\": [1], \"block\": [32], \"args\": "
        "[{\"map\": \"in\"}, \"output\", \"zeros\", {\"i32\": \"M\"}, {\"i32\": \"N\"}]}] }\n*/\n"
        "struct alignas(64) Map { unsigned long long opaque[16]; };\n"
        "extern \"C\" __global__ void mapped(const __grid_constant__ Map in, float *y, int *zeros, "
        "int m, int n) { y[n] = (float)(in.opaque[0] + zeros[m]); }\n",
        KG_VERDICT_PASS, "");
    kg_judge_close(r.judge);
}

/* --- several devices --- */

TEST_WITHIN(judge_cuda_searches_over_two_devices, 180) {
    rig r, two;
    kg_error err = {0};
    kg_evaluator evaluator;
    kg_outcome outcome = {0};
    kg_sources sources = {0};
    kg_buf text;
    char path[512];
    rig_open_with(&r, KERNELS ",devices=2", (kg_judge_options){0});
    rig_open_with(&two, KERNELS ",devices=2", (kg_judge_options){.index = 1});
    kg_judge *const items[] = {r.judge, two.judge};
    kg_judges judges = {.items = items, .n = 2};
    CHECK_OK(kg_judges_evaluator(&judges, &evaluator, &err), err);
    CHECK_UINT(evaluator.lanes, 2);
    source_of(&text, "right", "", "");
    snprintf(path, sizeof path, "%s", test_path("right.cu"));
    CHECK_OK(kg_write_atomic(path, text.data, text.len, &err), err);
    CHECK_OK(kg_sources_add_file(&sources, path, "right.cu", kg_judge_op(r.judge), &err), err);
    kg_tuning tuning;
    kg_tuning_default(sources.items[0].plan, &tuning);
    for (size_t lane = 0; lane < 2; lane++) {
        CHECK_OK(evaluator.judge(evaluator.ctx, lane, &sources.items[0], &tuning, KG_LEVEL_QUICK,
                                 &outcome, &err),
                 err);
        CHECK_INT(outcome.verdict, KG_VERDICT_PASS);
        CHECK(outcome.time_ns[0] > 0);
    }
    kg_judge *const same[] = {r.judge, r.judge};
    judges = (kg_judges){.items = same, .n = 2};
    CHECK_ERR(kg_judges_evaluator(&judges, &evaluator, &err), err, KG_EINVAL, "judge 1 is not");
    kg_sources_free(&sources);
    kg_buf_free(&text);
    kg_judge_close(r.judge);
    kg_judge_close(two.judge);
}

/* --- a device that others use --- */

TEST_WITHIN(judge_cuda_says_how_full_the_device_is, 60) {
    rig r;
    kg_error err = {0};
    kg_judge_report *report;
    kg_buf text;
    rig_open(&r, KERNELS ",memory=1");
    source_of(&text, "right", "", "");
    kg_judge_request q = {.text = text.data, .n = text.len, .name = "x.cu"};
    CHECK_ERR(kg_judge_run(r.judge, &q, &report, &err), err, KG_ENOMEM, "a buffer for");
    CHECK_HAS(err.msg, "MiB of 1 MiB are free");
    kg_buf_free(&text);
    kg_judge_close(r.judge);
    CHECK_UINT(r.driver->live_bytes(), 0);
}

/* The worker has its own part of the device, and says so when it is not there. */
TEST_WITHIN(judge_cuda_says_that_the_worker_found_no_room, 60) {
    rig r;
    kg_error err = {0};
    kg_judge_report *report;
    kg_buf text;
    rig_open(&r, KERNELS ",memory=20"); /* less than three times the L2 */
    source_of(&text, "right", "", "");
    kg_judge_request q = {.text = text.data, .n = text.len, .name = "x.cu"};
    CHECK_ERR(kg_judge_run(r.judge, &q, &report, &err), err, KG_ENOMEM, "kgen-worker: cuMemAlloc");
    kg_buf_free(&text);
    kg_judge_close(r.judge);
}

static kg_worker_options worker_options(void) {
    return (kg_worker_options){.path = KGEN_BINARY_DIR "/kgen-worker", .device = KG_CUDA};
}

TEST_WITHIN(worker_cuda_refuses_what_comes_out_of_order, 60) {
    kg_error err = {0};
    kg_worker *w;
    kg_run *run = calloc(1, sizeof *run);
    kg_call_time time;
    uint64_t at[1];
    CHECK(run && fake_cuda_use(DRIVER, "devices=1"));
    kg_worker_options o = worker_options();
    CHECK_OK(kg_worker_open(&o, &w, &err), err);
    run->timed = 1;
    CHECK_ERR(kg_worker_run(w, run, 5000, &time, &err), err, KG_EINVAL, "RUN comes out of order");
    const kg_kernel_ask ask = {.name = "x"};
    kg_kernel_use use;
    CHECK_ERR(kg_worker_load_kernels(w, "x", 1, &ask, 1, &use, &err), err, KG_EINVAL,
              "LOAD comes out of order");
    CHECK_OK(kg_worker_map(w, NULL, 0, at, &err), err);
    CHECK_ERR(kg_worker_load_kernels(w, "KGFAKE", 6, &ask, 1, &use, &err), err, KG_EFORMAT,
              "CUDA_ERROR_");
    static const char image[] = "KGFAKE1\nkernel x 8,4\n";
    CHECK_ERR(kg_worker_load_kernels(w, image, sizeof image, &ask, 1, &use, &err), err, KG_EFORMAT,
              "more parameters than the 0");
    const kg_kernel_ask narrow = {.name = "x", .nargs = 2, .arg_bytes = {8, 8}};
    CHECK_ERR(kg_worker_load_kernels(w, image, sizeof image, &narrow, 1, &use, &err), err,
              KG_EFORMAT, "parameter 1 has 4 bytes");
    const kg_kernel_ask right = {.name = "x", .nargs = 2, .arg_bytes = {8, 4}, .threads = 128};
    CHECK_ERR(kg_worker_scrub(w, image, sizeof image, &err), err, KG_EINVAL,
              "SCRUB comes out of order");
    CHECK_OK(kg_worker_load_kernels(w, image, sizeof image, &right, 1, &use, &err), err);
    CHECK_ERR(kg_worker_scrub(w, "KGFAKE", 6, &err), err, KG_EUNSUPPORTED, "CUDA_ERROR_");
    CHECK_ERR(kg_worker_scrub(w, image, sizeof image, &err), err, KG_ENOTFOUND, "kg_check_scrub");
    CHECK_UINT(use.blocks, 16);
    run->nlaunches = 1;
    run->launches[0] = (kg_run_launch){.grid = {1, 1, 1},
                                       .block = {1, 1, 1},
                                       .cluster = {1, 1, 1},
                                       .nargs = 2,
                                       .args = {{.kind = KG_WA_BUFFER}}};
    CHECK_ERR(kg_worker_run(w, run, 5000, &time, &err), err, KG_EFORMAT, "buffer 0 of 0");
    run->launches[0].args[0].kind = KG_WA_MAP;
    CHECK_ERR(kg_worker_run(w, run, 5000, &time, &err), err, KG_EFORMAT, "tensor map 0 of 0");
    run->launches[0].args[0].kind = KG_WA_NULL;
    run->launches[0].nargs = 1;
    CHECK_ERR(kg_worker_run(w, run, 5000, &time, &err), err, KG_EFORMAT, "LOAD said 2");
    run->launches[0].nargs = 2;
    run->launches[0].grid[1] = 0;
    CHECK_ERR(kg_worker_run(w, run, 5000, &time, &err), err, KG_EFORMAT, "malformed");
    run->launches[0].grid[1] = 1;
    run->graph = run->cold = true;
    CHECK_OK(kg_worker_run(w, run, 5000, &time, &err), err);
    CHECK(time.graph && time.wall_ns >= time.window_ns && time.window_ns >= time.ns);
    CHECK_OK(kg_worker_ping(w, &err), err);
    /* The Candidate's next Case. */
    CHECK_OK(kg_worker_map(w, NULL, 0, at, &err), err);
    CHECK_ERR(kg_worker_run(w, run, 5000, &time, &err), err, KG_EINVAL, "RUN comes out of order");
    CHECK_ERR(kg_worker_map(w, NULL, 0, at, &err), err, KG_EINVAL, "MAP comes out of order");
    CHECK_OK(kg_worker_load_kernels(w, image, sizeof image, &right, 1, &use, &err), err);
    CHECK_OK(kg_worker_run(w, run, 5000, &time, &err), err);
    kg_worker_close(w);
    free(run);
}

/* --- the corpus (tests/judge/candidates), as far as it comes without a GPU --- */

static bool decided_before_it_runs(const char *name) {
    static const char *const early[] = {"compile_error", "policy", "plan_error", "launch_error",
                                        "out_of_resources_workspace"};
    for (size_t i = 0; i < sizeof early / sizeof *early; i++)
        if (strncmp(name, early[i], strlen(early[i])) == 0)
            return true;
    return false;
}

/* kg_judge_prepare leaves it to the judgement to say what does not compile. */
static void compiles(rig *r, const kg_judge_request *q) {
    kg_error err = {0};
    kg_candidate c;
    kg_instance *inst;
    kg_buf image, messages;
    kg_buf_init(&image, 0);
    kg_buf_init(&messages, 0);
    CHECK_OK(kg_candidate_read(r->judge, q, &c, &err), err);
    CHECK_OK(kg_candidate_bind(r->judge, &c, &r->judge->cases[0], &inst, &err), err);
    int rc =
        r->judge->device->image(r->judge, &c, &r->judge->cases[0], inst, &image, &messages, &err);
    if (rc != KG_OK)
        FAIL("%s: %s: %s", q->name, err.msg, messages.data ? messages.data : "");
    kg_instance_free(inst);
    kg_candidate_clear(&c);
    kg_buf_free(&image);
    kg_buf_free(&messages);
}

static void one_of_the_corpus(rig *r, const char *path, const char *name) {
    kg_error err = {0};
    kg_buf text;
    kg_buf_init(&text, 0);
    CHECK_OK(kg_read_file(path, 1 << 20, &text, &err), err);
    kg_judge_request q = {.text = text.data, .n = text.len, .name = name, .all_sets = true};
    if (!decided_before_it_runs(name)) {
        compiles(r, &q);
    } else {
        kg_judge_report *report = judge_text(r, text.data, 0);
        const char *verdict = kg_verdict_name((int)kg_judge_verdict(report));
        if (strncmp(name, verdict, strlen(verdict)) != 0)
            FAIL("%s: %s: %s", name, verdict, kg_judge_message(report));
        kg_judge_report_free(report);
    }
    kg_buf_free(&text);
}

/* --- memory of the sets --- */

/* Where there is room a set is copied to the device once, and found again by its address. */
TEST_WITHIN(judge_cuda_keeps_sets_where_there_is_room, 120) {
    rig r;
    rig_open(&r, KERNELS ",memory=8192");
    kg_buf text;
    source_of(&text, "right", "", "");
    kg_judge_report_free(judge_text(&r, text.data, 0));
    size_t uploads = r.driver->calls("cuMemcpyHtoDAsync_v2");
    CHECK_UINT(uploads, 4); /* two inputs, two oracles */
    kg_judge_report *report = judge_text(&r, text.data, 9);
    CHECK_INT(kg_judge_verdict(report), KG_VERDICT_PASS);
    kg_judge_report_free(report);
    CHECK_UINT(r.driver->calls("cuMemcpyHtoDAsync_v2"), uploads);
    /* What is written there after the sets were cleared is new. */
    kg_judge_clear_sets(r.judge, 0);
    add_sets(&r);
    r.oracle[0][0] = 0.5;
    expect(&r, text.data, KG_VERDICT_WRONG_VALUES, "[0, 0] expected 0.5 got");
    expect_kernel(&r, "wrong", KG_VERDICT_WRONG_VALUES, "");
    kg_buf_free(&text);
    kg_judge_close(r.judge);
    CHECK_UINT(r.driver->live_bytes(), 0);
}

/* More than goes through pinned memory at once, on either side of the seam, and addresses that are
 * no multiple of 16. */
TEST_WITHIN(judge_cuda_compares_in_pieces, 120) {
    rig r;
    kg_error err = {0};
    enum { MANY = (4 << 20) + 12345 };
    rig_open(&r, KERNELS);
    float *out = malloc((MANY + 1) * sizeof *out);
    double *oracle = malloc((MANY + 1) * sizeof *oracle);
    CHECK(out && oracle);
    for (int i = 0; i <= MANY; i++) {
        oracle[i] = (i % 1000 - 500) * 0.01;
        out[i] = (float)(oracle[i] * (1 + (i % 7) * 1e-4));
    }
    out[MANY / 2] = NAN;
    for (int skew = 0; skew < 2; skew++) {
        kg_comparison a, b;
        CHECK_OK(kg_judge_errors(r.judge, KG_F32, out + skew, oracle + skew, MANY, &a, &err), err);
        CHECK_OK(
            kg_compare(KG_F32, out + skew, oracle + skew, MANY, kg_poison(KG_F32, 1), 2, &b, &err),
            err);
        CHECK_UINT(a.nonfinite, 1);
        CHECK_UINT(a.not_close, b.not_close);
        CHECK_NEAR(a.max_err, b.max_err, 0);
        CHECK_NEAR(a.norm_err, b.norm_err, 1e-12);
        CHECK_NEAR(a.scale, b.scale, 0);
    }
    free(out);
    free(oracle);
    kg_judge_close(r.judge);
}

TEST_WITHIN(judge_cuda_finds_trivial_answers, 120) {
    rig r;
    kg_error err = {0};
    kg_json *found;
    rig_open(&r, KERNELS ",memory=8192");
    CHECK_OK(kg_judge_trivial(r.judge, 0, &found, &err), err);
    CHECK_UINT(kg_json_size(found), 0);
    kg_json_free(found);
    kg_judge_clear_sets(r.judge, 0);
    for (int s = 0; s < 2; s++)
        for (int i = 0; i < COUNT; i++)
            r.input[s][i] = 1, r.oracle[s][i] = 1;
    for (int s = 0; s < 2; s++) {
        const void *inputs[] = {r.input[s]}, *oracles[] = {r.oracle[s]};
        kg_judge_set set = {.inputs = inputs, .ninputs = 1, .oracles = oracles, .noutputs = 1};
        CHECK_OK(kg_judge_add_set(r.judge, 0, &set, &err), err);
    }
    CHECK_OK(kg_judge_trivial(r.judge, 0, &found, &err), err);
    CHECK(kg_json_size(found) >= 3); /* ones, the mean, the input */
    kg_json_free(found);
    kg_judge_close(r.judge);
}

/* Whichever call of the driver fails for once in the judge's own process (the device full, say),
 * there is an answer, with a reason, and the next Candidate is judged as if nothing had been. */
TEST_WITHIN(judge_cuda_when_any_call_fails, 600) {
    rig r;
    kg_buf text;
    const char *all = getenv("KGEN_FAULTS");
    rig_open(&r, KERNELS);
    source_of(&text, "right", "", "");
    expect(&r, text.data, KG_VERDICT_PASS, ""); /* what is done once, is done */
    size_t before = r.driver->calls("*");
    expect(&r, text.data, KG_VERDICT_PASS, "");
    size_t total = r.driver->calls("*") - before, stride = all ? 1 : total / 25 + 1;
    CHECK(total > 20);
    for (size_t n = 1; n <= total; n += stride) {
        kg_error err = {0};
        kg_judge_report *report = NULL;
        kg_judge_request q = {
            .text = text.data, .n = text.len, .name = "softmax.cu", .all_sets = true};
        r.driver->fail("*", (unsigned)n, 2 /* CUDA_ERROR_OUT_OF_MEMORY */);
        int rc = kg_judge_run(r.judge, &q, &report, &err);
        if (rc != KG_OK && err.msg[0] == '\0')
            FAIL("call %zu of %zu: %s without a reason", n, total, kg_status_name(rc));
        if (rc == KG_OK && kg_judge_verdict(report) != KG_VERDICT_PASS)
            CHECK(kg_judge_message(report)[0] != '\0');
        kg_judge_report_free(report);
        r.driver->reset();
        expect(&r, text.data, KG_VERDICT_PASS, "");
    }
    kg_buf_free(&text);
    kg_judge_close(r.judge);
    CHECK_UINT(r.driver->live_bytes(), 0);
}

/* The same in the worker's process, which reads the stand-in's settings when it starts: one is
 * started ahead, so a setting meets the Candidate after the next. */
TEST_WITHIN(judge_cuda_when_any_call_of_the_worker_fails, 600) {
    rig r;
    kg_buf text;
    const char *all = getenv("KGEN_FAULTS");
    int failed = 0, in_a_row = 0;
    rig_open(&r, KERNELS);
    source_of(&text, "right", "", "");
    for (int n = 1; in_a_row < 4; n += all ? 1 : 9) {
        kg_error err = {0};
        kg_judge_report *report = NULL;
        char settings[1024];
        kg_judge_request q = {
            .text = text.data, .n = text.len, .name = "softmax.cu", .all_sets = true};
        snprintf(settings, sizeof settings, KERNELS ",fail=*:%d:2", n);
        setenv("KGEN_FAKE_CUDA", settings, 1);
        int rc = kg_judge_run(r.judge, &q, &report, &err);
        bool passed = rc == KG_OK && kg_judge_verdict(report) == KG_VERDICT_PASS;
        if (rc != KG_OK)
            CHECK(err.msg[0] != '\0');
        else if (!passed)
            CHECK(kg_judge_message(report)[0] != '\0');
        kg_judge_report_free(report);
        failed += !passed;
        in_a_row = passed && n > 1 ? in_a_row + 1 : 0;
        CHECK(n < 5000);
    }
    CHECK(failed > 2);
    setenv("KGEN_FAKE_CUDA", KERNELS, 1);
    kg_judge_report_free(judge_text(&r, text.data, 0)); /* by the worker that was started ahead */
    expect(&r, text.data, KG_VERDICT_PASS, "");
    kg_buf_free(&text);
    kg_judge_close(r.judge);
    CHECK_UINT(r.driver->live_bytes(), 0);
}

static size_t open_files(void) {
    size_t n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

TEST_WITHIN(judge_cuda_leaves_nothing_behind, 180) {
    rig r;
    rig_open(&r, KERNELS ",fault=wrong:700");
    expect_kernel(&r, "wrong", KG_VERDICT_ILLEGAL_ACCESS, "");
    expect_kernel(&r, "right", KG_VERDICT_PASS, "");
    size_t files = open_files(), bytes = r.driver->live_bytes();
    for (int i = 0; i < 8; i++) {
        expect_kernel(&r, i % 2 ? "wrong" : "right",
                      i % 2 ? KG_VERDICT_ILLEGAL_ACCESS : KG_VERDICT_PASS, "");
        CHECK_UINT(r.driver->live_bytes(), bytes);
    }
    CHECK_UINT(open_files(), files);
    kg_judge_close(r.judge);
}

/* Two Cases are judged by one worker: the script counts those that were started. */
TEST_WITHIN(judge_cuda_takes_a_candidates_cases_in_turn, 120) {
    rig r;
    kg_error err = {0};
    size_t index, n = 0;
    kg_buf told;
    char script[600], path[256], count[256];
    snprintf(path, sizeof path, "%s", test_path("worker.sh"));
    snprintf(count, sizeof count, "%s", test_path("started"));
    int k =
        snprintf(script, sizeof script, "#!/bin/sh\necho x >> '%s'\nexec '%s/kgen-worker' \"$@\"\n",
                 count, KGEN_BINARY_DIR);
    CHECK_OK(kg_write_atomic(path, script, (size_t)k, &err), err);
    CHECK(chmod(path, 0700) == 0);
    kg_judge_options o = {.timeout_ms = 20000};
    rig_open_by(&r, KERNELS, o, path);
    CHECK_OK(kg_judge_add_case(r.judge, JUDGE_CUDA_CASE, strlen(JUDGE_CUDA_CASE), "another", &index,
                               &err),
             err);
    for (int s = 0; s < 2; s++) {
        /* The other Case's inputs come the other way round. */
        const void *inputs[] = {r.input[!s]}, *oracles[] = {r.oracle[!s]};
        kg_judge_set set = {.inputs = inputs, .ninputs = 1, .oracles = oracles, .noutputs = 1};
        CHECK_OK(kg_judge_add_set(r.judge, index, &set, &err), err);
    }
    expect_kernel(&r, "right", KG_VERDICT_PASS, "");
    expect_kernel(&r, "wrong", KG_VERDICT_WRONG_VALUES, "[63, 99] expected");
    expect_kernel(&r, "right", KG_VERDICT_PASS, "");
    kg_judge_close(r.judge);
    CHECK_UINT(r.driver->live_bytes(), 0);
    CHECK_UINT(r.driver->live_modules(), 0);
    kg_buf_init(&told, 0);
    CHECK_OK(kg_read_file(count, 1 << 10, &told, &err), err);
    for (size_t i = 0; i < told.len; i++)
        n += told.data[i] == 'x';
    CHECK(n == 3 || n == 4); /* a Candidate each, and one ahead that may not have got to tell */
    kg_buf_free(&told);
}

TEST(judge_cuda_says_what_is_missing) {
    kg_error err = {0};
    kg_judge *j;
    static const char op[] = "{}";
    kg_judge_options o = {.device = KG_CUDA};
    setenv("KGEN_LIBCUDA", test_path("nowhere.so"), 1);
    CHECK_ERR(kg_judge_open(op, strlen(op), "op.json", &o, &j, &err), err, KG_EENV, "nowhere.so");
}

TEST(judge_cuda_has_one_architecture) {
    kg_error err = {0};
    kg_judge *j;
    CHECK(fake_cuda_use(DRIVER, "arch=80"));
    kg_judge_options o = {.device = KG_CUDA, .arch = "sm_90"};
    CHECK_ERR(kg_judge_open("{}", 2, "op.json", &o, &j, &err), err, KG_EINVAL, "which is sm_80");
    o = (kg_judge_options){.device = KG_CUDA, .index = 3};
    CHECK_ERR(kg_judge_open("{}", 2, "op.json", &o, &j, &err), err, KG_EINVAL, "device 3");
}

TEST_WITHIN(judge_cuda_corpus_gets_as_far_as_it_should, 240) {
    rig r;
    kg_error err = {0};
    char **names;
    size_t n, cuda = 0;
    static const char folder[] = KGEN_SOURCE_DIR "/tests/judge/candidates";
    rig_open(&r, KERNELS);
    CHECK_OK(kg_list_dir(folder, &names, &n, &err), err);
    for (size_t i = 0; i < n; i++) {
        size_t length = strlen(names[i]);
        char path[512];
        if (length < 3 || strcmp(names[i] + length - 3, ".cu") != 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        one_of_the_corpus(&r, path, names[i]);
        cuda++;
    }
    CHECK(cuda >= 39);
    kg_free_names(names, n);
    kg_judge_close(r.judge);
}
