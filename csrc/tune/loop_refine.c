/* The strategy `refine`: each line is one thread of verifier feedback and retries; a line that
 * makes no progress begins anew. Lines know of each other through the best Candidates alone. */
#include <math.h>

#include "tune/loop_internal.h"

#define PATIENCE 4
/* Two timings of one Candidate differ by this on a machine that others use. */
#define PROGRESS 0.03

static int patience(const kg_loop_state *l) {
    return l->options->patience > 0 ? l->options->patience : PATIENCE;
}

static size_t lines(const kg_loop_state *l) {
    return l->slots < KG_MAX_LINES ? l->slots : KG_MAX_LINES;
}

static bool next(const kg_loop_state *l, kg_request *out) {
    for (size_t i = 0; i < lines(l); i++) {
        const kg_line *line = &l->lines[i];
        if (line->waiting)
            continue;
        bool anew = line->turn == 0 || line->stale >= patience(l);
        *out = (kg_request){.kind = anew ? KG_PROMPT_FRESH : KG_PROMPT_REFINE,
                            .line = (int)i,
                            .turn = anew ? 0 : line->turn,
                            .parent = anew ? KG_NONE : line->last,
                            .idea = KG_NONE};
        return true;
    }
    return false;
}

static void asked(kg_loop_state *l, int exchange) {
    const kg_exchange *x = &l->exchanges[exchange];
    kg_line *line = &l->lines[x->line];
    if (x->kind == KG_PROMPT_FRESH) {
        if (line->turn > 0)
            l->barren++;
        *line = (kg_line){.last = KG_NONE, .exchange = KG_NONE, .best = INFINITY, .reach = -1};
    }
    line->waiting = true;
}

/* A better time, or further than any before: from a bad plan to code that compiles, to code that
 * runs, to code that passes. */
static bool progress(const kg_loop_state *l, const kg_line *line, int now) {
    const kg_attempt *a = &l->attempts[now];
    if (a->same_as != KG_NONE)
        return false;
    double cost = kg_loop_cost(l, a);
    return isfinite(cost) ? cost < line->best - PROGRESS : kg_loop_reach(a) > line->reach;
}

static void settled(kg_loop_state *l, int exchange) {
    const kg_exchange *x = &l->exchanges[exchange];
    kg_line *line = &l->lines[x->line];
    line->waiting = false;
    line->exchange = exchange;
    line->turn = x->turn + 1;
    int now = kg_loop_furthest(l, exchange);
    line->stale = now != KG_NONE && progress(l, line, now) ? 0 : line->stale + 1;
    if (now == KG_NONE)
        return;
    double cost = kg_loop_cost(l, &l->attempts[now]);
    line->best = cost < line->best ? cost : line->best;
    int reach = kg_loop_reach(&l->attempts[now]);
    line->reach = reach > line->reach ? reach : line->reach;
    line->last = now;
}

/* When a line begins anew, the numbers of the best are worth a look. */
static bool pause(const kg_loop_state *l) {
    for (size_t i = 0; i < lines(l); i++)
        if (!l->lines[i].waiting && l->lines[i].stale >= patience(l))
            return true;
    return false;
}

const kg_strategy kg_strategy_refine = {"refine", next, asked, settled, pause};
