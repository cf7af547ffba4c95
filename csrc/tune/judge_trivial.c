/* Answers that take no work: a Task on which one of them passes proves nothing about a Candidate.
 *
 * Each is made in doubles and held against every oracle by the tolerances that Candidates meet, a
 * piece at a time (outputs may be larger than the host's memory, and lie on a device); what can no
 * longer pass is not gone through to its end. Refuses nothing itself: some models do compute a
 * constant, and the user is told. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tune/judge_internal.h"

enum { PIECE = 1 << 20, SOURCES = 2 };

/* What an oracle is by itself. */
typedef struct about {
    double mean, scale, r2;
    kg_tolerance tolerance;
} about;

typedef struct trial {
    const kg_judge *j;
    const kg_judged_case *jc;
    size_t set, output, n;
    bool floats;
    about *sets; /* one for each set */
    /* For the host to read: the oracle's piece, and what the answer's is made of. */
    const void *oracle, *source;
    void *scratch[SOURCES];
    kg_json *found;
} trial;

enum { ZEROS, ONES, MEAN, SHUFFLED, OTHER_SET, FIRST_INPUT };

static const char *answer_name(const trial *t, size_t kind) {
    static const char *const names[] = {"zeros", "ones", "the mean", "the reference shuffled",
                                        "the output for another input"};
    return kind < FIRST_INPUT ? names[kind] : t->jc->inputs[kind - FIRST_INPUT].name;
}

static bool is_float_type(int dtype) {
    return dtype == KG_F32 || dtype == KG_F64 || dtype == KG_F16 || dtype == KG_BF16;
}

static double value(const trial *t, const void *oracle, size_t i) {
    return kg_element(t->floats ? KG_F64 : KG_I64, oracle, i);
}

static int view(const trial *t, size_t which, const void *from, size_t at, size_t n, size_t size,
                const void **out, kg_error *err) {
    return t->j->device->view(t->j, (const char *)from + at * size, n * size, t->scratch[which],
                              out, err);
}

static int survey(trial *t, size_t set, kg_error *err) {
    about a = {0};
    double sum = 0;
    int rc = KG_OK;
    for (size_t at = 0; rc == KG_OK && at < t->n; at += PIECE) {
        size_t n = t->n - at < PIECE ? t->n - at : PIECE;
        rc = view(t, 0, t->jc->sets[set].oracles[t->output], at, n, 8, &t->oracle, err);
        for (size_t i = 0; rc == KG_OK && i < n; i++) {
            double r = value(t, t->oracle, i);
            if (!isfinite(r) || (!t->floats && kg_any_integer(((const int64_t *)t->oracle)[i])))
                continue;
            sum += r;
            a.r2 += r * r;
            a.scale = fabs(r) > a.scale ? fabs(r) : a.scale;
        }
    }
    a.mean = sum / (double)t->n;
    a.mean = t->floats ? a.mean : rint(a.mean);
    a.tolerance = kg_set_tolerance(t->jc, set, t->output, a.scale);
    t->sets[set] = a;
    return rc;
}

/* Whether there is an answer of this kind. An input counts that has as many elements, in the order
 * of its memory. */
static bool exists(const trial *t, size_t kind) {
    if (kind == OTHER_SET)
        return t->jc->nsets > 1;
    if (kind == SHUFFLED || kind == MEAN) /* one number is its own mean */
        return t->n > 1;
    if (kind < FIRST_INPUT)
        return true;
    const kg_input *in = &t->jc->inputs[kind - FIRST_INPUT];
    return in->present && (size_t)kg_tensor_numel(&in->shape) == t->n &&
           in->bytes == t->n * kg_dtype_size(in->shape.dtype);
}

/* Where element `at` of an answer comes from, and how many follow it there. */
static size_t shuffled(const trial *t, size_t at, size_t *n) {
    size_t from = (at + t->n / 2) % t->n, left = t->n - from;
    *n = *n < left ? *n : left;
    return from;
}

/* The piece of n elements at `at` (n may become fewer) for the host to read. */
static int look(trial *t, size_t kind, size_t at, size_t *n, kg_error *err) {
    const kg_set *set = &t->jc->sets[t->set], *other = &t->jc->sets[(t->set + 1) % t->jc->nsets];
    size_t from = kind == SHUFFLED ? shuffled(t, at, n) : at, input = kind - FIRST_INPUT;
    int rc = view(t, 0, set->oracles[t->output], at, *n, 8, &t->oracle, err);
    if (rc == KG_OK && (kind == SHUFFLED || kind == OTHER_SET))
        rc = view(t, 1, (kind == SHUFFLED ? set : other)->oracles[t->output], from, *n, 8,
                  &t->source, err);
    if (rc == KG_OK && kind >= FIRST_INPUT)
        rc = view(t, 1, set->inputs[input], at, *n, kg_dtype_size(t->jc->inputs[input].shape.dtype),
                  &t->source, err);
    return rc;
}

static double answer(const trial *t, size_t kind, size_t i) {
    switch (kind) {
    case ZEROS:
        return 0;
    case ONES:
        return 1;
    case MEAN:
        return t->sets[t->set].mean;
    case SHUFFLED:
    case OTHER_SET:
        return value(t, t->source, i);
    default:
        return kg_element(t->jc->inputs[kind - FIRST_INPUT].shape.dtype, t->source, i);
    }
}

static void add_piece(const trial *t, size_t kind, size_t n, kg_sums *s) {
    const kg_range range = kg_range_of(KG_F64);
    for (size_t i = 0; i < n; i++) {
        double x = answer(t, kind, i), r = value(t, t->oracle, i);
        if (t->floats)
            kg_add_float(s, x, r, 0, range);
        else
            kg_add_integer(s, (int64_t)x, ((const int64_t *)t->oracle)[i], 0);
    }
}

/* Nothing that follows can make it pass. */
static bool lost(const trial *t, const kg_sums *s) {
    const about *a = &t->sets[t->set];
    double scale = a->scale > 0 ? a->scale : 1, norm = a->r2 > 0 ? sqrt(a->r2) : 1;
    return s->unequal || s->nonfinite || s->misplaced || s->worst > a->tolerance.max * scale ||
           sqrt(s->d2) > a->tolerance.norm * norm;
}

/* On the present set. */
static int passes(trial *t, size_t kind, bool *yes, kg_error *err) {
    kg_sums s = {0};
    size_t n;
    *yes = true;
    for (size_t at = 0; *yes && at < t->n; at += n) {
        n = t->n - at < PIECE ? t->n - at : PIECE;
        int rc = look(t, kind, at, &n, err);
        if (rc != KG_OK)
            return rc;
        add_piece(t, kind, n, &s);
        *yes = !lost(t, &s);
    }
    if (*yes && t->floats) {
        kg_comparison c = kg_comparison_of(KG_F64, t->n, &s);
        *yes = c.norm_err <= t->sets[t->set].tolerance.norm &&
               c.max_err <= t->sets[t->set].tolerance.max;
    }
    return KG_OK;
}

/* A Candidate must pass on every set, so must an answer to count. */
static int try_answer(trial *t, size_t kind, kg_error *err) {
    bool yes = exists(t, kind);
    int rc = KG_OK;
    for (t->set = 0; rc == KG_OK && yes && t->set < t->jc->nsets; t->set++)
        rc = passes(t, kind, &yes, err);
    if (rc != KG_OK || !yes)
        return rc;
    kg_json *one = kg_json_new_object();
    kg_json_set_str(one, "answer", answer_name(t, kind));
    kg_json_set_str(one, "output", t->j->op->outputs[t->output].name);
    kg_json_push(t->found, one);
    return KG_OK;
}

static int try_output(trial *t, kg_error *err) {
    size_t room = (size_t)PIECE * sizeof(double);
    t->n = (size_t)kg_tensor_numel(&t->jc->outputs[t->output]);
    t->floats = is_float_type(t->jc->outputs[t->output].dtype);
    if (t->n == 0)
        return KG_OK;
    t->sets = calloc(t->jc->nsets, sizeof *t->sets);
    t->scratch[0] = malloc(room);
    t->scratch[1] = malloc(room);
    int rc = t->sets && t->scratch[0] && t->scratch[1]
                 ? KG_OK
                 : kg_fail(err, KG_ENOMEM, "trivial answers: out of memory");
    for (size_t set = 0; rc == KG_OK && set < t->jc->nsets; set++)
        rc = survey(t, set, err);
    for (size_t kind = 0; rc == KG_OK && kind < FIRST_INPUT + t->jc->ninputs; kind++)
        rc = try_answer(t, kind, err);
    free(t->sets);
    free(t->scratch[0]);
    free(t->scratch[1]);
    return rc;
}

int kg_judge_trivial(const kg_judge *j, size_t index, kg_json **out, kg_error *err) {
    if (index >= j->ncases)
        return kg_fail(err, KG_EINVAL, "there is no Case %zu; the judge has %zu", index, j->ncases);
    trial t = {.j = j, .jc = &j->cases[index], .found = kg_json_new_array()};
    int rc = KG_OK;
    for (t.output = 0; rc == KG_OK && t.output < t.jc->noutputs; t.output++)
        if (t.jc->nsets > 0 && !t.jc->disagreement && t.jc->sets[0].oracles[t.output])
            rc = try_output(&t, err);
    if (rc != KG_OK) {
        kg_json_free(t.found);
        return rc;
    }
    *out = t.found;
    return KG_OK;
}
