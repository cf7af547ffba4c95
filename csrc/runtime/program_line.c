/* Finds score sections that are straight lines: mul * score + a term of the row + slope * kv, with
 * mul and slope the same along a row. Relative positions and ALiBi are; a kernel then needs no
 * integer and no conversion for a score. What it is not certain of is no line: integers that might
 * wrap or lose digits in a cast, look-ups by kv, any function but the four rules and a choice by
 * row. */
#include "runtime/program_ir.h"

#include <stdlib.h>

/* Kernels that ask have at most this many queries, keys, heads and batch entries. */
#define MOST_INDEX (INT64_C(1) << 22)
/* Beyond, float32 does not hold every integer. */
#define MOST_EXACT (INT64_C(1) << 24)
#define UNKNOWN INT64_MAX

typedef struct line {
    const kg_psection *s;
    const uint8_t *varies;
    kg_pline *out;
    int64_t bound[KG_PROGRAM_MAX_VALUES]; /* of |int32 values|; UNKNOWN: may wrap */
} line;

static bool varies(const line *l, const kg_poperand *a) {
    return kg_operand_varying(a, l->varies);
}

static int64_t bound_of(const line *l, const kg_poperand *a) {
    switch (a->kind) {
    case KG_PK_VALUE:
        return l->bound[a->index];
    case KG_PK_LITERAL:
        return llabs((long long)a->literal.i);
    case KG_PK_SCALAR:
        return UNKNOWN;
    default:
        return MOST_INDEX;
    }
}

static int64_t step_of(const line *l, const kg_poperand *a) {
    return a->kind == KG_PK_KV ? 1 : a->kind == KG_PK_VALUE ? l->out->value[a->index].step : 0;
}

/* int32: sums, differences and multiples of indices. */
static bool integer(line *l, size_t i) {
    const kg_pinstr *in = &l->s->value[i];
    const kg_poperand *a = in->arg, *b = in->nargs > 1 ? &in->arg[1] : NULL;
    int64_t x = bound_of(l, a), y = b != NULL ? bound_of(l, b) : 0, most = UNKNOWN, step = 0;
    if (x == UNKNOWN || y == UNKNOWN)
        return false;
    if (in->op == KG_POP_ADD || in->op == KG_POP_SUB) {
        most = x + y;
        step = step_of(l, a) + (in->op == KG_POP_ADD ? 1 : -1) * step_of(l, b);
    } else if (in->op == KG_POP_NEG) {
        most = x;
        step = -step_of(l, a);
    } else if (in->op == KG_POP_MUL && a->kind == KG_PK_LITERAL) {
        most = x * y;
        step = a->literal.i * step_of(l, b);
    } else if (in->op == KG_POP_MUL && b->kind == KG_PK_LITERAL) {
        most = x * y;
        step = b->literal.i * step_of(l, a);
    }
    if (most > MOST_EXACT)
        return false;
    l->bound[i] = most;
    l->out->value[i].step = (int32_t)step;
    return true;
}

static kg_pline_value coefficient(const line *l, const kg_poperand *a) {
    if (a->kind == KG_PK_SCORE)
        return (kg_pline_value){.scored = KG_PL_UNIT};
    return a->kind == KG_PK_VALUE ? l->out->value[a->index]
                                  : (kg_pline_value){.scored = KG_PL_NONE};
}

static uint8_t either(uint8_t a, uint8_t b, bool kept) {
    if (a == KG_PL_NONE && b == KG_PL_NONE)
        return KG_PL_NONE;
    return kept ? (a != KG_PL_NONE ? a : b) : KG_PL_SOME;
}

static bool real(line *l, size_t i) {
    const kg_pinstr *in = &l->s->value[i];
    const kg_poperand *a = in->arg, *b = in->nargs > 1 ? &in->arg[1] : NULL;
    kg_pline_value *v = &l->out->value[i];
    if (in->op == KG_POP_CAST) {
        v->sloped = true;
        return a->type == KG_PT_I32 && bound_of(l, a) <= MOST_EXACT;
    }
    kg_pline_value x = coefficient(l, a), y = b != NULL ? coefficient(l, b) : (kg_pline_value){0};
    switch (in->op) {
    case KG_POP_ADD:
    case KG_POP_SUB: /* a score that passes through unchanged, from one side alone */
        v->scored = either(x.scored, y.scored,
                           x.scored == KG_PL_NONE ? in->op == KG_POP_ADD : y.scored == KG_PL_NONE);
        v->sloped = x.sloped || y.sloped;
        return true;
    case KG_POP_NEG:
        v->scored = either(x.scored, KG_PL_NONE, false);
        v->sloped = x.sloped;
        return true;
    case KG_POP_MUL:
    case KG_POP_DIV:
        v->scored = either(x.scored, y.scored, false);
        v->sloped = x.sloped || y.sloped;
        return !varies(l, b) || (in->op == KG_POP_MUL && !varies(l, a));
    case KG_POP_WHERE: {
        kg_pline_value z = coefficient(l, &in->arg[2]);
        v->scored = y.scored == z.scored ? y.scored : KG_PL_SOME;
        v->sloped = y.sloped || z.sloped;
        return !varies(l, a);
    }
    default:
        return false;
    }
}

/* What is the same along a row needs its bound alone. */
static void of_row(line *l, size_t i) {
    if (l->s->value[i].type == KG_PT_I32 && !integer(l, i))
        l->bound[i] = UNKNOWN;
}

bool kg_program_line(const kg_psection *s, const uint8_t *dep, kg_pline *out) {
    line l = {.s = s, .varies = dep, .out = out};
    *out = (kg_pline){.scored = KG_PL_NONE};
    for (size_t i = 0; i < s->n; i++) {
        bool ok = true;
        if (!dep[i])
            of_row(&l, i);
        else if (s->value[i].type == KG_PT_BOOL || s->value[i].op == KG_POP_LOAD)
            ok = false;
        else
            ok = s->value[i].type == KG_PT_I32 ? integer(&l, i) : real(&l, i);
        if (!ok)
            return false;
    }
    if (s->result.kind != KG_PK_VALUE || !dep[s->result.index])
        return false;
    out->scored = out->value[s->result.index].scored;
    return out->scored != KG_PL_NONE;
}
