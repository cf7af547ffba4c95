/* The judge on CUDA, on the stand-in for the driver: what a call may find of the one before it,
 * other machines and callers, and results that were cut off. */
#include "judge_cuda_util.h"

/* --- what a call finds of the one before it, and other machines than this --- */

/* A kernel of (input, output, one more, M, N). `before`: more keys of the plan, a comma behind
 * each. */
static void source_with(kg_buf *b, const char *kernel, const char *before, const char *argument,
                        const char *type) {
    kg_buf_init(b, 0);
    kg_buf_printf(
        b,
        "/* kgen\n{ \"format\": 1, \"op\": \"softmax\", \"target\": \"cuda\", %s"
        "\"launches\": [{\"kernel\": \"%s\", \"grid\": [\"M\"], \"block\": [128], "
        "\"args\": [\"input\", \"output\", %s, {\"i32\": \"M\"}, {\"i32\": \"N\"}]}] }\n*/\n"
        "extern \"C\" __global__ void %s(const float *x, float *y, %s one, int m, int n) {\n"
        "    y[blockIdx.x * n + threadIdx.x] = x[m];\n}\n",
        before, kernel, argument, kernel, type);
}

TEST_WITHIN(judge_cuda_keeps_what_a_call_left_for_the_next, 120) {
    rig r;
    kg_buf text;
    rig_open(&r, KERNELS);
    source_with(&text, "remembers",
                "\"workspace\": {\"done\": {\"dtype\": \"int32\", \"shape\": [4]}}, ", "\"done\"",
                "int *");
    expect(&r, text.data, KG_VERDICT_NOT_ALL_WRITTEN, "case 0, set 1");
    kg_buf_free(&text);
    kg_judge_close(r.judge);
}

/* Between an untimed call and the timed one after it the outputs are poisoned again. */
TEST_WITHIN(judge_cuda_no_timed_call_finds_its_results, 120) {
    rig r;
    kg_buf text;
    rig_open(&r, KERNELS);
    source_of(&text, "meets_its_own", "", "");
    kg_judge_report *report = judge_text(&r, text.data, 15);
    CHECK_STR(kg_judge_message(report), "");
    CHECK(report->cases[0].warm.n > 0);
    kg_judge_report_free(report);
    kg_buf_free(&text);
    kg_judge_close(r.judge);
}

TEST_WITHIN(judge_cuda_tries_other_machines_and_callers, 120) {
    rig r;
    kg_buf text;
    rig_open(&r, KERNELS);
    source_with(&text, "for_132", "", "{\"i32\": \"NUM_SMS\"}", "int");
    expect(&r, text.data, KG_VERDICT_WRONG_VALUES, "with NUM_SMS = 16");
    kg_buf_free(&text);
    source_with(&text, "for_132", "", "{\"i32\": \"NUM_SMS / NUM_SMS * 132\"}", "int");
    expect(&r, text.data, KG_VERDICT_PASS, "");
    kg_buf_free(&text);
    source_with(&text, "for_16", "", "{\"i32\": \"align(input)\"}", "int");
    expect(&r, text.data, KG_VERDICT_WRONG_VALUES, "with inputs aligned to 256 bytes");
    kg_buf_free(&text);
    /* A plan that is not for such a machine is not asked. */
    source_with(&text, "for_132", "\"require\": \"NUM_SMS == 132\", ", "{\"i32\": \"NUM_SMS\"}",
                "int");
    expect(&r, text.data, KG_VERDICT_PASS, "");
    kg_buf_free(&text);
    kg_judge_close(r.judge);
}

/* A copy is judged as if it were the Op: the tolerance is four roundings wide, and results that
 * all lie a unit nearer to zero are within it. */
TEST_WITHIN(judge_cuda_sees_what_was_cut_off, 120) {
    enum { MANY = 64 * 2000 };
    static const char half_case[] =
        "{\"format\": 1, \"op\": \"softmax\", \"device\": \"cuda\", \"precision\": \"native\", "
        "\"args\": {\"input\": {\"dtype\": \"float16\", \"shape\": [64, 2000], \"stride\": [2000, "
        "1], "
        "\"align\": 16, \"fill\": {\"kind\": \"normal\", \"mean\": 0, \"std\": 1}}, \"dim\": -1}, "
        "\"count\": 1}";
    rig r;
    kg_error err = {0};
    kg_buf text;
    size_t index;
    unsigned short *x = malloc(MANY * sizeof *x);
    double *oracle = malloc(MANY * sizeof *oracle);
    CHECK(x && oracle);
    rig_open(&r, KERNELS);
    CHECK_OK(kg_judge_add_case(r.judge, half_case, strlen(half_case), "a Case", &index, &err), err);
    for (int i = 0; i < MANY; i++) {
        x[i] = (unsigned short)(0x3c00u + (unsigned)(i * 7919 % 1000) + 1u); /* 1 to 2 */
        oracle[i] = kg_element(KG_F16, x, (size_t)i);
    }
    const void *inputs[] = {x}, *oracles[] = {oracle};
    kg_errors own[] = {{.norm = 1e-3, .max = 1e-3}};
    kg_judge_set set = {
        .inputs = inputs, .ninputs = 1, .oracles = oracles, .noutputs = 1, .torch_errors = own};
    CHECK_OK(kg_judge_add_set(r.judge, index, &set, &err), err);
    for (int cut = 0; cut < 2; cut++) {
        kg_buf_init(&text, 0);
        kg_buf_printf(
            &text,
            "/* kgen\n{ \"format\": 1, \"op\": \"softmax\", \"target\": \"cuda\", "
            "\"require\": \"input.dtype == float16\", \"launches\": [{\"kernel\": \"%s\", "
            "\"grid\": "
            "[\"M\"], \"block\": [128], \"args\": [\"input\", \"output\", {\"i32\": \"M\"}, "
            "{\"i32\": \"N\"}]}] }\n*/\nextern \"C\" __global__ void %s(const KG_T_input *x, "
            "KG_T_output *y, int m, int n) { y[n] = x[m]; }\n",
            cut ? "cuts" : "copies", cut ? "cuts" : "copies");
        if (cut)
            expect(&r, text.data, KG_VERDICT_WRONG_VALUES, "nearer to zero than the nearest ones");
        else
            expect(&r, text.data, KG_VERDICT_PASS, "");
        kg_buf_free(&text);
    }
    kg_judge_close(r.judge);
    free(x);
    free(oracle);
}
