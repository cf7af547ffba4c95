/* The C API of a search: options in as JSON, the result out as JSON, and the winners' sources in
 * the Run. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/stop.h"
#include "kgen_tune.h"
#include "tune/api_loop.h"
#include "tune/search_judge.h"

typedef struct options {
    kg_search_options search;
    const char *kernels;  /* folder of the templates; NULL: none of them */
    const kg_json *files; /* paths of further sources */
    const kg_json *loop;  /* whom to ask; NULL: nobody */
} options;

static int read_options(const kg_json *json, options *out, kg_error *err) {
    static const char *const keys[] = {"budget_ms", "max_candidates", "jobs", "kernels",
                                       "files",     "loop",           NULL};
    int64_t budget = 0, most = 0, jobs = 0;
    int rc = kg_json_only(json, "search options", keys, err);
    if (!rc)
        rc = kg_json_int(kg_json_get(json, "budget_ms"), "budget_ms", &budget, err);
    if (!rc && kg_json_get(json, "max_candidates"))
        rc = kg_json_int(kg_json_get(json, "max_candidates"), "max_candidates", &most, err);
    if (!rc && kg_json_get(json, "jobs"))
        rc = kg_json_int(kg_json_get(json, "jobs"), "jobs", &jobs, err);
    if (!rc && kg_json_get(json, "kernels"))
        rc = kg_json_str(kg_json_get(json, "kernels"), "kernels", &out->kernels, err);
    if (!rc && (budget < 0 || most < 0 || jobs < 0 || jobs > 1024))
        rc = kg_fail(err, KG_EINVAL,
                     "search options: budget_ms, max_candidates and jobs are at least 0");
    out->files = kg_json_get(json, "files");
    out->loop = kg_json_get(json, "loop");
    out->search.budget_ms = budget;
    out->search.max_candidates = (size_t)most;
    out->search.compile_jobs = (int)jobs;
    return rc;
}

static int gather(const options *o, const kg_judge *judge, kg_sources *out, kg_error *err) {
    const kg_op *op = kg_judge_op(judge);
    int rc = KG_OK;
    if (o->kernels)
        rc = kg_propose_builtin(o->kernels, op, kg_judge_target(judge), kg_judge_constants(judge),
                                out, err);
    for (size_t i = 0; !rc && i < kg_json_size(o->files); i++) {
        const char *path;
        rc = kg_json_str(kg_json_at(o->files, i), "files", &path, err);
        if (rc)
            break;
        const char *slash = strrchr(path, '/');
        rc = kg_sources_add_file(out, path, slash ? slash + 1 : path, op, err);
    }
    return rc;
}

/* The source goes to <run>/candidates/<id>.c; *file is its path. */
static int keep_source(const char *run_dir, const kg_source *source, const char *id, char **file,
                       kg_error *err) {
    char name[80];
    char *dir = kg_path_join(run_dir, "candidates");
    snprintf(name, sizeof name, "%s%s", id, source->plan->target == KG_CUDA ? ".cu" : ".c");
    char *path = dir ? kg_path_join(dir, name) : NULL;
    int rc = path ? kg_mkdirs(dir, err) : kg_fail(err, KG_ENOMEM, "path of a Candidate");
    if (!rc && !kg_is_file(path))
        rc = kg_write_atomic(path, source->text, source->n, err);
    free(dir);
    if (rc)
        free(path);
    else
        *file = path;
    return rc;
}

static int add_winner(kg_json *list, const char *run_dir, const kg_sources *sources,
                      const kg_winner *w, size_t at, kg_error *err) {
    char *file = NULL;
    if (w->source < 0)
        return KG_OK;
    const kg_source *source = &sources->items[w->source];
    int rc = keep_source(run_dir, source, w->id, &file, err);
    if (rc)
        return rc;
    kg_json *o = kg_json_new_object();
    kg_json_set_int(o, "case", (int64_t)at);
    kg_json_set_str(o, "id", w->id);
    kg_json_set_str(o, "source", source->name);
    kg_json_set_str(o, "file", file);
    kg_json_set(o, "tunables", kg_tuning_to_json(source->plan, &w->tuning));
    kg_json_set_double(o, "time_ns", w->time_ns);
    kg_json_set(o, "record", kg_json_copy(w->record));
    free(file);
    return kg_json_push(list, o) ? KG_OK : kg_fail(err, KG_ENOMEM, "result of a search");
}

static kg_json *verdict_counts(const kg_search_result *r) {
    kg_json *o = kg_json_new_object();
    for (int v = 0; v < KG_VERDICT_COUNT; v++)
        if (r->verdicts[v])
            kg_json_set_int(o, kg_verdict_name(v), (int64_t)r->verdicts[v]);
    return o;
}

static int result_json(const char *run_dir, const kg_sources *sources, const kg_search_result *r,
                       bool stopped, kg_json **out, kg_error *err) {
    kg_json *o = kg_json_new_object(), *names = kg_json_new_array(), *winners = kg_json_new_array();
    int rc = KG_OK;
    for (size_t i = 0; i < sources->n; i++)
        kg_json_push_str(names, sources->items[i].name);
    for (size_t k = 0; !rc && k < r->ncases; k++)
        rc = add_winner(winners, run_dir, sources, &r->winners[k], k, err);
    kg_json_set(o, "sources", names);
    kg_json_set(o, "winners", winners);
    kg_json_set(o, "verdicts", verdict_counts(r));
    kg_json_set_int(o, "judged", (int64_t)r->judged);
    kg_json_set_int(o, "resumed", (int64_t)r->resumed);
    kg_json_set_int(o, "dropped", (int64_t)r->dropped);
    kg_json_set_bool(o, "out_of_time", r->out_of_time);
    kg_json_set_double(o, "spent_s", r->spent_s);
    if (!kg_json_set_bool(o, "stopped", stopped) && !rc)
        rc = kg_fail(err, KG_ENOMEM, "result of a search");
    if (rc)
        kg_json_free(o);
    else
        *out = o;
    return rc;
}

static int search_loop(kg_judges *judges, const char *run_dir, const options *o,
                       kg_journal *journal, kg_json **out, kg_error *err) {
    kg_loop_result r;
    kg_spend spent = {0};
    int rc = kg_api_loop(judges, run_dir, o->loop, &o->search, journal, &r, &spent, err);
    bool stopped = rc == KG_EINTR;
    if (!rc || stopped)
        rc = result_json(run_dir, &r.finalists, &r.search, stopped, out, err);
    if (!rc)
        kg_json_set(*out, "asked", kg_api_asked(&r, &spent));
    kg_loop_result_free(&r);
    return rc;
}

static int search_known(kg_judges *judges, const char *run_dir, const options *o,
                        kg_journal *journal, kg_json **out, kg_error *err) {
    kg_sources sources = {0};
    kg_search_result result = {0};
    kg_evaluator evaluator;
    int rc = kg_judges_evaluator(judges, &evaluator, err);
    const kg_judge *judge = rc ? NULL : judges->items[0];
    if (!rc)
        rc = gather(o, judge, &sources, err);
    if (!rc)
        rc = kg_search(kg_judge_op(judge)->name, &sources, &evaluator, journal, &o->search, &result,
                       err);
    bool stopped = rc == KG_EINTR;
    if (!rc || stopped)
        rc = result_json(run_dir, &sources, &result, stopped, out, err);
    kg_search_result_free(&result);
    kg_sources_free(&sources);
    return rc;
}

static int search(kg_judges *judges, const char *run_dir, const options *o, kg_json **out,
                  kg_error *err) {
    kg_journal *journal = NULL;
    int rc = kg_journal_open(run_dir, &journal, err);
    if (!rc)
        rc = o->loop ? search_loop(judges, run_dir, o, journal, out, err)
                     : search_known(judges, run_dir, o, journal, out, err);
    kg_journal_close(journal);
    return rc;
}

int kgen_search(struct kg_judge *judge, const char *run_dir, const char *options_json,
                kgen_progress progress, void *ctx, char **json, char *err, size_t nerr) {
    return kgen_search_over(&judge, 1, run_dir, options_json, progress, ctx, json, err, nerr);
}

int kgen_search_over(struct kg_judge *const *judges, size_t njudges, const char *run_dir,
                     const char *options_json, kgen_progress progress, void *ctx, char **json,
                     char *err, size_t nerr) {
    kg_judges all = {.items = judges, .n = njudges};
    kg_error e = {0};
    kg_json *given = NULL, *result = NULL;
    options o = {0};
    int rc = kg_json_parse(options_json, strlen(options_json), "search options", &given, &e);
    if (!rc)
        rc = read_options(given, &o, &e);
    o.search.progress = progress;
    o.search.progress_ctx = ctx;
    if (!rc)
        rc = search(&all, run_dir, &o, &result, &e);
    rc = kg_json_give(rc, result, json, &e);
    kg_json_free(given);
    return kg_give(rc, &e, err, nerr);
}

int kgen_journal_add(const char *run_dir, const char *kind, const char *fields_json, char *err,
                     size_t nerr) {
    kg_error e = {0};
    kg_journal *journal = NULL;
    kg_json *fields = NULL;
    int rc = kg_json_parse(fields_json, strlen(fields_json), "journal entry", &fields, &e);
    if (!rc)
        rc = kg_journal_open(run_dir, &journal, &e);
    if (!rc)
        rc = kg_journal_add(journal, kind, fields, &e);
    else
        kg_json_free(fields);
    kg_journal_close(journal);
    return kg_give(rc, &e, err, nerr);
}

int kgen_journal_sum(const char *line, size_t n, char sum[17], char *err, size_t nerr) {
    kg_error e = {0};
    kg_json *entry = NULL;
    int rc = kg_json_parse(line, n, "journal entry", &entry, &e);
    if (!rc)
        rc = kg_journal_sum(entry, sum, &e);
    kg_json_free(entry);
    return kg_give(rc, &e, err, nerr);
}

void kgen_stop(int stop) {
    kg_stop_set(stop != 0);
}
