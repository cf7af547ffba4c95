/* The engine: asks as long as there is room, judges what came while more is under way, settles, and
 * asks again. It holds no state of its own but the clock and why it ends. */
#include "tune/loop.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/stop.h"
#include "sys/proc.h"
#include "tune/loop_internal.h"

/* Of the budget, for the numbers of the best. */
#define TAIL_SHARE 0.1
#define MOST_TAIL_NS INT64_C(60000000000)
#define WAIT_MS 200
/* Questions in a row without an answer: the endpoint is gone. */
#define MOST_FAILURES 5
#define BARREN_REFINE 6
#define BARREN_BRANCH 3
#define TARGET_SHARE 0.95
/* A floor that a Candidate beats by more than this was measured while the machine was busy. */
#define BELIEVED 0.9
/* Tuned between rounds: few, as there will be better ones. */
#define PAUSE_SOURCES 2
#define PAUSE_CANDIDATES 12
#define FINALISTS 6
/* Of the budget, for a profiler. */
#define PROFILE_SHARE 0.1

typedef struct engine {
    kg_loop_state l;
    kg_proposer *proposer;
    const kg_evaluator *evaluator;
    kg_loop_result *out;
    int64_t ask_until_ns;
    bool broke, fatal, unreachable, over;
    bool left; /* nobody answers any more */
    int64_t profile_ns;
    bool more; /* Candidates wait for the judge */
} engine;

int64_t kg_loop_tail_ns(int64_t budget_ms) {
    int64_t share = (int64_t)((double)budget_ms * 1e6 * TAIL_SHARE);
    return share < MOST_TAIL_NS ? share : MOST_TAIL_NS;
}

int64_t kg_loop_deadline(const kg_journal *journal, const char *op, int64_t budget_ms,
                         double *spent_s) {
    double most = 0, x;
    const char *of;
    const size_t n = kg_journal_size(journal);
    for (size_t i = 0; i < n; i++) {
        const kg_json *e = kg_journal_at(journal, i);
        if (!kg_json_str(kg_json_get(e, "op"), "op", &of, NULL) && !strcmp(of, op) &&
            !kg_json_double(kg_json_get(e, "spent_s"), "spent_s", &x, NULL) && x > most)
            most = x;
    }
    if (spent_s)
        *spent_s = most;
    return kg_now_ns() + budget_ms * 1000000 - (int64_t)(most * 1e9);
}

static const kg_strategy *strategy_of(const char *name, kg_error *err) {
    static const kg_strategy *const all[] = {&kg_strategy_refine, &kg_strategy_branch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(all[i]->name, name))
            return all[i];
    kg_fail(err, KG_EINVAL, "strategy %.60s: there are refine and branch", name);
    return NULL;
}

/* --- judging --- */

static kg_search_options search_options(const engine *e, size_t most) {
    const kg_loop_options *o = e->l.options;
    return (kg_search_options){.budget_ms = o->budget_ms,
                               .began_ns = e->l.began_ns,
                               .spent_s = e->l.spent_before,
                               .max_candidates = most,
                               .compile_jobs = o->compile_jobs,
                               .progress = o->progress,
                               .progress_ctx = o->progress_ctx};
}

/* The sources of some attempts, borrowed. */
static int borrow(const engine *e, const int *which, size_t n, kg_sources *out, kg_error *err) {
    *out = (kg_sources){.items = calloc(n ? n : 1, sizeof *out->items), .cap = n};
    if (!out->items)
        return kg_fail(err, KG_ENOMEM, "%zu sources", n);
    for (size_t i = 0; i < n; i++)
        out->items[out->n++] = e->l.sources.items[e->l.attempts[which[i]].source];
    return KG_OK;
}

static void count_search(engine *e, const kg_search_result *r) {
    e->out->clock.compile += r->compile_ns;
    e->out->clock.judge += r->judge_ns;
}

static int search_over(engine *e, const int *which, size_t n, size_t most, kg_error *err) {
    kg_sources some = {0};
    kg_search_result result = {0};
    kg_search_options o = search_options(e, most);
    int rc = borrow(e, which, n, &some, err);
    if (!rc && n)
        rc = kg_search(e->l.op_name, &some, e->evaluator, e->l.journal, &o, &result, err);
    count_search(e, &result);
    kg_search_result_free(&result);
    free(some.items);
    return rc ? rc : kg_loop_read(&e->l, err);
}

/* What has no verdict after it was searched over is for none of the Cases, or the time was up. */
static int note_dropped(engine *e, const kg_attempt *a, kg_error *err) {
    kg_error why = {0};
    kg_tuning t;
    const kg_source *src = &e->l.sources.items[a->source];
    kg_tuning_default(src->plan, &t);
    if (e->evaluator->prepare(e->evaluator->ctx, src, &t, &why) != KG_ENOTFOUND)
        return KG_OK;
    kg_json *o = kg_json_new_object();
    kg_json_set_str(o, "name", a->name);
    kg_json_set_str(o, "id", a->id);
    kg_json_set_str(o, "message",
                    why.msg[0] ? why.msg : "its `require` holds for none of the Cases");
    return kg_loop_note(&e->l, "dropped", o, err);
}

/* The unjudged attempts of the oldest exchanges: of half as many as may be open, so that those that
 * are judged make room for new questions while the others wait. */
static size_t pick_pending(engine *e, int *which) {
    size_t n = 0, exchanges = 0, most = (e->l.slots + 1) / 2;
    int last = KG_NONE;
    e->more = false;
    for (size_t i = 0; i < e->l.nattempts; i++) {
        const kg_attempt *a = &e->l.attempts[i];
        if (a->judged || a->same_as != KG_NONE)
            continue;
        if (a->exchange != last && ++exchanges > most) {
            e->more = true;
            break;
        }
        last = a->exchange;
        which[n++] = (int)i;
    }
    return n;
}

static int judge_pending(engine *e, kg_error *err) {
    size_t count = e->l.nattempts;
    int *which = calloc(count ? count : 1, sizeof *which);
    if (!which)
        return kg_fail(err, KG_ENOMEM, "%zu Candidates", count);
    size_t n = pick_pending(e, which);
    int rc = n ? search_over(e, which, n, 1, err) : KG_OK;
    for (size_t i = 0; !rc && i < n; i++)
        if (!e->l.attempts[which[i]].next.any)
            rc = note_dropped(e, &e->l.attempts[which[i]], err);
    if (!rc && n)
        rc = kg_loop_note(&e->l, "judged", kg_json_new_object(), err);
    free(which);
    return rc ? rc : kg_loop_read(&e->l, err);
}

/* The machine code that answers ask for, into the journal. */
static int list_wanted(engine *e, kg_error *err) {
    int rc = KG_OK;
    for (size_t i = 0; !rc && i < e->l.nexchanges; i++)
        for (size_t k = e->l.exchanges[i].nlisted; !rc && k < e->l.exchanges[i].nwants; k++) {
            const char *id = e->l.exchanges[i].wants[k];
            const kg_attempt *a = kg_loop_attempt_of(&e->l, id);
            kg_buf text;
            kg_tuning t;
            kg_buf_init(&text, 1 << 20);
            if (!a || a->source == KG_NONE || !e->evaluator->listing) {
                kg_buf_printf(&text, "there is none%s\n",
                              e->evaluator->listing ? ": its plan was refused" : "");
            } else {
                const kg_source *src = &e->l.sources.items[a->source];
                kg_tuning_default(src->plan, &t);
                rc = e->evaluator->listing(e->evaluator->ctx, src, &t, &text, err);
            }
            kg_json *o = kg_json_new_object();
            kg_json_set_str(o, "prompt", e->l.exchanges[i].id);
            kg_json_set_str(o, "id", id);
            kg_json_set_str(o, "text", text.data ? text.data : "");
            kg_buf_free(&text);
            if (rc)
                kg_json_free(o);
            else
                rc = kg_loop_note(&e->l, "listing", o, err);
        }
    return rc ? rc : kg_loop_read(&e->l, err);
}

/* What a profiler says of the best, into the journal: at most one Candidate for a batch of
 * verdicts, and none twice. */
static int profile_best(engine *e, kg_error *err) {
    int rank[1];
    int64_t start = kg_now_ns();
    if (!e->evaluator->profile || start >= e->ask_until_ns || !kg_loop_rank(&e->l, rank, 1) ||
        (double)e->profile_ns > (double)e->l.options->budget_ms * 1e6 * PROFILE_SHARE)
        return KG_OK;
    kg_attempt *a = &e->l.attempts[rank[0]];
    if (!a->full || a->profiled || a->counters)
        return KG_OK;
    kg_buf text;
    kg_buf_init(&text, 64 << 10);
    a->profiled = true;
    int rc = e->evaluator->profile(e->evaluator->ctx, a->id, &text, err);
    e->profile_ns += kg_now_ns() - start;
    e->out->clock.judge += kg_now_ns() - start;
    if (!rc && text.len) {
        kg_json *o = kg_json_new_object();
        kg_json_set_str(o, "name", a->name);
        kg_json_set_str(o, "id", a->id);
        kg_json_set_str(o, "text", text.data);
        kg_json_set_double(o, "took_s", (double)(kg_now_ns() - start) * 1e-9);
        rc = kg_loop_note(&e->l, "profile", o, err);
    }
    kg_buf_free(&text);
    return rc ? rc : kg_loop_read(&e->l, err);
}

/* For reports: each Candidate with the text that it came to. */
static int note_candidates(engine *e, kg_error *err) {
    int rc = KG_OK;
    for (size_t i = 0; !rc && i < e->l.nattempts; i++) {
        const kg_attempt *a = &e->l.attempts[i];
        if (a->noted)
            continue;
        kg_json *o = kg_json_new_object();
        kg_json_set_str(o, "prompt", e->l.exchanges[a->exchange].id);
        kg_json_set_str(o, "name", a->name);
        kg_json_set_str(o, "id", a->id);
        kg_json_set_str(o, "parent", a->parent[0] ? a->parent : NULL);
        if (a->same_as != KG_NONE)
            kg_json_set_str(o, "same_as", e->l.attempts[a->same_as].name);
        else
            kg_json_set_str(o, "text", a->text);
        if (a->source == KG_NONE)
            kg_json_set_str(o, "refused", a->message);
        rc = kg_loop_note(&e->l, "candidate", o, err);
    }
    return rc ? rc : kg_loop_read(&e->l, err);
}

static int tune_best(engine *e, size_t sources, size_t most, kg_error *err) {
    int rank[FINALISTS];
    size_t n = kg_loop_rank(&e->l, rank, sources);
    if (!n || rank[0] == e->l.tuned_best)
        return KG_OK;
    int rc = search_over(e, rank, n, most, err);
    if (rc)
        return rc;
    kg_json *o = kg_json_new_object();
    kg_json_set_str(o, "name", e->l.attempts[rank[0]].name);
    rc = kg_loop_note(&e->l, "tuned", o, err);
    if (!rc)
        rc = kg_loop_read(&e->l, err);
    kg_loop_settle(&e->l);
    return rc;
}

/* --- asking --- */

static size_t open_prompts(const engine *e) {
    size_t n = 0;
    for (size_t i = 0; i < e->l.nexchanges; i++)
        n += e->l.exchanges[i].state == KG_ASKED && e->l.exchanges[i].sent;
    return n;
}

static int send(engine *e, kg_exchange *x, kg_error *err) {
    x->sent = true;
    return e->proposer->ask(e->proposer->ctx, x->id, kg_prompt_system(e->l.prompt), x->user, err);
}

static bool may_ask(const engine *e) {
    return !e->broke && !e->fatal && !e->over && !e->left && kg_now_ns() < e->ask_until_ns &&
           open_prompts(e) < e->proposer->slots;
}

static int ask_more(engine *e, kg_error *err) {
    kg_request r;
    int rc = KG_OK;
    /* What an earlier life asked and got no answer to comes first. */
    for (size_t i = 0; !rc && i < e->l.nexchanges && may_ask(e); i++)
        if (e->l.exchanges[i].state == KG_ASKED && !e->l.exchanges[i].sent)
            rc = send(e, &e->l.exchanges[i], err);
    while (!rc && may_ask(e)) {
        if (e->l.strategy->pause(&e->l))
            rc = tune_best(e, PAUSE_SOURCES, PAUSE_CANDIDATES, err);
        if (rc || !e->l.strategy->next(&e->l, &r))
            break;
        rc = kg_loop_ask(&e->l, &r, err);
        if (!rc)
            rc = send(e, &e->l.exchanges[e->l.nexchanges - 1], err);
    }
    return rc;
}

static void because(engine *e, const char *why) {
    if (!e->out->ended_by[0])
        snprintf(e->out->ended_by, sizeof e->out->ended_by, "%s", why);
}

/* Waits for one answer, unless there is something to judge, and takes whatever else is there. */
static int collect(engine *e, kg_error *err) {
    kg_proposal p;
    int rc, wait_ms = e->more ? 0 : WAIT_MS;
    int64_t start = kg_now_ns();
    while ((rc = e->proposer->collect(e->proposer->ctx, wait_ms, &p, err)) == KG_OK) {
        wait_ms = 0;
        e->broke = e->broke || p.out_of_budget;
        e->unreachable = e->fatal ? e->unreachable : p.unreachable;
        e->fatal = e->fatal || p.fatal;
        e->left = e->left || p.done;
        if (p.out_of_budget || p.fatal)
            because(e, p.message);
        if (p.done)
            break;
        int at = p.again ? kg_loop_find(&e->l, p.prompt) : KG_NONE;
        if (at != KG_NONE)
            e->l.exchanges[at].sent = false;
    }
    if (!e->more)
        e->out->clock.wait += kg_now_ns() - start;
    return rc == KG_ETIMEOUT ? KG_OK : rc;
}

/* Nobody can be asked: by what is wrong here, or by what this machine lacks. */
static int give_up(const engine *e, kg_error *err) {
    return kg_fail(err, e->unreachable ? KG_EENV : KG_EINVAL, "%s", e->out->ended_by);
}

/* --- the end --- */

static bool on_target(const engine *e) {
    double share = e->l.options->target_share > 0 ? e->l.options->target_share : TARGET_SHARE;
    int rank[1];
    if (!e->l.known || !kg_loop_rank(&e->l, rank, 1))
        return false;
    const kg_attempt *a = &e->l.attempts[rank[0]];
    for (size_t i = 0; i < e->l.ncases; i++) {
        double t = a->tuned_ns[i] > 0 ? a->tuned_ns[i] : a->time_ns[i];
        double floor_ns = e->l.known[i].floor_ns;
        if (t <= 0 || floor_ns <= 0 || t > floor_ns / share || t < floor_ns * BELIEVED)
            return false;
    }
    return true;
}

static void look_whether_over(engine *e) {
    const kg_loop_options *o = e->l.options;
    bool refine = e->l.strategy == &kg_strategy_refine;
    int barren = o->barren > 0 ? o->barren : refine ? BARREN_REFINE : BARREN_BRANCH;
    e->over = true;
    if (on_target(e))
        because(e, "the best Candidate is as near to the roofline as was asked for");
    else if (e->l.barren >= barren)
        because(e, refine ? "no better Candidate came of several beginnings"
                          : "no better Candidate came of several rounds");
    else if (e->left && !e->more)
        because(e, "whoever answers is done");
    else if (e->l.failures >= MOST_FAILURES)
        because(e, "several questions in a row got no answer");
    else
        e->over = false;
}

/* In words, for who writes files. */
static void tell_outcomes(engine *e) {
    for (size_t i = 0; i < e->l.nexchanges; i++) {
        kg_exchange *x = &e->l.exchanges[i];
        kg_buf text;
        if (!x->settled || x->told || !e->proposer || !e->proposer->told ||
            !kg_loop_all_judged(&e->l, (int)i))
            continue;
        x->told = true;
        kg_buf_init(&text, 0);
        for (size_t k = 0; k < e->l.nattempts; k++) {
            const kg_attempt *a = &e->l.attempts[k];
            if (a->exchange != (int)i)
                continue;
            kg_buf_printf(&text, "%s (Candidate %.12s): ", a->name, a->id);
            if (a->verdict == KG_VERDICT_PASS)
                kg_loop_result_line(&e->l, a, &text);
            else
                kg_buf_puts(&text, kg_verdict_name(a->verdict));
            kg_buf_printf(&text, "\n%s\n", a->message ? a->message : "");
        }
        kg_buf_puts(&text, x->complaint.len ? x->complaint.data : "");
        if (x->kind == KG_PROMPT_IDEAS && !x->complaint.len)
            kg_buf_puts(&text, "the ideas were taken\n");
        for (size_t k = 0; k < x->nwants; k++)
            kg_buf_printf(&text, "the next prompt has the machine code of Candidate %.12s\n",
                          x->wants[k]);
        if (!text.status)
            e->proposer->told(e->proposer->ctx, x->id, text.data ? text.data : "");
        kg_buf_free(&text);
    }
}

static int drive(engine *e, kg_error *err) {
    for (;;) {
        if (kg_stop_wanted())
            return kg_fail(err, KG_EINTR, "the loop over %s stopped", e->l.op_name);
        int rc = kg_loop_read(&e->l, err);
        if (!rc)
            rc = note_candidates(e, err);
        if (!rc)
            rc = judge_pending(e, err);
        if (!rc)
            rc = list_wanted(e, err);
        if (rc)
            return rc;
        kg_loop_settle(&e->l);
        rc = profile_best(e, err);
        if (rc)
            return rc;
        tell_outcomes(e);
        look_whether_over(e);
        if (!e->over)
            rc = ask_more(e, err);
        if (rc)
            return rc;
        if (kg_now_ns() >= e->ask_until_ns)
            because(e, "the time is up");
        if (e->over || kg_now_ns() >= e->ask_until_ns || (open_prompts(e) == 0 && !e->more))
            return KG_OK;
        rc = collect(e, err);
        if (rc)
            return rc;
    }
}

static int finish(engine *e, kg_error *err) {
    int rank[FINALISTS];
    const kg_loop_options *o = e->l.options;
    kg_search_options s = search_options(e, o->max_candidates);
    kg_loop_result *out = e->out;
    size_t n = kg_loop_rank(&e->l, rank, FINALISTS);
    int rc = borrow(e, rank, n, &out->finalists, err);
    if (!rc)
        rc = kg_search(e->l.op_name, &out->finalists, e->evaluator, e->l.journal, &s, &out->search,
                       err);
    count_search(e, &out->search);
    if (!rc)
        rc = kg_loop_read(&e->l, err);
    return rc;
}

static void give(engine *e) {
    kg_loop_result *out = e->out;
    out->prompts = e->l.nexchanges;
    out->answers = e->l.answers;
    out->failed = e->l.failed;
    for (size_t i = 0; i < e->l.nattempts; i++) {
        out->candidates += e->l.attempts[i].same_as == KG_NONE;
        out->unjudged += !e->l.attempts[i].judged && e->l.attempts[i].same_as == KG_NONE;
    }
    for (size_t i = 0; i < e->l.nexchanges; i++)
        out->open += e->l.exchanges[i].state == KG_ASKED;
    for (size_t i = 0; i < e->l.nexchanges; i++)
        out->unjudged += e->l.exchanges[i].nwants - e->l.exchanges[i].nlisted;
    out->over = e->over;
    out->clock.all = kg_now_ns() - e->l.began_ns;
    memcpy(out->search.verdicts, e->l.verdicts, sizeof out->search.verdicts);
    out->search.spent_s = kg_loop_spent(&e->l);
    /* The finalists' texts are in it. */
    out->all = e->l.sources;
    e->l.sources = (kg_sources){0};
}

kg_json *kg_loop_clock_json(const kg_loop_clock *c) {
    kg_json *o = kg_json_new_object();
    kg_json_set_double(o, "life_s", (double)c->all * 1e-9);
    kg_json_set_double(o, "wait_s", (double)c->wait * 1e-9);
    kg_json_set_double(o, "compile_s", (double)c->compile * 1e-9);
    kg_json_set_double(o, "judge_s", (double)c->judge * 1e-9);
    return o;
}

/* At the end of a life, for reports; one that was killed has none. */
static int note_clock(engine *e, kg_error *err) {
    return kg_loop_note(&e->l, "clock", kg_loop_clock_json(&e->out->clock), err);
}

static int note_begin(engine *e, kg_error *err) {
    kg_json *fields = NULL;
    const char *about = e->l.options->about ? e->l.options->about : "{}";
    int rc = kg_json_parse(about, strlen(about), "about", &fields, err);
    if (rc)
        return rc;
    kg_json_set_str(fields, "strategy", e->l.strategy->name);
    kg_json_set_int(fields, "slots", (int64_t)e->proposer->slots);
    rc = kg_loop_note(&e->l, "loop", fields, err);
    if (!rc)
        kg_loop_tell(&e->l, kg_journal_at(e->l.journal, kg_journal_size(e->l.journal) - 1));
    return rc;
}

static int begin(kg_loop_state *l, const char *op_name, const kg_op *op, const kg_prompt *prompt,
                 const kg_prompt_case *known, size_t ncases, kg_journal *journal,
                 const kg_loop_options *o, kg_error *err) {
    *l = (kg_loop_state){.op_name = op_name,
                         .op = op,
                         .prompt = prompt,
                         .known = known,
                         .ncases = ncases,
                         .journal = journal,
                         .options = o,
                         .strategy = strategy_of(o->strategy, err),
                         .slots = 1,
                         .began_ns = kg_now_ns()};
    if (!l->strategy)
        return KG_EINVAL;
    if (ncases > KG_MAX_CASES)
        return kg_fail(err, KG_EINVAL, "%s has %zu Cases; %d at most", op_name, ncases,
                       KG_MAX_CASES);
    l->deadline_ns = kg_loop_deadline(journal, op_name, o->budget_ms, &l->spent_before);
    return KG_OK;
}

int kg_loop(const char *op_name, const kg_op *op, const kg_prompt *prompt,
            const kg_prompt_case *known, kg_proposer *proposer, const kg_evaluator *evaluator,
            kg_journal *journal, const kg_loop_options *options, kg_loop_result *out,
            kg_error *err) {
    engine e = {.proposer = proposer, .evaluator = evaluator, .out = out};
    *out = (kg_loop_result){.search.ncases = evaluator->ncases};
    for (size_t i = 0; i < KG_MAX_CASES; i++)
        out->search.winners[i].source = -1;
    int rc = begin(&e.l, op_name, op, prompt, known, evaluator->ncases, journal, options, err);
    if (rc)
        return rc;
    e.l.slots = proposer->slots < KG_MAX_LINES ? proposer->slots : KG_MAX_LINES;
    e.ask_until_ns = e.l.deadline_ns - kg_loop_tail_ns(options->budget_ms);
    rc = note_begin(&e, err);
    if (!rc)
        rc = kg_loop_begin(&e.l, err);
    if (!rc)
        rc = drive(&e, err);
    if (!rc && e.fatal && e.l.nattempts == 0)
        rc = give_up(&e, err);
    if (!rc)
        rc = finish(&e, err);
    if (!rc || rc == KG_EINTR) {
        give(&e);
        int noted = note_clock(&e, rc ? NULL : err);
        rc = rc ? rc : noted;
    }
    kg_loop_state_free(&e.l);
    return rc;
}

/* --- stages --- */

static int advance(engine *e, kg_error *err) {
    kg_request r;
    size_t open = 0;
    int rc = KG_OK;
    look_whether_over(e);
    for (size_t i = 0; i < e->l.nexchanges; i++)
        open += e->l.exchanges[i].state == KG_ASKED;
    for (; !rc && !e->over && open < e->l.slots && e->l.strategy->next(&e->l, &r); open++)
        rc = kg_loop_ask(&e->l, &r, err);
    return rc;
}

/* Asks what is open and waits for all of it. */
static int propose(engine *e, kg_error *err) {
    for (;;) {
        if (kg_stop_wanted())
            return kg_fail(err, KG_EINTR, "the loop over %s stopped", e->l.op_name);
        int rc = kg_loop_read(&e->l, err);
        for (size_t i = 0; !rc && i < e->l.nexchanges && may_ask(e); i++)
            if (e->l.exchanges[i].state == KG_ASKED && !e->l.exchanges[i].sent)
                rc = send(e, &e->l.exchanges[i], err);
        if (rc || e->left || open_prompts(e) == 0 || kg_now_ns() >= e->ask_until_ns)
            return rc;
        rc = collect(e, err);
        if (rc)
            return rc;
    }
}

static int evaluate(engine *e, kg_error *err) {
    int rc = note_candidates(e, err);
    do {
        size_t before = e->l.read;
        if (!rc)
            rc = judge_pending(e, err);
        e->more = e->more && e->l.read > before;
    } while (!rc && e->more && kg_now_ns() < e->l.deadline_ns);
    if (!rc)
        rc = list_wanted(e, err);
    if (rc)
        return rc;
    kg_loop_settle(&e->l);
    tell_outcomes(e);
    if (e->l.strategy->pause(&e->l))
        rc = tune_best(e, PAUSE_SOURCES, PAUSE_CANDIDATES, err);
    if (!rc)
        rc = profile_best(e, err);
    look_whether_over(e);
    return rc;
}

/* Answers may have come since the last stage that judged. */
static int evaluate_and_finish(engine *e, kg_error *err) {
    int rc = evaluate(e, err);
    return rc ? rc : finish(e, err);
}

int kg_loop_stage(kg_stage stage, const char *op_name, const kg_op *op, const kg_prompt *prompt,
                  const kg_prompt_case *known, size_t ncases, size_t slots, kg_proposer *proposer,
                  const kg_evaluator *evaluator, kg_journal *journal,
                  const kg_loop_options *options, kg_loop_result *out, kg_error *err) {
    static int (*const stages[])(engine *, kg_error *) = {advance, propose, evaluate,
                                                          evaluate_and_finish};
    engine e = {.proposer = proposer, .evaluator = evaluator, .out = out};
    *out = (kg_loop_result){.search.ncases = ncases};
    for (size_t i = 0; i < KG_MAX_CASES; i++)
        out->search.winners[i].source = -1;
    int rc = begin(&e.l, op_name, op, prompt, known, ncases, journal, options, err);
    if (rc)
        return rc;
    e.l.slots = slots < KG_MAX_LINES ? slots : KG_MAX_LINES;
    e.ask_until_ns = e.l.deadline_ns - kg_loop_tail_ns(options->budget_ms);
    rc = kg_loop_begin(&e.l, err);
    if (!rc)
        rc = stages[stage](&e, err);
    if (!rc && e.fatal)
        rc = give_up(&e, err);
    if (!rc || rc == KG_EINTR)
        give(&e);
    kg_loop_state_free(&e.l);
    return rc;
}

void kg_loop_result_free(kg_loop_result *r) {
    kg_search_result_free(&r->search);
    free(r->finalists.items);
    kg_sources_free(&r->all);
    *r = (kg_loop_result){0};
}

int kg_loop_preview(const char *op_name, const kg_op *op, const kg_prompt *prompt,
                    const kg_prompt_case *known, size_t ncases, kg_journal *journal,
                    const kg_loop_options *options, kg_buf *out, kg_error *err) {
    kg_loop_state l;
    kg_request r;
    int rc = begin(&l, op_name, op, prompt, known, ncases, journal, options, err);
    if (rc)
        return rc;
    l.slots = KG_MAX_LINES; /* whatever is open, something more could be asked */
    rc = kg_loop_begin(&l, err);
    if (!rc && !l.strategy->next(&l, &r))
        rc = kg_fail(err, KG_ENOTFOUND,
                     "nothing would be asked about %s before what is open is "
                     "answered",
                     op_name);
    if (!rc) {
        kg_buf_printf(out, "%s\n", kg_prompt_system(prompt));
        rc = kg_loop_text(&l, &r, out, err);
    }
    kg_loop_state_free(&l);
    return rc;
}
