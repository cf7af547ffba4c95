/* The loop's state as a fold over the journal: whatever happened, in this life of the Run or an
 * earlier one, happened when it was written there, and changes the state when it is read. So a Run
 * that goes on is where it was, without anything being asked. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "sys/proc.h"
#include "tune/loop_internal.h"

#define MOST_PROMPTS 100000

static const char *text_in(const kg_json *e, const char *key) {
    const char *s = NULL;
    return kg_json_is_string(kg_json_get(e, key)) &&
                   !kg_json_str(kg_json_get(e, key), key, &s, NULL)
               ? s
               : "";
}

static int64_t int_in(const kg_json *e, const char *key, int64_t otherwise) {
    int64_t v = otherwise;
    return kg_json_int(kg_json_get(e, key), key, &v, NULL) ? otherwise : v;
}

static bool bool_in(const kg_json *e, const char *key) {
    bool v = false;
    return !kg_json_bool(kg_json_get(e, key), key, &v, NULL) && v;
}

double kg_loop_spent(const kg_loop_state *l) {
    return l->spent_before + (double)(kg_now_ns() - l->began_ns) * 1e-9;
}

void kg_loop_tell(const kg_loop_state *l, const kg_json *entry) {
    kg_buf text;
    if (!l->options->progress)
        return;
    kg_buf_init(&text, 0);
    kg_json_canonical(entry, &text);
    if (!text.status && text.data)
        l->options->progress(l->options->progress_ctx, text.data);
    kg_buf_free(&text);
}

int kg_loop_note(kg_loop_state *l, const char *kind, kg_json *fields, kg_error *err) {
    kg_json_set_str(fields, "op", l->op_name);
    kg_json_set_double(fields, "spent_s", kg_loop_spent(l));
    return kg_journal_add(l->journal, kind, fields, err);
}

int kg_loop_find(const kg_loop_state *l, const char *prompt) {
    for (size_t i = 0; i < l->nexchanges; i++)
        if (!strcmp(l->exchanges[i].id, prompt))
            return (int)i;
    return KG_NONE;
}

static int find_attempt(const kg_loop_state *l, const char *name) {
    for (size_t i = 0; i < l->nattempts; i++)
        if (!strcmp(l->attempts[i].name, name))
            return (int)i;
    return KG_NONE;
}

static int grow(void **list, size_t n, size_t *cap, size_t size, kg_error *err) {
    if (n < *cap)
        return KG_OK;
    size_t more = *cap ? 2 * *cap : 16;
    void *grown = realloc(*list, more * size);
    if (!grown)
        return kg_fail(err, KG_ENOMEM, "the state of a loop");
    *list = grown;
    *cap = more;
    return KG_OK;
}

const kg_attempt *kg_loop_attempt_of(const kg_loop_state *l, const char *id) {
    for (size_t i = 0; i < l->nattempts; i++)
        if (!strcmp(l->attempts[i].id, id))
            return &l->attempts[i];
    return NULL;
}

/* --- prompts --- */

/* Refine's threads know their own; a round of branch builds on all that came. */
bool kg_loop_lists(const kg_loop_state *l, const kg_exchange *x, int line) {
    return x->listings.len && !x->listings_shown &&
           (l->strategy != &kg_strategy_refine || x->line == line);
}

static int fold_prompt(kg_loop_state *l, const kg_json *e, kg_error *err) {
    const char *id = text_in(e, "id"), *parent = text_in(e, "parent");
    int kind = kg_prompt_kind_parse(text_in(e, "prompt_kind"));
    int64_t line = int_in(e, "line", 0), idea = int_in(e, "idea", KG_NONE);
    kg_loop_settle(l);
    int at = *parent ? find_attempt(l, parent) : KG_NONE;
    if (kind < 0 || !*id || strlen(id) >= sizeof l->exchanges->id || line < 0 ||
        (l->strategy == &kg_strategy_refine && line >= KG_MAX_LINES) || idea < KG_NONE ||
        idea >= (int64_t)l->nideas || (*parent && at == KG_NONE) || kg_loop_find(l, id) != KG_NONE)
        return kg_fail(err, KG_ECORRUPT,
                       "journal: prompt \"%.80s\" does not follow from what is before it", id);
    int rc =
        grow((void **)&l->exchanges, l->nexchanges, &l->exchanges_cap, sizeof *l->exchanges, err);
    if (rc)
        return rc;
    kg_exchange *x = &l->exchanges[l->nexchanges];
    *x = (kg_exchange){.kind = (kg_prompt_kind)kind,
                       .line = (int)line,
                       .turn = (int)int_in(e, "turn", 0),
                       .parent = at,
                       .idea = (int)idea,
                       .user = strdup(text_in(e, "user"))};
    if (!x->user)
        return kg_fail(err, KG_ENOMEM, "a prompt");
    snprintf(x->id, sizeof x->id, "%s", id);
    kg_buf_init(&x->complaint, 64 << 10);
    kg_buf_init(&x->listings, 1 << 20);
    for (size_t i = 0; i < l->nexchanges; i++)
        if (kg_loop_lists(l, &l->exchanges[i], x->line))
            l->exchanges[i].listings_shown = true;
    l->nexchanges++;
    l->strategy->asked(l, (int)l->nexchanges - 1);
    return KG_OK;
}

/* Once a Run: what stands before every prompt. */
static int note_system(kg_loop_state *l, char sha[65], kg_error *err) {
    const char *system = kg_prompt_system(l->prompt);
    const size_t n = kg_journal_size(l->journal);
    kg_sha256_hex(system, strlen(system), sha);
    for (size_t i = 0; i < n; i++) {
        const kg_json *e = kg_journal_at(l->journal, i);
        if (!strcmp(text_in(e, "kind"), "system") && !strcmp(text_in(e, "sha256"), sha))
            return KG_OK;
    }
    kg_json *fields = kg_json_new_object();
    kg_json_set_str(fields, "sha256", sha);
    kg_json_set_str(fields, "text", system);
    return kg_loop_note(l, "system", fields, err);
}

int kg_loop_ask(kg_loop_state *l, const kg_request *r, kg_error *err) {
    char id[64], sha[65];
    kg_buf text;
    if (l->nexchanges >= MOST_PROMPTS)
        return kg_fail(err, KG_EOVERFLOW, "%d prompts for one Op", MOST_PROMPTS);
    kg_buf_init(&text, 0);
    int rc = kg_loop_text(l, r, &text, err);
    if (!rc)
        rc = note_system(l, sha, err);
    if (!rc) {
        kg_json *e = kg_json_new_object();
        snprintf(id, sizeof id, "%.40s-%04zu", l->op_name, l->nexchanges + 1);
        kg_json_set_str(e, "id", id);
        kg_json_set_str(e, "prompt_kind", kg_prompt_kind_name(r->kind));
        kg_json_set_int(e, "line", r->line);
        kg_json_set_int(e, "turn", r->turn);
        kg_json_set_str(e, "parent", r->parent == KG_NONE ? NULL : l->attempts[r->parent].name);
        kg_json_set_int(e, "idea", r->idea);
        kg_json_set_str(e, "system", sha);
        kg_json_set_str(e, "user", text.data);
        rc = kg_loop_note(l, "prompt", e, err);
    }
    kg_buf_free(&text);
    return rc ? rc : kg_loop_read(l, err);
}

/* --- answers --- */

static const char *find_base(void *ctx, const char *prefix, size_t *n, char id[65]) {
    const kg_loop_state *l = ctx;
    for (size_t i = l->nattempts; i-- > 0;) {
        const kg_attempt *a = &l->attempts[i];
        if (strncmp(a->id, prefix, strlen(prefix)) != 0)
            continue;
        memcpy(id, a->id, sizeof a->id);
        *n = strlen(a->text);
        return a->text;
    }
    return NULL;
}

static void refuse_plan(kg_loop_state *l, kg_attempt *a, const char *why) {
    a->source = KG_NONE;
    a->judged = true;
    a->verdict = KG_VERDICT_PLAN_ERROR;
    free(a->message);
    a->message = strdup(why);
    kg_sha256_hex(a->text, strlen(a->text), a->id);
    l->verdicts[KG_VERDICT_PLAN_ERROR]++;
}

/* Reads the plan; one that is bad is the attempt's verdict. */
static int read_plan(kg_loop_state *l, kg_attempt *a, size_t n, kg_error *err) {
    kg_error bad = {0};
    kg_tuning tuning;
    int rc = kg_sources_add_text(&l->sources, a->text, n, a->name, l->op, &bad);
    if (rc == KG_ENOMEM)
        return kg_fail(err, rc, "%s", bad.msg);
    if (rc) {
        refuse_plan(l, a, bad.msg);
        return KG_OK;
    }
    const kg_source *src = &l->sources.items[l->sources.n - 1];
    a->source = (int)l->sources.n - 1;
    kg_tuning_default(src->plan, &tuning);
    return kg_candidate_id(src->text, src->n, src->plan, &tuning, a->id, err);
}

static int add_attempt(kg_loop_state *l, int exchange, const char *answer, size_t index,
                       const kg_answer_file *file, kg_error *err) {
    int rc = grow((void **)&l->attempts, l->nattempts, &l->attempts_cap, sizeof *l->attempts, err);
    if (rc)
        return rc;
    kg_attempt *a = &l->attempts[l->nattempts];
    *a = (kg_attempt){.exchange = exchange,
                      .source = KG_NONE,
                      .same_as = KG_NONE,
                      .text = strdup(file->text),
                      .verdict = KG_VERDICT_PLAN_ERROR};
    if (!a->text)
        return kg_fail(err, KG_ENOMEM, "a Candidate");
    snprintf(a->name, sizeof a->name, "%.120s.%zu%s", answer, index + 1,
             strstr(file->text, "__global__") ? ".cu" : ".c");
    memcpy(a->parent, file->parent, sizeof a->parent);
    rc = read_plan(l, a, file->n, err);
    for (size_t i = 0; !rc && i < l->nattempts && a->same_as == KG_NONE; i++)
        if (!strcmp(l->attempts[i].id, a->id))
            a->same_as = l->attempts[i].same_as == KG_NONE ? (int)i : l->attempts[i].same_as;
    if (rc) {
        free(a->text);
        free(a->message);
        return rc;
    }
    l->nattempts++;
    if (a->same_as != KG_NONE)
        kg_buf_printf(&l->exchanges[exchange].complaint,
                      "- a file is the same as Candidate %.12s, which was judged before\n", a->id);
    return KG_OK;
}

static int add_idea(kg_loop_state *l, int round, const char *text, kg_error *err) {
    kg_idea *grown = realloc(l->ideas, (l->nideas + 1) * sizeof *grown);
    if (!grown)
        return kg_fail(err, KG_ENOMEM, "an idea");
    l->ideas = grown;
    l->ideas[l->nideas] = (kg_idea){.text = strdup(text), .round = round};
    if (!l->ideas[l->nideas].text)
        return kg_fail(err, KG_ENOMEM, "an idea");
    l->nideas++;
    return KG_OK;
}

static int add_wants(kg_exchange *x, const kg_answer *answer, kg_error *err) {
    void *grown = realloc(x->wants, (x->nwants + answer->nlistings) * sizeof *x->wants);
    if (!grown)
        return kg_fail(err, KG_ENOMEM, "what is asked for");
    x->wants = grown;
    for (size_t i = 0; i < answer->nlistings; i++)
        memcpy(x->wants[x->nwants++], answer->listings[i], sizeof *x->wants);
    return KG_OK;
}

static void fold_profile(kg_loop_state *l, const kg_json *e) {
    int at = find_attempt(l, text_in(e, "name"));
    if (at == KG_NONE)
        return;
    free(l->attempts[at].counters);
    l->attempts[at].counters = strdup(text_in(e, "text"));
}

/* What another life or machine found, which had the same answers. */
static void fold_listing(kg_loop_state *l, const kg_json *e) {
    int at = kg_loop_find(l, text_in(e, "prompt"));
    kg_exchange *x = at != KG_NONE ? &l->exchanges[at] : NULL;
    if (!x || x->nlisted == x->nwants)
        return;
    kg_buf_printf(&x->listings, "Candidate %.12s:\n\n```\n%s```\n\n", x->wants[x->nlisted++],
                  text_in(e, "text"));
    x->listings_shown = false;
}

static int fold_answer(kg_loop_state *l, const kg_json *e, kg_error *err) {
    kg_answer answer;
    const char *text = text_in(e, "text");
    int at = kg_loop_find(l, text_in(e, "prompt"));
    if (at == KG_NONE)
        return kg_fail(err, KG_ECORRUPT, "journal: an answer to \"%.80s\", which was not asked",
                       text_in(e, "prompt"));
    kg_exchange *x = &l->exchanges[at];
    bool words = x->kind == KG_PROMPT_IDEAS;
    kg_answer_bases bases = {l, find_base};
    kg_buf_puts(&x->complaint, kg_answer_oddity(bool_in(e, "tool_calls"), text_in(e, "finish")));
    int rc = kg_answer_read(text, strlen(text), words ? KG_WANT_IDEAS : KG_WANT_FILES, &bases,
                            &answer, err);
    if (rc)
        return rc;
    if (answer.complaint.len)
        kg_buf_puts(&x->complaint, answer.complaint.data);
    for (size_t i = 0; !rc && i < answer.nfiles; i++)
        rc = add_attempt(l, at, text_in(e, "name"), i, &answer.files[i], err);
    size_t most = (size_t)(l->options->ideas > 0 ? l->options->ideas : 4);
    if (!rc && answer.nlistings)
        rc = add_wants(x, &answer, err);
    for (size_t i = 0; !rc && i < answer.nideas && i < most; i++)
        rc = add_idea(l, x->line, answer.ideas[i], err);
    kg_answer_free(&answer);
    if (x->state == KG_ASKED)
        x->state = KG_ANSWERED;
    x->told = false; /* a late one is told of as well */
    l->failures = 0;
    l->answers++;
    return rc;
}

/* One that a later life may ask again stays open. */
static void fold_failed(kg_loop_state *l, const kg_json *e) {
    int at = kg_loop_find(l, text_in(e, "prompt"));
    if (at == KG_NONE || !bool_in(e, "final") || strcmp(text_in(e, "end"), "failed") != 0)
        return;
    if (l->exchanges[at].state == KG_ASKED)
        l->exchanges[at].state = KG_GONE;
    l->failures++;
    l->failed++;
}

/* --- verdicts --- */

static void take_times(const kg_loop_state *l, const kg_json *e, double *to, bool least) {
    const kg_json *list = kg_json_get(e, "time_ns");
    for (size_t i = 0; i < l->ncases; i++) {
        double t = 0;
        if (kg_json_double(kg_json_at(list, i), "time_ns", &t, NULL))
            t = 0;
        if (!least || (t > 0 && (to[i] <= 0 || t < to[i])))
            to[i] = t;
    }
}

static int fold_verdict(kg_loop_state *l, const kg_json *e, kg_error *err) {
    int at = find_attempt(l, text_in(e, "source")), v = kg_verdict_parse(text_in(e, "verdict"));
    int64_t level = int_in(e, "level", 0);
    if (v < 0)
        return kg_fail(err, KG_EFORMAT, "journal: verdict \"%.60s\" is none",
                       text_in(e, "verdict"));
    l->verdicts[v]++;
    if (at == KG_NONE)
        return KG_OK;
    /* An older kgen may have judged the second of two that are the same to this one. */
    if (l->attempts[at].same_as != KG_NONE)
        at = l->attempts[at].same_as;
    kg_attempt *a = &l->attempts[at];
    kg_evidence *next = &a->next;
    if (v == KG_VERDICT_PASS && level > KG_LEVEL_QUICK)
        take_times(l, e, next->tuned_ns, true);
    if (strcmp(text_in(e, "id"), a->id) != 0)
        return KG_OK;
    if (next->any && next->verdict != KG_VERDICT_PASS)
        return KG_OK; /* it failed before; a later level cannot mend that */
    next->any = true;
    next->verdict = v;
    next->full = next->full || level == KG_LEVEL_FULL;
    take_times(l, e, next->time_ns, false);
    free(next->message);
    next->message = strdup(text_in(e, "message"));
    char *profile = kg_loop_profile(kg_json_get(e, "record"));
    if (profile) {
        free(next->profile);
        next->profile = profile;
    }
    return KG_OK;
}

/* A search is over: what it found counts from now on. */
static void commit(kg_loop_state *l) {
    for (size_t i = 0; i < l->nattempts; i++) {
        kg_attempt *a = &l->attempts[i];
        memcpy(a->tuned_ns, a->next.tuned_ns, sizeof a->tuned_ns);
        if (!a->next.any)
            continue;
        a->judged = true;
        a->verdict = a->next.verdict;
        a->full = a->next.full;
        memcpy(a->time_ns, a->next.time_ns, sizeof a->time_ns);
        free(a->message);
        a->message = a->next.message ? strdup(a->next.message) : NULL;
        free(a->profile);
        a->profile = a->next.profile ? strdup(a->next.profile) : NULL;
    }
}

static void fold_tuned(kg_loop_state *l, const kg_json *e) {
    commit(l);
    l->tuned_best = find_attempt(l, text_in(e, "name"));
}

static void fold_dropped(kg_loop_state *l, const kg_json *e) {
    int at = find_attempt(l, text_in(e, "name"));
    if (at == KG_NONE || l->attempts[at].judged)
        return;
    kg_attempt *a = &l->attempts[at];
    a->judged = true;
    a->verdict = KG_VERDICT_PLAN_ERROR;
    l->verdicts[KG_VERDICT_PLAN_ERROR]++;
    free(a->message);
    a->message = strdup(text_in(e, "message"));
}

static void fold_candidate(kg_loop_state *l, const kg_json *e) {
    int at = find_attempt(l, text_in(e, "name"));
    if (at != KG_NONE)
        l->attempts[at].noted = true;
}

/* --- the fold --- */

static int fold(kg_loop_state *l, const kg_json *e, kg_error *err) {
    const char *kind = text_in(e, "kind");
    if (strcmp(text_in(e, "op"), l->op_name) != 0)
        return KG_OK;
    if (!strcmp(kind, "prompt"))
        return fold_prompt(l, e, err);
    if (!strcmp(kind, "answer"))
        return fold_answer(l, e, err);
    if (!strcmp(kind, "verdict"))
        return fold_verdict(l, e, err);
    if (!strcmp(kind, "failed"))
        fold_failed(l, e);
    else if (!strcmp(kind, "listing"))
        fold_listing(l, e);
    else if (!strcmp(kind, "profile"))
        fold_profile(l, e);
    else if (!strcmp(kind, "dropped"))
        fold_dropped(l, e);
    else if (!strcmp(kind, "candidate"))
        fold_candidate(l, e);
    else if (!strcmp(kind, "judged"))
        commit(l);
    else if (!strcmp(kind, "tuned"))
        fold_tuned(l, e);
    return KG_OK;
}

/* Verdicts are told by the search that gives them, live; prompts and answers here. */
static bool worth_telling(const kg_json *e) {
    const char *kind = text_in(e, "kind");
    return !strcmp(kind, "prompt") || !strcmp(kind, "answer") || !strcmp(kind, "failed");
}

int kg_loop_read(kg_loop_state *l, kg_error *err) {
    int rc = KG_OK;
    for (; !rc && l->read < kg_journal_size(l->journal); l->read++) {
        const kg_json *e = kg_journal_at(l->journal, l->read);
        rc = fold(l, e, err);
        if (!rc && worth_telling(e) && !strcmp(text_in(e, "op"), l->op_name))
            kg_loop_tell(l, e);
    }
    return rc;
}

int kg_loop_begin(kg_loop_state *l, kg_error *err) {
    l->best = l->best_at_round = INFINITY;
    l->tuned_best = KG_NONE;
    int rc = kg_loop_read(l, err);
    if (!rc)
        kg_loop_settle(l);
    l->failures = 0; /* this life has its own luck */
    return rc;
}

/* --- settling --- */

static void copy_verdict(kg_loop_state *l, kg_attempt *a) {
    const kg_attempt *from = &l->attempts[a->same_as];
    if (a->judged || !from->judged)
        return;
    a->judged = true;
    a->verdict = from->verdict;
    a->full = from->full;
    memcpy(a->time_ns, from->time_ns, sizeof a->time_ns);
    memcpy(a->tuned_ns, from->tuned_ns, sizeof a->tuned_ns);
    a->message = from->message ? strdup(from->message) : NULL;
    a->profile = from->profile ? strdup(from->profile) : NULL;
}

bool kg_loop_all_judged(const kg_loop_state *l, int exchange) {
    if (l->exchanges[exchange].nlisted < l->exchanges[exchange].nwants)
        return false;
    for (size_t i = 0; i < l->nattempts; i++)
        if (l->attempts[i].exchange == exchange && !l->attempts[i].judged)
            return false;
    return true;
}

void kg_loop_settle(kg_loop_state *l) {
    double best = INFINITY;
    for (size_t i = 0; i < l->nattempts; i++) {
        if (l->attempts[i].same_as != KG_NONE)
            copy_verdict(l, &l->attempts[i]);
        double cost = kg_loop_cost(l, &l->attempts[i]);
        best = cost < best ? cost : best;
    }
    /* refine counts beginnings since the last better one; branch looks at its rounds. */
    if (best < l->best && l->strategy == &kg_strategy_refine)
        l->barren = 0;
    l->best = best;
    for (size_t i = 0; i < l->nexchanges; i++) {
        kg_exchange *x = &l->exchanges[i];
        if (x->settled || x->state == KG_ASKED || !kg_loop_all_judged(l, (int)i))
            continue;
        x->settled = true;
        l->strategy->settled(l, (int)i);
    }
}

void kg_loop_state_free(kg_loop_state *l) {
    for (size_t i = 0; i < l->nexchanges; i++) {
        free(l->exchanges[i].user);
        kg_buf_free(&l->exchanges[i].complaint);
        kg_buf_free(&l->exchanges[i].listings);
        free(l->exchanges[i].wants);
    }
    for (size_t i = 0; i < l->nattempts; i++) {
        free(l->attempts[i].text);
        free(l->attempts[i].message);
        free(l->attempts[i].next.message);
        free(l->attempts[i].profile);
        free(l->attempts[i].counters);
        free(l->attempts[i].next.profile);
    }
    for (size_t i = 0; i < l->nideas; i++)
        free(l->ideas[i].text);
    free(l->exchanges);
    free(l->attempts);
    free(l->ideas);
    kg_sources_free(&l->sources);
}
