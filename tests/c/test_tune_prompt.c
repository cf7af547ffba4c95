/* Prompts: everything that is known is in them, and what does not fit goes in the stated order. */
#include <stdlib.h>

#include "base/fs.h"
#include "test.h"
#include "tune/prompt.h"

static const char op_text[] =
    "{\"format\":1,\"op\":\"twice\",\"schema\":\"twice(Tensor x, float s=2.0) -> Tensor\","
    "\"args\":[{\"name\":\"x\",\"type\":\"Tensor\",\"dtypes\":[\"float32\"],\"shape\":[\"N\"]},"
    "{\"name\":\"s\",\"type\":\"float\"}],"
    "\"dims\":[{\"name\":\"H\",\"expr\":\"N / 2\"}],"
    "\"outputs\":[{\"name\":\"y\",\"dtype_as\":\"x\",\"like\":\"x\"}],\"holes\":[],"
    "\"reference\":{\"kind\":\"source\",\"file\":\"reference.py\",\"name\":\"Model\"}}";
static const char case_text[] =
    "{\"format\":1,\"op\":\"twice\",\"device\":\"cpu\",\"precision\":\"native\",\"count\":3,"
    "\"args\":{\"x\":{\"dtype\":\"float32\",\"shape\":[700],\"stride\":[1],\"align\":32,"
    "\"fill\":{\"kind\":\"normal\",\"mean\":0.0,\"std\":1.0}},\"s\":1.5}}";

static void put(const char *name, const char *text) {
    kg_error err;
    CHECK_OK(kg_write_atomic(test_path(name), text, strlen(text), &err), err);
}

static kg_prompt *open_with(size_t max_tokens, const char *knowledge, kg_op **op) {
    static const kg_prompt_case known[] = {
        {.floor_ns = 1000, .bytes = 5600, .flops = 700, .torch_ns = 15e6}};
    kg_prompt *p = NULL;
    kg_error err;
    kg_mkdirs(test_path("cases"), NULL);
    put("op.json", op_text);
    put("cases/0.json", case_text);
    put("reference.py", "class Model: pass\n");
    kg_buf graph;
    kg_buf_init(&graph, 0);
    for (int i = 0; i < 400; i++)
        kg_buf_printf(&graph, "%%%d = aten.mul\n", i);
    put("graph.txt", graph.data);
    kg_buf_free(&graph);
    CHECK_OK(kg_op_from_json(op_text, strlen(op_text), "op", op, &err), err);
    kg_prompt_task t = {.prompts_dir = KGEN_SOURCE_DIR "/kernels/prompts",
                        .task_dir = test_dir(),
                        .op = *op,
                        .target = KG_CPU,
                        .machine = "2 cores\n",
                        .notes = "be quick\n",
                        .knowledge = knowledge,
                        .cases = known,
                        .ncases = 1,
                        .max_tokens = max_tokens};
    CHECK_OK(kg_prompt_open(&t, &p, &err), err);
    return p;
}

static const double times[] = {2500};
static const kg_prompt_shown good[] = {
    {.id = "aaaaaaaaaaaaaaaa",
     .text = "/* the best */\n",
     .verdict = "pass",
     .time_ns = times,
     .full = true},
    {.id = "bbbbbbbbbbbbbbbb", .text = "/* the second */\n", .verdict = "pass", .time_ns = times},
};
static const kg_prompt_shown bad = {.id = "cccccccccccccccc",
                                    .text = "/* the failed */\n",
                                    .verdict = "wrong_values",
                                    .message = "first: [0] expected 1 got 2"};
static const kg_prompt_idea ideas[] = {{"tile it", "failed"}, {"stream it", NULL}};

static char *user(const kg_prompt *p, kg_prompt_state s) {
    kg_buf out;
    kg_error err;
    kg_buf_init(&out, 0);
    CHECK_OK(kg_prompt_user(p, &s, &out, &err), err);
    return kg_buf_take(&out);
}

static void has_not(const char *text, const char *part) {
    if (strstr(text, part))
        FAIL("\"%s\" is in the prompt", part);
}

TEST(prompt_has_what_is_known) {
    kg_op *op = NULL;
    kg_prompt *p = open_with(0, "knowledge\n", &op);
    CHECK_HAS(kg_prompt_system(p), "The target: `\"target\": \"cpu\"`");
    CHECK_HAS(kg_prompt_system(p), "/* kgen\n{ \"format\": 1, \"op\": \"rms\"");
    has_not(kg_prompt_system(p), "kg_score"); /* an Op without holes */
    char *text = user(p, (kg_prompt_state){.kind = KG_PROMPT_REFINE,
                                           .last = &bad,
                                           .complaint = "- no second file\n",
                                           .best = good,
                                           .nbest = 2,
                                           .ideas = ideas,
                                           .nideas = 2});
    static const char *const parts[] = {
        "twice(Tensor x, float s=2.0) -> Tensor",
        "class Model: pass",
        "%399 = aten.mul",
        "Case 0, 3 calls in a run",
        "x: float32 (700), strides (1), address a multiple of 32",
        "- s: 1.5",
        "N = 700, H = 350",
        "0.0056 MB",
        "takes at least 1.00 us by what was measured",
        "the reference itself, in eager torch, takes 15.0 ms here",
        "2 cores",
        "be quick",
        "knowledge",
        "Candidate aaaaaaaaaaaa\n- Case 0: 2.50 us, 2.50 times the roofline, 6000.00 times as "
        "fast as eager torch; 2.24 GB/s",
        "/* the best */",
        "/* the second */",
        "- stream it\n  Result: not tried\n- tile it\n  Result: failed",
        "/* the failed */",
        "Candidate cccccccccccc: `wrong_values`",
        "first: [0] expected 1 got 2",
        "- no second file",
        "Mend or improve the attempt above"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        CHECK_HAS(text, parts[i]);
    free(text);
    text = user(
        p, (kg_prompt_state){.kind = KG_PROMPT_IDEAS, .count = 5, .ideas = ideas, .nideas = 2});
    CHECK_HAS(text, "Give 5 different ideas");
    free(text);
    text = user(p, (kg_prompt_state){.kind = KG_PROMPT_IMPLEMENT, .idea = "use {COUNT} tiles"});
    CHECK_HAS(text, "> use {COUNT} tiles");
    free(text);
    kg_prompt_close(p);
    kg_op_free(op);
}

/* Smaller and smaller: each part that is gone must be one that goes before all that are there. */
TEST(prompt_drops_in_the_stated_order) {
    static const char *const order[] = {"the knowledge ends", "/* the second */",
                                        "%399 = aten.mul",    "- tile it",
                                        "/* the best */",     "/* the failed */"};
    static const char *const always[] = {"Case 0, 3 calls", "twice(Tensor", "`wrong_values`",
                                         "expected 1 got 2", "Mend or improve"};
    kg_buf knowledge;
    kg_buf_init(&knowledge, 0);
    for (int i = 0; i < 500; i++)
        kg_buf_puts(&knowledge, "a line of what somebody knows\n");
    kg_buf_puts(&knowledge, "the knowledge ends\n");
    size_t before = SIZE_MAX, gone_most = 0;
    for (size_t tokens = 20000; tokens > 100; tokens -= tokens / 20) {
        kg_op *op = NULL;
        kg_prompt *p = open_with(tokens, knowledge.data, &op);
        char *text = user(p, (kg_prompt_state){.kind = KG_PROMPT_REFINE,
                                               .last = &bad,
                                               .best = good,
                                               .nbest = 2,
                                               .ideas = ideas,
                                               .nideas = 2});
        size_t n = strlen(text), gone = 0;
        while (gone < 6 && !strstr(text, order[gone]))
            gone++;
        for (size_t i = gone; i < 6; i++)
            if (!strstr(text, order[i]))
                FAIL("%s went before %s at %zu tokens", order[i], order[gone], tokens);
        for (size_t i = 0; i < 5; i++)
            CHECK_HAS(text, always[i]);
        CHECK(n <= before);
        if (gone < 6)
            CHECK(kg_prompt_tokens(n + strlen(kg_prompt_system(p))) <= tokens);
        CHECK(gone >= gone_most);
        gone_most = gone;
        before = n;
        free(text);
        kg_prompt_close(p);
        kg_op_free(op);
    }
    CHECK_UINT(gone_most, 6);
    kg_buf_free(&knowledge);
}

TEST(prompt_kinds) {
    for (int i = 0; i < 4; i++)
        CHECK_INT(kg_prompt_kind_parse(kg_prompt_kind_name((kg_prompt_kind)i)), i);
    CHECK_INT(kg_prompt_kind_parse("x"), -1);
}
