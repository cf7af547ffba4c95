/* The loop's options out of JSON. Nothing of the model's own options (headers, proxies, the name of
 * the key's variable) goes into the journal. */
#include "tune/api_loop.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "kgen_tune.h"
#include "tune/answer.h"
#include "tune/llm_json.h"
#include "tune/search_judge.h"

#define DEFAULT_SLOTS 4
#define MAX_AGENT_MD ((size_t)64 << 10)

typedef struct loop_json {
    const char *proposer, *strategy, *prompts, *task;
    const char *machine, *notes, *knowledge; /* or NULL */
    int target;                              /* kg_device */
    int stage;                               /* kg_stage, or -1: all of them */
    const kg_json *llm;
    kg_prompt_case cases[KG_MAX_CASES];
    size_t ncases;
    int64_t slots, ideas, per_idea, patience, barren, max_prompt_tokens;
    double target_share;
} loop_json;

static int get_text(const kg_json *o, const char *key, bool needed, const char **out,
                    kg_error *err) {
    const kg_json *v = kg_json_get(o, key);
    if (!needed && (!v || kg_json_is_null(v)))
        return KG_OK;
    return kg_json_str(v, key, out, err);
}

static int get_count(const kg_json *o, const char *key, int64_t most, int64_t *out, kg_error *err) {
    const kg_json *v = kg_json_get(o, key);
    if (!v || kg_json_is_null(v))
        return KG_OK;
    int rc = kg_json_int(v, key, out, err);
    if (!rc && (*out < 0 || *out > most))
        rc = kg_fail(err, KG_EINVAL, "%s is %lld; give 0 to %lld", key, (long long)*out,
                     (long long)most);
    return rc;
}

static int read_cases(const kg_json *list, loop_json *out, kg_error *err) {
    static const char *const keys[] = {"floor_ns", "bytes", "flops", "torch_ns", NULL};
    int rc = KG_OK;
    out->ncases = kg_json_size(list);
    if (out->ncases > KG_MAX_CASES)
        return kg_fail(err, KG_EINVAL, "%zu Cases; %d at most", out->ncases, KG_MAX_CASES);
    for (size_t i = 0; !rc && i < out->ncases; i++) {
        const kg_json *c = kg_json_at(list, i);
        kg_prompt_case *to = &out->cases[i];
        rc = kg_json_only(c, "cases", keys, err);
        if (!rc)
            rc = kg_json_double(kg_json_get(c, "floor_ns"), "floor_ns", &to->floor_ns, err);
        if (!rc)
            rc = kg_json_double(kg_json_get(c, "bytes"), "bytes", &to->bytes, err);
        if (!rc)
            rc = kg_json_double(kg_json_get(c, "flops"), "flops", &to->flops, err);
        if (!rc && kg_json_get(c, "torch_ns"))
            rc = kg_json_double(kg_json_get(c, "torch_ns"), "torch_ns", &to->torch_ns, err);
    }
    return rc;
}

static int read_stage(const char *name, int *stage, kg_error *err) {
    static const char *const names[] = {"advance", "propose", "evaluate", "finish"};
    *stage = -1;
    for (int i = 0; name && i < 4; i++)
        if (!strcmp(name, names[i]))
            *stage = i;
    if (!name || *stage >= 0)
        return KG_OK;
    return kg_fail(err, KG_EINVAL, "stage %.60s: there are advance, propose, evaluate and finish",
                   name);
}

static int read_loop(const kg_json *json, loop_json *out, kg_error *err) {
    static const char *const keys[] = {"proposer",
                                       "strategy",
                                       "prompts",
                                       "task",
                                       "machine",
                                       "notes",
                                       "knowledge",
                                       "llm",
                                       "cases",
                                       "slots",
                                       "ideas",
                                       "per_idea",
                                       "patience",
                                       "barren",
                                       "target_share",
                                       "max_prompt_tokens",
                                       "target",
                                       "stage",
                                       NULL};
    const char *target = "cpu", *stage = NULL;
    *out = (loop_json){.llm = kg_json_get(json, "llm")};
    int rc = kg_json_only(json, "loop", keys, err);
    const struct {
        const char *key;
        bool needed;
        const char **to;
    } texts[] = {{"proposer", true, &out->proposer},
                 {"strategy", true, &out->strategy},
                 {"prompts", true, &out->prompts},
                 {"task", true, &out->task},
                 {"machine", false, &out->machine},
                 {"notes", false, &out->notes},
                 {"knowledge", false, &out->knowledge},
                 {"target", false, &target},
                 {"stage", false, &stage}};
    const struct {
        const char *key;
        int64_t most, *to;
    } counts[] = {{"slots", KG_LLM_MAX_IN_FLIGHT, &out->slots},
                  {"ideas", KG_ANSWER_IDEAS, &out->ideas},
                  {"per_idea", 16, &out->per_idea},
                  {"patience", 1000, &out->patience},
                  {"barren", 1000, &out->barren},
                  {"max_prompt_tokens", 10000000, &out->max_prompt_tokens}};
    for (size_t i = 0; !rc && i < sizeof texts / sizeof *texts; i++)
        rc = get_text(json, texts[i].key, texts[i].needed, texts[i].to, err);
    for (size_t i = 0; !rc && i < sizeof counts / sizeof *counts; i++)
        rc = get_count(json, counts[i].key, counts[i].most, counts[i].to, err);
    if (!rc && kg_json_get(json, "target_share"))
        rc = kg_json_double(kg_json_get(json, "target_share"), "target_share", &out->target_share,
                            err);
    if (!rc && !(out->target_share >= 0 && out->target_share <= 1))
        rc = kg_fail(err, KG_EINVAL, "target_share is %g; give 0 (the default) to 1",
                     out->target_share);
    out->target = strcmp(target, "cuda") == 0 ? KG_CUDA : KG_CPU;
    if (!rc && out->target == KG_CPU && strcmp(target, "cpu") != 0)
        rc = kg_fail(err, KG_EINVAL, "target %.60s: there are cpu and cuda", target);
    if (!rc)
        rc = read_stage(stage, &out->stage, err);
    return rc ? rc : read_cases(kg_json_get(json, "cases"), out, err);
}

static int open_prompt(const loop_json *j, const kg_op *op, kg_prompt **out, kg_error *err) {
    kg_prompt_task t = {.prompts_dir = j->prompts,
                        .task_dir = j->task,
                        .op = op,
                        .target = j->target,
                        .machine = j->machine,
                        .notes = j->notes,
                        .knowledge = j->knowledge,
                        .cases = j->ncases ? j->cases : NULL,
                        .ncases = j->ncases,
                        .max_tokens = (size_t)j->max_prompt_tokens};
    return kg_prompt_open(&t, out, err);
}

static kg_loop_options options_of(const loop_json *j, const kg_search_options *o,
                                  const char *about) {
    return (kg_loop_options){.strategy = j->strategy,
                             .budget_ms = o->budget_ms,
                             .compile_jobs = o->compile_jobs,
                             .max_candidates = o->max_candidates,
                             .ideas = (int)j->ideas,
                             .per_idea = (int)j->per_idea,
                             .patience = (int)j->patience,
                             .barren = (int)j->barren,
                             .target_share = j->target_share,
                             .about = about,
                             .progress = o->progress,
                             .progress_ctx = o->progress_ctx};
}

/* --- the proposer --- */

static int open_files(const loop_json *j, const char *op, const char *run_dir, kg_journal *journal,
                      kg_proposer *out, kg_error *err) {
    kg_buf text;
    char *path = kg_path_join(j->prompts, "agent.md");
    kg_buf_init(&text, 0);
    int rc = path ? kg_read_file(path, MAX_AGENT_MD, &text, err)
                  : kg_fail(err, KG_ENOMEM, "path of agent.md");
    if (!rc)
        rc = kg_propose_files(op, run_dir, text.data ? text.data : "",
                              j->slots ? (size_t)j->slots : DEFAULT_SLOTS, j->stage < 0, journal,
                              out, err);
    kg_buf_free(&text);
    free(path);
    return rc;
}

static int open_proposer(const loop_json *j, const char *op, const char *run_dir,
                         const kg_search_options *o, kg_journal *journal, kg_llm_options *llm,
                         kg_proposer *out, kg_error *err) {
    if (!strcmp(j->proposer, "files"))
        return open_files(j, op, run_dir, journal, out, err);
    if (strcmp(j->proposer, "llm") != 0)
        return kg_fail(err, KG_EINVAL, "proposer %.60s: there are builtin, llm and files",
                       j->proposer);
    int rc = kg_llm_options_read(j->llm, llm, err);
    if (rc)
        return rc;
    int64_t end = kg_loop_deadline(journal, op, o->budget_ms, NULL) - kg_loop_tail_ns(o->budget_ms);
    return kg_propose_llm(op, llm, journal, end, out, err);
}

/* What the journal says of this life: who is asked, and all that a prompt is made of but the
 * Task. */
static int write_about(const loop_json *j, const kg_json *json, const kg_llm_options *llm,
                       kg_buf *out, kg_error *err) {
    kg_json *o = kg_json_new_object(), *options = kg_json_new_object();
    for (size_t i = 0; i < kg_json_size(json); i++) {
        const kg_json *m = kg_json_at(json, i);
        if (strcmp(kg_json_key(m), "llm") != 0)
            kg_json_set(options, kg_json_key(m), kg_json_copy(m));
    }
    kg_json_set_str(o, "proposer", j->proposer);
    kg_json_set_str(o, "host", llm->host);
    kg_json_set_str(o, "model", llm->model);
    kg_json_set(o, "options", options);
    kg_json_canonical(o, out);
    kg_json_free(o);
    return kg_buf_check(out, "a loop's options", err);
}

/* The whole loop, or the one stage of it that was asked for. */
static int run_loop(const loop_json *j, const kg_op *op, const kg_prompt *prompt, size_t ncases,
                    kg_proposer *proposer, const kg_evaluator *evaluator, kg_journal *journal,
                    const kg_loop_options *options, kg_loop_result *out, kg_error *err) {
    const kg_prompt_case *known = j->ncases ? j->cases : NULL;
    if (j->stage < 0)
        return kg_loop(op->name, op, prompt, known, proposer, evaluator, journal, options, out,
                       err);
    return kg_loop_stage((kg_stage)j->stage, op->name, op, prompt, known, ncases,
                         j->slots ? (size_t)j->slots : DEFAULT_SLOTS, proposer, evaluator, journal,
                         options, out, err);
}

int kg_api_loop(kg_judges *judges, const char *run_dir, const kg_json *json,
                const kg_search_options *o, kg_journal *journal, kg_loop_result *out,
                kg_spend *spent, kg_error *err) {
    loop_json j;
    kg_prompt *prompt = NULL;
    kg_llm_options llm = {0};
    kg_proposer proposer = {0};
    kg_evaluator evaluator;
    kg_buf about;
    *out = (kg_loop_result){0};
    int rc = kg_judges_evaluator(judges, &evaluator, err);
    if (rc)
        return rc;
    const kg_op *op = kg_judge_op(judges->items[0]);
    kg_buf_init(&about, 0);
    rc = read_loop(json, &j, err);
    if (!rc && j.ncases && j.ncases != evaluator.ncases)
        rc = kg_fail(err, KG_EINVAL, "loop: cases has %zu entries for %zu Cases", j.ncases,
                     evaluator.ncases);
    if (!rc)
        rc = open_prompt(&j, op, &prompt, err);
    if (!rc && j.stage < 0)
        rc = open_proposer(&j, op->name, run_dir, o, journal, &llm, &proposer, err);
    if (!rc && j.stage >= KG_STAGE_EVALUATE && strcmp(j.proposer, "llm") != 0)
        rc = kg_propose_nothing(run_dir, &proposer, err);
    if (!rc)
        rc = write_about(&j, json, &llm, &about, err);
    if (!rc) {
        kg_loop_options options = options_of(&j, o, about.data);
        rc = run_loop(&j, op, prompt, evaluator.ncases, &proposer, &evaluator, journal, &options,
                      out, err);
    }
    if (proposer.close)
        proposer.close(proposer.ctx);
    *spent = kg_journal_spent(journal, op->name);
    kg_llm_options_free(&llm);
    kg_prompt_close(prompt);
    kg_buf_free(&about);
    return rc;
}

kg_json *kg_api_asked(const kg_loop_result *r, const kg_spend *spent) {
    kg_json *o = kg_json_new_object();
    kg_json_set_int(o, "prompts", (int64_t)r->prompts);
    kg_json_set_int(o, "answers", (int64_t)r->answers);
    kg_json_set_int(o, "failed", (int64_t)r->failed);
    kg_json_set_int(o, "candidates", (int64_t)r->candidates);
    kg_json_set_int(o, "open", (int64_t)r->open);
    kg_json_set_int(o, "unjudged", (int64_t)r->unjudged);
    kg_json_set_bool(o, "over", r->over);
    kg_json_set(o, "clock", kg_loop_clock_json(&r->clock));
    kg_json_set(o, "spent", kg_spend_json(spent));
    kg_json_set_str(o, "ended_by", r->ended_by);
    return o;
}

/* --- stages without a judge --- */

static int stage(const char *op_json, const char *run_dir, const kg_json *json,
                 const kg_search_options *o, kg_json **result, kg_error *err) {
    kg_op *op = NULL;
    loop_json j;
    kg_prompt *prompt = NULL;
    kg_journal *journal = NULL;
    kg_llm_options llm = {0};
    kg_proposer proposer = {0};
    kg_loop_result out = {0};
    int rc = kg_op_from_json(op_json, strlen(op_json), "op.json", &op, err);
    if (!rc)
        rc = read_loop(json, &j, err);
    if (!rc && j.stage != KG_STAGE_ADVANCE && j.stage != KG_STAGE_PROPOSE)
        rc = kg_fail(err, KG_EINVAL, "without a judge there are the stages advance and propose");
    if (!rc)
        rc = open_prompt(&j, op, &prompt, err);
    if (!rc)
        rc = kg_journal_open(run_dir, &journal, err);
    if (!rc && j.stage == KG_STAGE_PROPOSE)
        rc = open_proposer(&j, op->name, run_dir, o, journal, &llm, &proposer, err);
    if (!rc) {
        kg_loop_options options = options_of(&j, o, NULL);
        rc = run_loop(&j, op, prompt, j.ncases, &proposer, NULL, journal, &options, &out, err);
    }
    if (proposer.close)
        proposer.close(proposer.ctx);
    if (!rc) {
        kg_spend spent = kg_journal_spent(journal, op->name);
        *result = kg_api_asked(&out, &spent);
    }
    kg_loop_result_free(&out);
    kg_journal_close(journal);
    kg_llm_options_free(&llm);
    kg_prompt_close(prompt);
    kg_op_free(op);
    return rc;
}

int kgen_loop_stage(const char *op_json, const char *run_dir, const char *loop, int64_t budget_ms,
                    kgen_progress progress, void *ctx, char **json, char *err, size_t nerr) {
    kg_error e = {0};
    kg_json *given = NULL, *result = NULL;
    kg_search_options o = {.budget_ms = budget_ms, .progress = progress, .progress_ctx = ctx};
    int rc = kg_json_parse(loop, strlen(loop), "loop", &given, &e);
    if (!rc)
        rc = stage(op_json, run_dir, given, &o, &result, &e);
    rc = kg_json_give(rc, result, json, &e);
    kg_json_free(given);
    return kg_give(rc, &e, err, nerr);
}

/* --- what would be asked --- */

static int preview(const char *op_json, const char *run_dir, const kg_json *json, kg_buf *out,
                   kg_error *err) {
    kg_op *op = NULL;
    loop_json j;
    kg_prompt *prompt = NULL;
    kg_journal *journal = NULL;
    kg_search_options o = {.budget_ms = 1};
    int rc = kg_op_from_json(op_json, strlen(op_json), "op.json", &op, err);
    if (!rc)
        rc = read_loop(json, &j, err);
    if (!rc)
        rc = open_prompt(&j, op, &prompt, err);
    if (!rc)
        rc = kg_journal_peek(run_dir, &journal, err);
    if (!rc) {
        kg_loop_options options = options_of(&j, &o, NULL);
        rc = kg_loop_preview(op->name, op, prompt, j.ncases ? j.cases : NULL, j.ncases, journal,
                             &options, out, err);
    }
    kg_journal_close(journal);
    kg_prompt_close(prompt);
    kg_op_free(op);
    return rc;
}

int kgen_prompt(const char *op_json, const char *run_dir, const char *loop_json_text, char **text,
                char *err, size_t nerr) {
    kg_error e = {0};
    kg_json *json = NULL;
    kg_buf out;
    kg_buf_init(&out, 0);
    int rc = kg_json_parse(loop_json_text, strlen(loop_json_text), "loop", &json, &e);
    if (!rc)
        rc = preview(op_json, run_dir, json, &out, &e);
    if (!rc && !(*text = kg_buf_take(&out)))
        rc = kg_fail(&e, KG_ENOMEM, "a prompt");
    kg_buf_free(&out);
    kg_json_free(json);
    return kg_give(rc, &e, err, nerr);
}
