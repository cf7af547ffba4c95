/* From the state to a prompt: which Candidates are shown, and how ideas fared. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tune/loop_internal.h"

/* Shown with their sources; the prompt drops what does not fit. */
#define SHOWN 3
/* A Case that a Candidate is not for costs as much as being this many doublings slower. */
#define MISSING_CASE 6.0

double kg_loop_cost(const kg_loop_state *l, const kg_attempt *a) {
    double sum = 0;
    bool any = false;
    if (!a->judged || a->verdict != KG_VERDICT_PASS)
        return INFINITY;
    for (size_t i = 0; i < l->ncases; i++) {
        double t = a->tuned_ns[i] > 0 ? a->tuned_ns[i] : a->time_ns[i];
        double floor_ns = l->known && l->known[i].floor_ns > 0 ? l->known[i].floor_ns : 1;
        any = any || t > 0;
        sum += t > 0 ? log2(t / floor_ns) : MISSING_CASE + log2(1e9 / floor_ns) / 2;
    }
    return any && l->ncases ? sum / (double)l->ncases : INFINITY;
}

size_t kg_loop_rank(const kg_loop_state *l, int *out, size_t n) {
    size_t have = 0;
    for (size_t i = 0; i < l->nattempts; i++) {
        const kg_attempt *a = &l->attempts[i];
        double cost = kg_loop_cost(l, a);
        if (a->same_as != KG_NONE || isinf(cost))
            continue;
        size_t at = have < n ? have++ : n;
        /* Insertion; the earlier of two equals stays in front. */
        while (at > 0 && cost < kg_loop_cost(l, &l->attempts[out[at - 1]])) {
            if (at < n)
                out[at] = out[at - 1];
            at--;
        }
        if (at < n)
            out[at] = (int)i;
    }
    return have;
}

int kg_loop_reach(const kg_attempt *a) {
    if (a->source == KG_NONE || a->verdict == KG_VERDICT_PLAN_ERROR)
        return 0;
    return a->verdict == KG_VERDICT_COMPILE_ERROR ? 1 : a->verdict == KG_VERDICT_PASS ? 3 : 2;
}

static int better(const kg_loop_state *l, int a, int b) {
    const kg_attempt *x = &l->attempts[a], *y = &l->attempts[b];
    double cx = kg_loop_cost(l, x), cy = kg_loop_cost(l, y);
    if (cx < cy || cy < cx)
        return cx < cy;
    return kg_loop_reach(x) > kg_loop_reach(y);
}

int kg_loop_furthest(const kg_loop_state *l, int exchange) {
    int best = KG_NONE;
    for (size_t i = 0; i < l->nattempts; i++)
        if (l->attempts[i].exchange == exchange && (best == KG_NONE || better(l, (int)i, best)))
            best = (int)i;
    return best;
}

void kg_loop_result_line(const kg_loop_state *l, const kg_attempt *a, kg_buf *out) {
    if (!a->judged) {
        kg_buf_puts(out, "not judged yet");
        return;
    }
    kg_buf_puts(out, kg_verdict_name(a->verdict));
    for (size_t i = 0; a->verdict == KG_VERDICT_PASS && i < l->ncases; i++) {
        double t = a->tuned_ns[i] > 0 ? a->tuned_ns[i] : a->time_ns[i];
        if (t > 0) {
            kg_buf_puts(out, ", ");
            kg_prompt_time(out, t);
        }
    }
    if (a->verdict == KG_VERDICT_PASS || !a->message)
        return;
    size_t n = strcspn(a->message, "\n");
    kg_buf_printf(out, ": %.*s", (int)(n < 200 ? n : 200), a->message);
}

static double number(const kg_json *o, const char *key) {
    double x = 0;
    return kg_json_double(kg_json_get(o, key), key, &x, NULL) ? 0 : x;
}

static void put_kernel(const kg_json *k, kg_buf *b) {
    const char *name = "";
    double threads = number(k, "threads"), blocks = number(k, "blocks_per_sm");
    kg_json_str(kg_json_get(k, "name"), "name", &name, NULL);
    kg_buf_printf(b, "- `%s`: %.0f registers a thread, ", name, number(k, "registers"));
    if (number(k, "local_bytes") > 0)
        kg_buf_printf(b, "%.0f bytes of it spilled or in local arrays, ", number(k, "local_bytes"));
    else
        kg_buf_puts(b, "nothing spilled, ");
    kg_buf_printf(b,
                  "%.1f KiB of shared memory, blocks of %.0f threads, %.0f of them on a "
                  "multiprocessor at once (%.0f warps)\n",
                  (number(k, "static_shared") + number(k, "dynamic_shared")) / 1024, threads,
                  blocks, blocks * threads / 32);
}

char *kg_loop_profile(const kg_json *record) {
    const kg_json *device = kg_json_get(kg_json_get(record, "details"), "device"),
                  *cases = kg_json_get(record, "cases");
    kg_buf text;
    kg_buf_init(&text, 64 << 10);
    for (size_t i = 0; i < kg_json_size(device); i++) {
        const kg_json *kernels = kg_json_get(kg_json_at(device, i), "kernels");
        for (size_t k = 0; k < kg_json_size(kernels); k++)
            put_kernel(kg_json_at(kernels, k), &text);
    }
    for (size_t i = 0; i < kg_json_size(cases); i++) {
        double warm = number(kg_json_get(kg_json_at(cases, i), "warm_ns"), "median");
        if (warm <= 0)
            continue;
        kg_buf_printf(&text, "- Case %zu with its inputs still in the L2: ", i);
        kg_prompt_time(&text, warm);
        kg_buf_putc(&text, '\n');
    }
    char *taken = text.status || !text.len ? NULL : kg_buf_take(&text);
    kg_buf_free(&text);
    return taken;
}

static kg_prompt_shown shown(const kg_attempt *a) {
    bool tuned = a->tuned_ns[0] > 0;
    return (kg_prompt_shown){.id = a->id,
                             .text = a->text,
                             .verdict = kg_verdict_name(a->verdict),
                             .message = a->message,
                             .profile = a->profile,
                             .counters = a->counters,
                             .time_ns = tuned ? a->tuned_ns : a->time_ns,
                             .full = a->full};
}

/* What came of an idea: its best implementation. The caller frees it. */
static char *idea_result(const kg_loop_state *l, int idea) {
    int best = KG_NONE;
    kg_buf text;
    for (size_t i = 0; i < l->nexchanges; i++) {
        int a = l->exchanges[i].idea == idea ? kg_loop_furthest(l, (int)i) : KG_NONE;
        if (a != KG_NONE && (best == KG_NONE || better(l, a, best)))
            best = a;
    }
    if (best == KG_NONE)
        return NULL;
    kg_buf_init(&text, 4096);
    kg_loop_result_line(l, &l->attempts[best], &text);
    char *taken = kg_buf_take(&text);
    kg_buf_free(&text);
    return taken;
}

static int list_ideas(const kg_loop_state *l, kg_prompt_idea **out, kg_error *err) {
    kg_prompt_idea *list = calloc(l->nideas ? l->nideas : 1, sizeof *list);
    if (!list)
        return kg_fail(err, KG_ENOMEM, "%zu ideas", l->nideas);
    for (size_t i = 0; i < l->nideas; i++)
        list[i] = (kg_prompt_idea){l->ideas[i].text, idea_result(l, (int)i)};
    *out = list;
    return KG_OK;
}

static void free_ideas(kg_prompt_idea *list, size_t n) {
    for (size_t i = 0; list && i < n; i++)
        free((char *)(uintptr_t)list[i].result);
    free(list);
}

/* What of the answer before could not be used. */
static const char *complaint_of(const kg_loop_state *l, const kg_request *r) {
    int exchange = KG_NONE;
    if (r->parent != KG_NONE)
        exchange = l->attempts[r->parent].exchange;
    if (r->line >= 0 && r->line < KG_MAX_LINES && l->strategy == &kg_strategy_refine && r->turn > 0)
        exchange = l->lines[r->line].exchange;
    if (exchange == KG_NONE)
        return NULL;
    const kg_buf *b = &l->exchanges[exchange].complaint;
    return b->len ? b->data : NULL;
}

int kg_loop_text(const kg_loop_state *l, const kg_request *r, kg_buf *out, kg_error *err) {
    int rank[SHOWN];
    kg_prompt_shown best[SHOWN], last;
    kg_prompt_idea *ideas = NULL;
    size_t n = kg_loop_rank(l, rank, SHOWN);
    for (size_t i = 0; i < n; i++)
        best[i] = shown(&l->attempts[rank[i]]);
    kg_buf listings;
    kg_buf_init(&listings, 4 << 20);
    int rc = list_ideas(l, &ideas, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < l->nexchanges; i++)
        if (kg_loop_lists(l, &l->exchanges[i], r->line))
            kg_buf_puts(&listings, l->exchanges[i].listings.data);
    kg_prompt_state s = {.kind = r->kind,
                         .best = best,
                         .nbest = n,
                         .ideas = ideas,
                         .nideas = l->nideas,
                         .complaint = complaint_of(l, r),
                         .listings = listings.data,
                         .idea = r->idea != KG_NONE ? l->ideas[r->idea].text : NULL,
                         .count = l->options->ideas > 0 ? l->options->ideas : 4};
    if (r->parent != KG_NONE) {
        last = shown(&l->attempts[r->parent]);
        s.last = &last;
    }
    /* An answer of which nothing could be used leaves nothing to mend. */
    if (r->kind == KG_PROMPT_REFINE && r->parent == KG_NONE)
        s.kind = KG_PROMPT_FRESH;
    rc = kg_buf_check(&listings, "listings", err);
    if (!rc)
        rc = kg_prompt_user(l->prompt, &s, out, err);
    kg_buf_free(&listings);
    free_ideas(ideas, l->nideas);
    return rc;
}
