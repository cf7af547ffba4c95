/* The strategy `branch`: each round begins with ideas in words, given all earlier ones and what
 * came of them; each idea is implemented several times, and an implementation that fails is mended
 * once; the best few are shown to the next round. */
#include <math.h>

#include "tune/loop_internal.h"

#define PER_IDEA 2
/* Attempts at an idea in a row: the first, and one with its verdict. */
#define TURNS 2

static int per_idea(const kg_loop_state *l) {
    return l->options->per_idea > 0 ? l->options->per_idea : PER_IDEA;
}

static bool to_mend(const kg_loop_state *l, size_t i) {
    const kg_exchange *x = &l->exchanges[i];
    if (!x->settled || x->followed || x->line != l->round || x->idea == KG_NONE ||
        x->state != KG_ANSWERED || x->turn + 1 >= TURNS)
        return false;
    int a = kg_loop_furthest(l, (int)i);
    return a != KG_NONE && isinf(kg_loop_cost(l, &l->attempts[a]));
}

/* A prompt for ideas or for code of this round that is not settled. */
static bool open_in(const kg_loop_state *l, int round, bool ideas) {
    for (size_t i = 0; i < l->nexchanges; i++) {
        const kg_exchange *x = &l->exchanges[i];
        if (x->line == round && !x->settled && (x->kind == KG_PROMPT_IDEAS) == ideas)
            return true;
    }
    return false;
}

/* Whether nothing of the present round is left to do. */
static bool round_over(const kg_loop_state *l) {
    if (open_in(l, l->round, true) || open_in(l, l->round, false))
        return false;
    for (size_t i = 0; i < l->nideas; i++)
        if (l->ideas[i].round == l->round && l->ideas[i].asked < per_idea(l))
            return false;
    for (size_t i = 0; i < l->nexchanges; i++)
        if (to_mend(l, i))
            return false;
    return true;
}

static size_t open_now(const kg_loop_state *l) {
    size_t n = 0;
    for (size_t i = 0; i < l->nexchanges; i++)
        n += !l->exchanges[i].settled;
    return n;
}

static bool next(const kg_loop_state *l, kg_request *out) {
    if (open_now(l) >= l->slots)
        return false;
    for (size_t i = 0; i < l->nexchanges; i++)
        if (to_mend(l, i)) {
            const kg_exchange *x = &l->exchanges[i];
            *out = (kg_request){KG_PROMPT_REFINE, l->round, x->turn + 1,
                                kg_loop_furthest(l, (int)i), x->idea};
            return true;
        }
    /* Breadth first: each idea once before any twice. */
    for (int k = 0; k < per_idea(l); k++)
        for (size_t i = 0; i < l->nideas; i++)
            if (l->ideas[i].round == l->round && l->ideas[i].asked == k) {
                *out = (kg_request){KG_PROMPT_IMPLEMENT, l->round, 0, KG_NONE, (int)i};
                return true;
            }
    if (!round_over(l))
        return false;
    *out = (kg_request){KG_PROMPT_IDEAS, l->round + 1, 0, KG_NONE, KG_NONE};
    return true;
}

static void asked(kg_loop_state *l, int exchange) {
    const kg_exchange *x = &l->exchanges[exchange];
    if (x->kind == KG_PROMPT_IDEAS) {
        if (l->round > 0)
            l->barren = l->best < l->best_at_round ? 0 : l->barren + 1;
        l->round = x->line;
        l->best_at_round = l->best;
    } else if (x->kind == KG_PROMPT_IMPLEMENT) {
        l->ideas[x->idea].asked++;
    } else if (x->parent != KG_NONE) {
        l->exchanges[l->attempts[x->parent].exchange].followed = true;
    }
}

static void settled(kg_loop_state *l, int exchange) {
    (void)l, (void)exchange; /* all that follows is read off the exchanges */
}

static bool pause(const kg_loop_state *l) {
    return l->round > 0 && round_over(l);
}

const kg_strategy kg_strategy_branch = {"branch", next, asked, settled, pause};
