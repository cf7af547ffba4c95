/* A judge on the stand-in for the driver (tests/fake), with a Case of softmax and two input sets;
 * kernels are C functions of the same name (tests/fake_kernels). */
#ifndef KG_TEST_JUDGE_CUDA_UTIL_H
#define KG_TEST_JUDGE_CUDA_UTIL_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "fake_cuda.h"
#include "nvrtc_util.h"
#include "tune/judge.h"
#include "tune/judge_internal.h"

#define DRIVER KGEN_BINARY_DIR "/libkgen_fakecuda.so"
#define KERNELS "kernels=" KGEN_BINARY_DIR "/libkgen_fakekernels.so"

enum { ROWS = 64, COLUMNS = 100, COUNT = ROWS * COLUMNS };

static const char JUDGE_CUDA_CASE[] =
    "{\"format\": 1, \"op\": \"softmax\", \"device\": \"cuda\", \"precision\": \"native\", "
    "\"args\": {\"input\": {\"dtype\": \"float32\", \"shape\": [64, 100], \"stride\": [100, 1], "
    "\"align\": 16, \"fill\": {\"kind\": \"normal\", \"mean\": 0, \"std\": 1}}, \"dim\": -1}, "
    "\"count\": 1}";

typedef struct rig {
    kg_judge *judge;
    const fake_cuda *driver;
    float input[2][COUNT];
    double oracle[2][COUNT];
} rig;

static inline void softmax(const float *x, double *y) {
    for (int row = 0; row < ROWS; row++) {
        double sum = 0;
        for (int i = 0; i < COLUMNS; i++)
            sum += exp((double)x[row * COLUMNS + i]);
        for (int i = 0; i < COLUMNS; i++)
            y[row * COLUMNS + i] = exp((double)x[row * COLUMNS + i]) / sum;
    }
}

static inline void add_sets(rig *r) {
    kg_error err = {0};
    for (int s = 0; s < 2; s++) {
        for (int i = 0; i < COUNT; i++)
            r->input[s][i] = (float)(i * (37 + s) % 101) / 50.0f;
        softmax(r->input[s], r->oracle[s]);
        const void *inputs[] = {r->input[s]}, *oracles[] = {r->oracle[s]};
        kg_judge_set set = {
            .name = "made up", .inputs = inputs, .ninputs = 1, .oracles = oracles, .noutputs = 1};
        CHECK_OK(kg_judge_add_set(r->judge, 0, &set, &err), err);
    }
}

static inline void rig_open_by(rig *r, const char *settings, kg_judge_options o,
                               const char *worker) {
    kg_error err = {0};
    kg_buf op;
    size_t index;
    setenv("KGEN_CACHE", KGEN_BINARY_DIR "/test-cache", 1); /* the checks take seconds to compile */
    r->driver = fake_cuda_use(DRIVER, settings);
    CHECK(r->driver);
    need_nvrtc(); /* which asks the driver */
    kg_buf_init(&op, 0);
    CHECK_OK(kg_read_file(KGEN_SOURCE_DIR "/kernels/ops/softmax.json", 1 << 20, &op, &err), err);
    o.device = KG_CUDA;
    snprintf(o.worker, sizeof o.worker, "%s", worker);
    CHECK_OK(kg_judge_open(op.data, op.len, "softmax.json", &o, &r->judge, &err), err);
    kg_buf_free(&op);
    CHECK_OK(kg_judge_add_case(r->judge, JUDGE_CUDA_CASE, strlen(JUDGE_CUDA_CASE), "a Case", &index,
                               &err),
             err);
    add_sets(r);
}

static inline void rig_open_with(rig *r, const char *settings, kg_judge_options o) {
    rig_open_by(r, settings, o, KGEN_BINARY_DIR "/kgen-worker");
}

static inline void rig_open(rig *r, const char *settings) {
    rig_open_with(r, settings, (kg_judge_options){.timeout_ms = 20000});
}

/* A Candidate whose kernel has this name and does what the stand-in's function does. `launch`: more
 * keys of the launch, each with a comma before it; `body`: in front of the kernel. */
static inline void source_of(kg_buf *b, const char *kernel, const char *launch,
                             const char *before) {
    kg_buf_init(b, 0);
    kg_buf_printf(
        b,
        "/* kgen\n{ \"format\": 1, \"op\": \"softmax\", \"target\": \"cuda\", "
        "\"launches\": [{\"kernel\": \"%s\", \"grid\": [\"M\"], \"block\": [128], "
        "\"args\": [\"input\", \"output\", {\"i32\": \"M\"}, {\"i32\": \"N\"}]%s}] }\n*/\n"
        "%s\nextern \"C\" __global__ void %s(const float *x, float *y, int m, int n) {\n"
        "    y[blockIdx.x * n + threadIdx.x] = x[m];\n}\n",
        kernel, launch, before, kernel);
}

static inline kg_judge_report *judge_text(rig *r, const char *text, uint32_t reps) {
    kg_error err = {0};
    kg_judge_report *report;
    kg_judge_request q = {
        .text = text, .n = strlen(text), .name = "softmax.cu", .all_sets = true, .reps = reps};
    CHECK_OK(kg_judge_run(r->judge, &q, &report, &err), err);
    return report;
}

static inline void expect(rig *r, const char *text, kg_verdict verdict, const char *part) {
    kg_judge_report *report = judge_text(r, text, 0);
    if (kg_judge_verdict(report) != verdict || !strstr(kg_judge_message(report), part))
        FAIL("%s: %s, and not %s: %s", kg_verdict_name((int)kg_judge_verdict(report)),
             kg_judge_message(report), kg_verdict_name((int)verdict), part);
    kg_judge_report_free(report);
}

static inline void expect_kernel(rig *r, const char *kernel, kg_verdict verdict, const char *part) {
    kg_buf text;
    source_of(&text, kernel, "", "");
    expect(r, text.data, verdict, part);
    kg_buf_free(&text);
}

#endif
