/* The loop against a made-up proposer and a made-up evaluator: what is asked follows from what
 * came, and a Run that is stopped anywhere and goes on ends where it would have. */
#include <stdlib.h>
#include <time.h>

#include "base/fs.h"
#include "base/stop.h"
#include "test.h"
#include "tune/llm_json.h"
#include "tune/loop.h"

static const char op_text[] =
    "{\"format\":1,\"op\":\"twice\",\"schema\":\"twice(Tensor x) -> Tensor\","
    "\"args\":[{\"name\":\"x\",\"type\":\"Tensor\",\"dtypes\":[\"float32\"],\"shape\":[\"N\"]}],"
    "\"dims\":[],\"outputs\":[{\"name\":\"y\",\"dtype_as\":\"x\",\"like\":\"x\"}],\"holes\":[],"
    "\"reference\":{\"kind\":\"torch\",\"call\":\"torch.mul\"}}";
static const char case_text[] =
    "{\"format\":1,\"op\":\"twice\",\"device\":\"cpu\",\"precision\":\"native\",\"count\":3,"
    "\"args\":{\"x\":{\"dtype\":\"float32\",\"shape\":[700],\"stride\":[1],\"align\":32,"
    "\"fill\":{\"kind\":\"normal\",\"mean\":0.0,\"std\":1.0}}}}";

#define PLAN(tunables)                                                                             \
    "/* kgen\n{\"format\":1,\"op\":\"twice\",\"target\":\"cpu\"," tunables                         \
    "\"launches\":[{\"kernel\":\"twice\",\"range\":\"N\",\"args\":[\"x\",\"y\"]}]}\n*/\n"
#define FILE_OF(body) "```c\n" PLAN("") body "\n```\n"

static const char gpu_record[] =
    "{\"details\":{\"device\":[{\"kernels\":[{\"name\":\"twice\",\"registers\":72,"
    "\"local_bytes\":48,\"static_shared\":1024,\"dynamic_shared\":2048,\"threads\":256,"
    "\"blocks_per_sm\":3}]}]},\"cases\":[{\"warm_ns\":{\"median\":420}}]}";

/* --- the evaluator: does what the source says --- */

typedef struct world {
    int asked, judged, stop_at; /* stop_at: the verdict after which the Run is stopped; 0: never */
    char *(*answer)(struct world *w, int n, const char *user);
    kg_journal *journal;
    char waiting[64][64]; /* ids of what was answered and not collected */
    int nwaiting;
    kg_buf prompts; /* all that was asked in this life */
    bool fatal, unreachable;
    int listed, profiled;
    size_t lanes;   /* devices that judge at once; 0: one */
    int by_lane[4]; /* calls */
} world;

static int prepare(void *ctx, const kg_source *source, const kg_tuning *t, kg_error *err) {
    (void)ctx, (void)t;
    return strstr(source->text, "NOT_FOR_US")
               ? kg_fail(err, KG_ENOTFOUND, "require: N == 1: N = 700")
               : KG_OK;
}

static int judge(void *ctx, size_t lane, const kg_source *source, const kg_tuning *t,
                 kg_level level, kg_outcome *out, kg_error *err) {
    world *w = ctx;
    const char *time = strstr(source->text, "TIME ");
    const struct timespec pause = {.tv_nsec = 5000000};
    w->by_lane[lane]++;
    if (w->lanes > 1) /* long enough that several are under way */
        nanosleep(&pause, NULL);
    if (w->stop_at && ++w->judged > w->stop_at) {
        kg_stop_set(true);
        return kg_fail(err, KG_EINTR, "killed");
    }
    if (!time) {
        bool wrong = strstr(source->text, "WRONG");
        out->verdict = wrong ? KG_VERDICT_WRONG_VALUES : KG_VERDICT_COMPILE_ERROR;
        snprintf(out->message, sizeof out->message, "%s",
                 wrong ? "[0] expected 42 got 0" : "line 7: what is 42?");
        return KG_OK;
    }
    out->verdict = KG_VERDICT_PASS;
    out->time_ns[0] = strtod(time + 5, NULL) - 10.0 * (double)t->value[0];
    if (level == KG_LEVEL_FULL) {
        const char *record = strstr(source->text, "ON_A_GPU") ? gpu_record : "{}";
        CHECK_OK(kg_json_parse(record, strlen(record), "record", &out->record, err), *err);
    }
    return KG_OK;
}

static int listing(void *ctx, const kg_source *source, const kg_tuning *t, kg_buf *out,
                   kg_error *err) {
    world *w = ctx;
    (void)t, (void)err;
    w->listed++;
    return kg_buf_printf(out, "jne of %s\n", strstr(source->text, "TIME "));
}

static int profile(void *ctx, const char *id, kg_buf *out, kg_error *err) {
    world *w = ctx;
    (void)err;
    w->profiled++;
    return kg_buf_printf(out, "- a profiler on %.12s\n", id);
}

/* --- the proposer: answers at once, as the journal has it --- */

static int ask(void *ctx, const char *id, const char *system, const char *user, kg_error *err) {
    world *w = ctx;
    kg_spend one = {.calls = 1};
    CHECK_HAS(system, "/* kgen");
    kg_buf_printf(&w->prompts, "=== %s\n%s", id, user);
    if (w->fatal)
        return KG_OK;
    char *text = w->answer(w, ++w->asked, user);
    kg_json *e = kg_json_new_object();
    kg_json_set_str(e, "op", "twice");
    kg_json_set_str(e, "prompt", id);
    kg_json_set_str(e, "name", id);
    kg_json_set_str(e, "text", text);
    kg_json_set(e, "charged", kg_spend_json(&one));
    free(text);
    snprintf(w->waiting[w->nwaiting++ % 64], 64, "%s", id);
    return kg_journal_add(w->journal, "answer", e, err);
}

static int collect(void *ctx, int wait_ms, kg_proposal *out, kg_error *err) {
    world *w = ctx;
    (void)wait_ms, (void)err;
    if (w->fatal) {
        *out = (kg_proposal){.fatal = true, .again = true, .unreachable = w->unreachable};
        snprintf(out->message, sizeof out->message, "%s",
                 w->unreachable ? "no way there" : "no such key");
        snprintf(out->prompt, sizeof out->prompt, "twice-0001");
        w->fatal = false;
        return KG_OK;
    }
    if (!w->nwaiting)
        return KG_ETIMEOUT;
    *out = (kg_proposal){.answered = true};
    snprintf(out->prompt, sizeof out->prompt, "%s", w->waiting[--w->nwaiting]);
    return KG_OK;
}

/* --- a Run --- */

static void put(const char *name, const char *text) {
    kg_error err;
    CHECK_OK(kg_write_atomic(test_path(name), text, strlen(text), &err), err);
}

enum { WHOLE = -1 };

static int run_stage(int stage, world *w, kg_loop_options o, size_t slots, kg_loop_result *out,
                     kg_error *err) {
    static const kg_prompt_case known[] = {{.floor_ns = 100}};
    kg_op *op = NULL;
    kg_prompt *prompt = NULL;
    kg_evaluator e = {.ctx = w,
                      .ncases = 1,
                      .lanes = w->lanes,
                      .prepare = prepare,
                      .judge = judge,
                      .profile = w->profiled >= 0 ? profile : NULL,
                      .listing = listing};
    kg_proposer p = {.ctx = w, .slots = slots, .ask = ask, .collect = collect};
    o.budget_ms = o.budget_ms ? o.budget_ms : 60000;
    o.compile_jobs = 2;
    kg_mkdirs(test_path("cases"), NULL);
    put("op.json", op_text);
    put("cases/0.json", case_text);
    kg_buf_free(&w->prompts);
    kg_buf_init(&w->prompts, 0);
    CHECK_OK(kg_op_from_json(op_text, strlen(op_text), "op", &op, err), *err);
    kg_prompt_task t = {.prompts_dir = KGEN_SOURCE_DIR "/kernels/prompts",
                        .task_dir = test_dir(),
                        .op = op,
                        .target = KG_CPU,
                        .cases = known,
                        .ncases = 1};
    CHECK_OK(kg_prompt_open(&t, &prompt, err), *err);
    CHECK_OK(kg_journal_open(test_path("run"), &w->journal, err), *err);
    int rc = stage == WHOLE
                 ? kg_loop("twice", op, prompt, known, &p, &e, w->journal, &o, out, err)
                 : kg_loop_stage((kg_stage)stage, "twice", op, prompt, known, 1, slots,
                                 stage == KG_STAGE_PROPOSE ? &p : NULL,
                                 stage >= KG_STAGE_EVALUATE ? &e : NULL, w->journal, &o, out, err);
    kg_journal_close(w->journal);
    kg_prompt_close(prompt);
    kg_op_free(op);
    return rc;
}

static int run(world *w, kg_loop_options o, size_t slots, kg_loop_result *out, kg_error *err) {
    return run_stage(WHOLE, w, o, slots, out, err);
}

static double winner_time(const kg_loop_result *r) {
    CHECK(r->search.winners[0].source >= 0);
    return r->search.winners[0].time_ns;
}

/* --- refine --- */

/* Wrong; then one that does not compile; then right, because the prompt had the 42. */
static char *learns(world *w, int n, const char *user) {
    (void)w;
    if (n == 1) {
        CHECK(!strstr(user, "The last attempt"));
        return strdup(FILE_OF("WRONG"));
    }
    if (n == 2) {
        CHECK_HAS(user, "`wrong_values`");
        CHECK_HAS(user, "expected 42 got 0");
        CHECK_HAS(user, "\nWRONG\n");
        return strdup(FILE_OF("42 42"));
    }
    if (n == 3) {
        CHECK_HAS(user, "`compile_error`");
        CHECK_HAS(user, "line 7: what is 42?");
        return strdup(FILE_OF("// TIME 500"));
    }
    CHECK_HAS(user, "5.00 times the roofline");
    return strdup(FILE_OF("// TIME 104"));
}

TEST(loop_refine_learns_from_verdicts) {
    world w = {.answer = learns};
    kg_loop_result r;
    kg_error err;
    CHECK_OK(run(&w, (kg_loop_options){.strategy = "refine"}, 1, &r, &err), err);
    CHECK_INT(w.asked, 4);
    CHECK_NEAR(winner_time(&r), 104, 0);
    CHECK_HAS(r.ended_by, "as near to the roofline as was asked for");
    CHECK_UINT(r.prompts, 4);
    CHECK_UINT(r.candidates, 4);
    CHECK_UINT(r.search.verdicts[KG_VERDICT_WRONG_VALUES], 1);
    CHECK_UINT(r.search.verdicts[KG_VERDICT_COMPILE_ERROR], 1);
    kg_loop_result_free(&r);
    kg_buf_free(&w.prompts);
}

/* The roofline is at 100: 500 is a fifth of it, which is asked for here. */
TEST(loop_ends_at_the_share_that_was_asked_for) {
    world w = {.answer = learns};
    kg_loop_result r;
    kg_error err;
    kg_loop_options o = {.strategy = "refine", .target_share = 0.2};
    CHECK_OK(run(&w, o, 1, &r, &err), err);
    CHECK_INT(w.asked, 3);
    CHECK_NEAR(winner_time(&r), 500, 0);
    CHECK_HAS(r.ended_by, "as near to the roofline as was asked for");
    kg_loop_result_free(&r);
    kg_buf_free(&w.prompts);
}

/* Always the same failure, each time in another file. */
static char *never_learns(world *w, int n, const char *user) {
    char text[1024];
    (void)w, (void)user;
    snprintf(text, sizeof text, "```c\n%sWRONG %d\n```\n", PLAN(""), n);
    return strdup(text);
}

/* What the judge knows of registers, spills, shared memory and occupancy is in the next prompt. */
static char *on_a_gpu(world *w, int n, const char *user) {
    (void)w;
    if (n == 1)
        return strdup(FILE_OF("// TIME 500 ON_A_GPU"));
    CHECK_HAS(user,
              "`twice`: 72 registers a thread, 48 bytes of it spilled or in local arrays, 3.0 KiB "
              "of shared memory, blocks of 256 threads, 3 of them on a multiprocessor at once (24 "
              "warps)");
    CHECK_HAS(user, "- Case 0 with its inputs still in the L2: 0.42 us");
    return strdup(FILE_OF("// TIME 104"));
}

TEST(loop_shows_what_kernels_use) {
    world w = {.answer = on_a_gpu};
    kg_loop_result r;
    kg_error err;
    CHECK_OK(run(&w, (kg_loop_options){.strategy = "refine"}, 1, &r, &err), err);
    CHECK(w.asked >= 2);
    kg_loop_result_free(&r);
    kg_buf_free(&w.prompts);
}

TEST(loop_refine_begins_anew_and_gives_up) {
    world w = {.answer = never_learns};
    kg_loop_result r;
    kg_error err;
    CHECK_OK(
        run(&w, (kg_loop_options){.strategy = "refine", .patience = 2, .barren = 3}, 1, &r, &err),
        err);
    CHECK_HAS(r.ended_by, "no better Candidate came of several beginnings");
    CHECK_INT(r.search.winners[0].source, -1);
    size_t fresh = 0, refine = 0;
    for (const char *p = w.prompts.data; (p = strstr(p, "## Now")) != NULL; p++) {
        fresh += strstr(p, "from the beginning") == p + 38;
        refine += strstr(p, "Mend or improve") == p + 8;
    }
    CHECK(refine >= 2);
    CHECK_INT(w.asked <= 12, 1);
    CHECK_UINT(fresh + refine, (size_t)w.asked);
    kg_loop_result_free(&r);
    kg_buf_free(&w.prompts);
}

/* What cannot be used is told; what repeats is not judged again; an edit builds on what it names.
 */
static char *clumsy(world *w, int n, const char *user) {
    (void)w;
    if (n == 1)
        return strdup("I would write a Triton kernel:\n```python\n@triton.jit\ndef f(): pass\n```");
    if (n == 2) {
        CHECK_HAS(user, "a Triton kernel (`@triton.jit`)");
        return strdup(
            "```c\n/* "
            "kgen\n{\"format\":1,\"op\":\"twice\",\"target\":\"cpu\",\"lunches\":[]}\n*/\n```");
    }
    if (n == 3) {
        CHECK_HAS(user, "`plan_error`");
        CHECK_HAS(user, "lunches");
        return strdup("```c\n" PLAN("\"require\":\"N == 1\",") "NOT_FOR_US\n```");
    }
    if (n == 4) {
        CHECK_HAS(user, "require: N == 1: N = 700");
        return strdup(FILE_OF("// TIME 900") FILE_OF("// TIME 900"));
    }
    if (n == 5) {
        CHECK_HAS(user, "a file is the same as Candidate");
        const char *id = strstr(user, "Candidate ") + 10;
        char text[1024];
        snprintf(text, sizeof text,
                 "```edit %.12s\n<<<<<<< SEARCH\n// TIME 900\n=======\n// TIME 101\n>>>>>>> "
                 "REPLACE\n```",
                 id);
        return strdup(text);
    }
    FAIL("asked once too often: %s", user);
}

TEST(loop_tells_what_could_not_be_used) {
    world w = {.answer = clumsy};
    kg_loop_result r;
    kg_error err;
    CHECK_OK(run(&w, (kg_loop_options){.strategy = "refine", .patience = 9}, 1, &r, &err), err);
    CHECK_NEAR(winner_time(&r), 101, 0);
    CHECK_INT(w.asked, 5);
    kg_loop_result_free(&r);
    kg_buf_free(&w.prompts);
}

/* --- machine code on demand --- */

/* Passes, asks for what it came to, is shown that once, and passes again. */
static char *asks_for_code(world *w, int n, const char *user) {
    char text[64];
    (void)w;
    const char *at = strstr(user, "Machine code that was asked for");
    const char *id = strstr(user, "Candidate ");
    if (n == 1 || !id)
        return strdup(FILE_OF("// TIME 500"));
    if (n == 2) {
        CHECK(!at);
        snprintf(text, sizeof text, "```sass %.12s\n```\n", id + 10);
        return strdup(text);
    }
    if (n == 3) {
        CHECK_HAS(at, "jne of TIME 500");
        CHECK_HAS(user, "// TIME 500\n```\n"); /* the last attempt is still there to be mended */
        CHECK(!strstr(user, "could not be used"));
        return strdup(FILE_OF("// TIME 400"));
    }
    CHECK(!at);
    return strdup(FILE_OF("// TIME 104"));
}

TEST(loop_shows_machine_code_that_was_asked_for) {
    static const int turn[] = {KG_STAGE_ADVANCE, KG_STAGE_PROPOSE, KG_STAGE_EVALUATE};
    for (int stages = 0; stages < 2; stages++) {
        world w = {.answer = asks_for_code};
        kg_loop_result r = {0};
        kg_error err;
        kg_loop_options o = {.strategy = "refine"};
        kg_remove_tree(test_path("run"), NULL);
        if (!stages)
            CHECK_OK(run(&w, o, 1, &r, &err), err);
        for (int i = 0; stages && i < 4 * 3; i++) {
            kg_loop_result_free(&r);
            CHECK_OK(run_stage(turn[i % 3], &w, o, 1, &r, &err), err);
            CHECK_UINT(r.unjudged, i % 3 == 1 ? 1 : 0);
        }
        kg_loop_result_free(&r);
        CHECK_INT(w.asked, 4);
        CHECK_INT(w.listed, 1);
        kg_buf_free(&w.prompts);
    }
}

/* --- a profile of the best --- */

/* Better, worse, better: the best of each prompt has its profile, as the last attempt or beside it.
 */
static char *goes_up_and_down(world *w, int n, const char *user) {
    static const char *const files[] = {FILE_OF("// TIME 500"), FILE_OF("// TIME 600"),
                                        FILE_OF("// TIME 104")};
    const char *at = strstr(user, "- a profiler on ");
    CHECK_INT(w->profiled, n > 1 ? 1 : 0);
    CHECK((at != NULL) == (n > 1));
    CHECK(!at || !strstr(at + 1, "- a profiler on "));
    return strdup(files[n < 3 ? n - 1 : 2]);
}

TEST(loop_profiles_the_best_once) {
    world w = {.answer = goes_up_and_down};
    kg_loop_result r;
    kg_error err;
    CHECK_OK(run(&w, (kg_loop_options){.strategy = "refine"}, 1, &r, &err), err);
    CHECK_INT(w.asked, 3);
    CHECK_INT(w.profiled, 2);
    kg_loop_result_free(&r);
    kg_buf_free(&w.prompts);
    /* Another life has it from the journal. */
    w = (world){.answer = goes_up_and_down};
    CHECK_OK(run(&w, (kg_loop_options){.strategy = "refine"}, 1, &r, &err), err);
    CHECK_INT(w.profiled, 0);
    kg_loop_result_free(&r);
    kg_buf_free(&w.prompts);
}

/* --- stopping and going on --- */

/* Gets better by each answer; several lines. Depends on nothing but the prompt's own text. */
static char *improves(world *w, int n, const char *user) {
    char text[1024];
    size_t sum = 0;
    (void)w, (void)n;
    for (const char *p = user; *p; p++)
        sum = sum * 31 + (unsigned char)*p;
    snprintf(text, sizeof text, "```c\n%s// TIME %zu\n```\n",
             PLAN("\"tunables\":{\"A\":[0,1,2,3]},"), 400 + sum % 1000);
    return strdup(text);
}

static void run_in_lives(const char *strategy, int stop_at, size_t slots, double *time, int *asked,
                         int *lives) {
    kg_error err;
    int rc = KG_EINTR;
    *asked = 0;
    for (*lives = 0; rc == KG_EINTR && *lives < 400; ++*lives) {
        world w = {.answer = improves, .stop_at = stop_at};
        kg_loop_result r;
        kg_stop_set(false);
        kg_loop_options o = {.strategy = strategy, .patience = 2, .barren = 2, .ideas = 2};
        rc = run(&w, o, slots, &r, &err);
        if (rc && rc != KG_EINTR)
            FAIL("%s", err.msg);
        *asked += w.asked;
        if (!rc)
            *time = winner_time(&r);
        kg_loop_result_free(&r);
        kg_buf_free(&w.prompts);
    }
    CHECK_INT(rc, KG_OK);
}

TEST(loop_goes_on_where_it_was) {
    double whole = 0, parts = 0, again = 0;
    int asked = 0, in_parts = 0, none = 0, lives = 0;
    kg_error err;
    run_in_lives("refine", 0, 1, &whole, &asked, &lives);
    CHECK(asked > 4);
    run_in_lives("refine", 0, 1, &again, &none, &lives);
    CHECK_INT(none, 0); /* a Run that is over asks nothing */
    CHECK_NEAR(again, whole, 0);
    for (int stop_at = 1; stop_at < 4; stop_at++) {
        CHECK_OK(kg_remove_tree(test_path("run"), &err), err);
        run_in_lives("refine", stop_at, 1, &parts, &in_parts, &lives);
        CHECK(lives > 3);
        CHECK_INT(in_parts, asked); /* nothing is asked twice */
        CHECK_NEAR(parts, whole, 0);
    }
}

/* The stages in turn come to what the loop comes to. */
TEST(loop_in_stages) {
    static const char *const strategies[] = {"refine", "branch"};
    for (size_t i = 0; i < 2; i++) {
        double whole = 0;
        int asked = 0, lives = 0;
        kg_error err;
        kg_loop_options o = {.strategy = strategies[i], .patience = 2, .barren = 2, .ideas = 2};
        world w = {.answer = improves};
        kg_loop_result r = {0};
        CHECK_OK(kg_remove_tree(test_path("run"), &err), err);
        run_in_lives(strategies[i], 0, 1, &whole, &asked, &lives);
        CHECK_OK(kg_remove_tree(test_path("run"), &err), err);
        for (int round = 0; !r.over; round++) {
            CHECK(round < 100);
            kg_loop_result_free(&r);
            CHECK_OK(run_stage(KG_STAGE_ADVANCE, &w, o, 1, &r, &err), err);
            CHECK_UINT(r.open, r.over ? 0 : 1);
            kg_loop_result_free(&r);
            CHECK_OK(run_stage(KG_STAGE_PROPOSE, &w, o, 1, &r, &err), err);
            CHECK_UINT(r.open, 0);
            kg_loop_result_free(&r);
            CHECK_OK(run_stage(KG_STAGE_EVALUATE, &w, o, 1, &r, &err), err);
            CHECK_UINT(r.unjudged, 0);
        }
        kg_loop_result_free(&r);
        CHECK_OK(run_stage(KG_STAGE_FINISH, &w, o, 1, &r, &err), err);
        CHECK_INT(w.asked, asked);
        CHECK_NEAR(winner_time(&r), whole, 0);
        kg_loop_result_free(&r);
        kg_buf_free(&w.prompts);
    }
}

TEST(loop_finish_judges_what_came_last) {
    kg_error err;
    kg_loop_options o = {.strategy = "refine", .patience = 2, .barren = 2};
    world w = {.answer = improves};
    kg_loop_result r = {0};
    CHECK_OK(kg_remove_tree(test_path("run"), &err), err);
    static const kg_stage stages[] = {KG_STAGE_ADVANCE, KG_STAGE_PROPOSE, KG_STAGE_FINISH};
    for (size_t i = 0; i < 3; i++) {
        kg_loop_result_free(&r);
        CHECK_OK(run_stage(stages[i], &w, o, 1, &r, &err), err);
    }
    CHECK_UINT(r.answers, 1);
    CHECK_UINT(r.unjudged, 0);
    CHECK(winner_time(&r) > 0);
    kg_loop_result_free(&r);
    kg_buf_free(&w.prompts);
}

/* --- branch --- */

static char *branches(world *w, int n, const char *user) {
    (void)w;
    if (strstr(user, "Do not write code yet")) {
        if (n > 1) {
            CHECK_HAS(user, "- tile it\n  Result: pass, 0.30 us");
            CHECK_HAS(user, "- stream it\n  Result: wrong_values: [0] expected 42 got 0");
            return strdup("```ideas\n- guess again\n- guess once more\n```");
        }
        CHECK_HAS(user, "Give 2 different ideas");
        return strdup("```ideas\n- stream it\n- tile it\n- one too many\n```");
    }
    if (strstr(user, "> tile it"))
        return strdup(strstr(user, "// TIME") ? FILE_OF("// TIME 300") : FILE_OF("// TIME 320"));
    if (strstr(user, "> stream it")) {
        char text[1024];
        snprintf(text, sizeof text, "```c\n%sWRONG %d\n```\n", PLAN(""), n);
        return strdup(text);
    }
    if (strstr(user, "Mend or improve")) {
        CHECK_HAS(user, "expected 42 got 0");
        char text[1024];
        snprintf(text, sizeof text, "```c\n%sWRONG again %d\n```\n", PLAN(""), n);
        return strdup(text);
    }
    return strdup("no code");
}

static void check_branch(world *w) {
    kg_loop_result r;
    kg_error err;
    CHECK_OK(run(w, (kg_loop_options){.strategy = "branch", .ideas = 2, .per_idea = 2, .barren = 2},
                 3, &r, &err),
             err);
    CHECK_HAS(r.ended_by, "no better Candidate came of several rounds");
    CHECK_NEAR(winner_time(&r), 300, 0);
    CHECK(!strstr(w->prompts.data, "> one too many"));
    /* Round 1: ideas, 2 x 2 implementations, and one mending of each that failed. */
    CHECK_INT(w->asked > 7, 1);
    kg_loop_result_free(&r);
    kg_buf_free(&w->prompts);
}

TEST(loop_branch) {
    world w = {.answer = branches};
    check_branch(&w);
}

/* Verdicts come in another order then, and what is asked is the same. */
TEST(loop_branch_over_several_devices) {
    kg_error err;
    world one = {.answer = branches}, three = {.answer = branches, .lanes = 3};
    check_branch(&one);
    CHECK_OK(kg_remove_tree(test_path("run"), &err), err);
    check_branch(&three);
    CHECK_INT(three.asked, one.asked);
    CHECK(three.by_lane[0] > 0 && three.by_lane[1] > 0);
    CHECK_INT(three.by_lane[0] + three.by_lane[1] + three.by_lane[2], one.by_lane[0]);
}

TEST(loop_branch_goes_on_where_it_was) {
    double whole = 0, parts = 0;
    int asked = 0, in_parts = 0, lives = 0;
    kg_error err;
    run_in_lives("branch", 0, 1, &whole, &asked, &lives);
    CHECK_OK(kg_remove_tree(test_path("run"), &err), err);
    run_in_lives("branch", 1, 1, &parts, &in_parts, &lives);
    CHECK_INT(in_parts, asked);
    CHECK_NEAR(parts, whole, 0);
}

/* --- bad input --- */

/* The same code from the whole loop and from its stage. */
TEST(loop_that_cannot_reach_anybody) {
    kg_loop_result r;
    kg_error err;
    world w = {.fatal = true, .unreachable = true};
    CHECK_ERR(run(&w, (kg_loop_options){.strategy = "refine"}, 1, &r, &err), err, KG_EENV,
              "no way there");
    kg_loop_result_free(&r);
    w.fatal = true;
    CHECK_ERR(run_stage(KG_STAGE_PROPOSE, &w, (kg_loop_options){.strategy = "refine"}, 1, &r, &err),
              err, KG_EENV, "no way there");
    kg_loop_result_free(&r);
    kg_buf_free(&w.prompts);
}

TEST(loop_without_anybody_to_ask) {
    world w = {.fatal = true};
    kg_loop_result r;
    kg_error err;
    CHECK_ERR(run(&w, (kg_loop_options){.strategy = "refine"}, 1, &r, &err), err, KG_EINVAL,
              "no such key");
    kg_loop_result_free(&r);
    CHECK_ERR(run(&w, (kg_loop_options){.strategy = "guess"}, 1, &r, &err), err, KG_EINVAL,
              "strategy guess: there are refine and branch");
    kg_buf_free(&w.prompts);
}

TEST(loop_refuses_a_journal_that_does_not_hang_together) {
    static const char *const fields[] = {
        "{\"op\":\"twice\",\"id\":\"twice-0001\",\"prompt_kind\":\"refine\",\"line\":0,\"turn\":1,"
        "\"parent\":\"nobody.c\",\"idea\":-1,\"user\":\"x\"}",
        "{\"op\":\"twice\",\"id\":\"twice-0001\",\"prompt_kind\":\"refine\",\"line\":64,\"idea\":-"
        "1}",
        "{\"op\":\"twice\",\"id\":\"twice-0001\",\"prompt_kind\":\"implement\",\"line\":0,\"idea\":"
        "0}",
        "{\"op\":\"twice\",\"id\":\"twice-0001\",\"prompt_kind\":\"what\",\"line\":0,\"idea\":-1}",
        "{\"op\":\"twice\",\"prompt\":\"twice-0001\",\"name\":\"x\",\"text\":\"\"}",
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        world w = {.answer = never_learns};
        kg_loop_result r;
        kg_error err;
        kg_json *e = NULL;
        CHECK_OK(kg_remove_tree(test_path("run"), &err), err);
        CHECK_OK(kg_journal_open(test_path("run"), &w.journal, &err), err);
        CHECK_OK(kg_json_parse(fields[i], strlen(fields[i]), "entry", &e, &err), err);
        CHECK_OK(kg_journal_add(w.journal, i < 4 ? "prompt" : "answer", e, &err), err);
        kg_journal_close(w.journal);
        CHECK_ERR(run(&w, (kg_loop_options){.strategy = "refine"}, 1, &r, &err), err, KG_ECORRUPT,
                  "twice-0001");
        CHECK_INT(w.asked, 0);
        kg_loop_result_free(&r);
        kg_buf_free(&w.prompts);
    }
}

static char *second_is_right(world *w, int n, const char *user) {
    (void)w, (void)user;
    return strdup(n == 1 ? "no code" : FILE_OF("// TIME 104"));
}

/* An answer that an older kgen could make nothing of may hold what a later one was judged for: the
 * verdict is known, and nothing is judged again, nor looked for without end. */
TEST(loop_reads_an_answer_better_than_before) {
    world w = {.answer = second_is_right}, again = {.answer = never_learns};
    kg_journal *old = NULL, *made = NULL;
    kg_loop_result r;
    kg_error err;
    CHECK_OK(run(&w, (kg_loop_options){.strategy = "refine"}, 1, &r, &err), err);
    CHECK_NEAR(winner_time(&r), 104, 0);
    kg_loop_result_free(&r);
    CHECK_OK(kg_journal_open(test_path("run"), &old, &err), err);
    CHECK_OK(kg_journal_open(test_path("other"), &made, &err), err);
    for (size_t i = 0; i < kg_journal_size(old); i++) {
        kg_json *e = kg_json_copy(kg_journal_at(old, i));
        const char *kind = "", *text = "";
        kg_json_str(kg_json_get(e, "kind"), "kind", &kind, NULL);
        kg_json_str(kg_json_get(e, "text"), "text", &text, NULL);
        if (!strcmp(kind, "answer") && !strcmp(text, "no code"))
            kg_json_set_str(e, "text", FILE_OF("// TIME 104"));
        char name[32];
        snprintf(name, sizeof name, "%s", kind);
        CHECK_OK(kg_journal_add(made, name, e, &err), err);
    }
    kg_journal_close(old);
    kg_journal_close(made);
    CHECK_OK(kg_remove_tree(test_path("run"), &err), err);
    CHECK_INT(rename(test_path("other"), test_path("run")), 0);
    CHECK_OK(run(&again, (kg_loop_options){.strategy = "refine"}, 1, &r, &err), err);
    CHECK_NEAR(winner_time(&r), 104, 0);
    CHECK_INT(again.by_lane[0], 0);
    kg_loop_result_free(&r);
    kg_buf_free(&w.prompts);
    kg_buf_free(&again.prompts);
}

TEST(loop_budget_of_time_counts_all_lives) {
    kg_error err;
    kg_journal *j = NULL;
    double spent = 0;
    CHECK_OK(kg_journal_open(test_path("run"), &j, &err), err);
    for (int i = 0; i < 3; i++) {
        kg_json *e = kg_json_new_object();
        kg_json_set_str(e, "op", i == 1 ? "other" : "twice");
        kg_json_set_double(e, "spent_s", i == 1 ? 900 : 3.5 * i);
        CHECK_OK(kg_journal_add(j, "prompt", e, &err), err);
    }
    int64_t before = kg_loop_deadline(j, "nobody", 10000, NULL),
            after = kg_loop_deadline(j, "twice", 10000, &spent);
    CHECK_NEAR(spent, 7, 0);
    CHECK_NEAR((double)(before - after) * 1e-9, 7, 0.5);
    CHECK_INT(kg_loop_tail_ns(10000), 1000000000);
    CHECK_INT(kg_loop_tail_ns(3600000), 60000000000);
    kg_journal_close(j);
}

TEST(journal_spending_counts_what_never_came_back) {
    static const struct {
        const char *kind, *fields;
    } rows[] = {
        {"send", "{\"op\":\"a\",\"prompt\":\"p1\",\"attempt\":1,\"reserved\":{\"calls\":1,"
                 "\"tokens\":1000}}"},
        {"failed",
         "{\"op\":\"a\",\"prompt\":\"p1\",\"attempt\":1,\"charged\":{\"calls\":1,\"tokens\":7}}"},
        {"send", "{\"op\":\"a\",\"prompt\":\"p1\",\"attempt\":2,\"reserved\":{\"calls\":1,"
                 "\"tokens\":1000}}"},
        {"send", "{\"op\":\"a\",\"prompt\":\"p2\",\"attempt\":1,\"reserved\":{\"calls\":1,"
                 "\"tokens\":500}}"},
        {"send",
         "{\"op\":\"b\",\"prompt\":\"p3\",\"attempt\":1,\"reserved\":{\"calls\":1,\"tokens\":9}}"},
        {"answer",
         "{\"op\":\"a\",\"prompt\":\"p1\",\"attempt\":2,\"charged\":{\"calls\":1,\"tokens\":30}}"},
        {"failed",
         "{\"op\":\"a\",\"prompt\":\"p1\",\"attempt\":0,\"charged\":{\"calls\":0,\"tokens\":0}}"},
    };
    kg_error err;
    kg_journal *j = NULL;
    CHECK_OK(kg_journal_open(test_path("run"), &j, &err), err);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kg_json *e = NULL;
        CHECK_OK(kg_json_parse(rows[i].fields, strlen(rows[i].fields), "e", &e, &err), err);
        CHECK_OK(kg_journal_add(j, rows[i].kind, e, &err), err);
    }
    kg_spend s = kg_journal_spent(j, "a");
    CHECK_INT(s.calls, 3);
    CHECK_INT(s.tokens, 7 + 30 + 500); /* p2 never came back */
    kg_journal_close(j);
}
