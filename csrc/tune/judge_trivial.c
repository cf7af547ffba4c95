/* Answers that take no work: a Task on which one of them passes proves nothing about a Candidate.
 *
 * Each is made in doubles, rounded to the output's dtype, and held against every oracle by the
 * tolerances that Candidates meet. Refuses nothing itself: some models do compute a constant, and
 * the user is told. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tune/judge_internal.h"

typedef struct trial {
    const kg_judge *j;
    const kg_judged_case *jc;
    size_t set, output, n;
    double *answer;
    int64_t *whole; /* the same for integer outputs */
    kg_json *found;
} trial;

static bool floats(int dtype) {
    return dtype == KG_F32 || dtype == KG_F64 || dtype == KG_F16 || dtype == KG_BF16;
}

static const double *oracle_floats(const trial *t, size_t set) {
    return t->jc->sets[set].oracles[t->output];
}

static double oracle_at(const trial *t, size_t set, size_t i) {
    int dtype = t->jc->outputs[t->output].dtype;
    return kg_element(floats(dtype) ? KG_F64 : KG_I64, oracle_floats(t, set), i);
}

/* Whether the answer would pass for this output and set. */
static bool passes(const trial *t) {
    const kg_tensor *shape = &t->jc->outputs[t->output];
    const kg_set *set = &t->jc->sets[t->set];
    kg_comparison c;
    if (!floats(shape->dtype)) {
        for (size_t i = 0; i < t->n; i++)
            t->whole[i] = (int64_t)t->answer[i];
        return memcmp(t->whole, set->oracles[t->output], t->n * sizeof *t->whole) == 0;
    }
    if (kg_compare(KG_F64, t->answer, set->oracles[t->output], t->n, kg_poison(KG_F64, 1),
                   t->j->threads, &c, NULL) != KG_OK)
        return false;
    kg_tolerance tol = kg_tolerance_of(shape->dtype, t->jc->c->call.precision, t->jc->reduction,
                                       set->torch_errors[t->output], c.scale);
    return !c.unwritten && !c.nonfinite && !c.misplaced && c.norm_err <= tol.norm &&
           c.max_err <= tol.max;
}

static double mean(const trial *t) {
    double sum = 0;
    for (size_t i = 0; i < t->n; i++) {
        double x = oracle_at(t, t->set, i);
        sum += isfinite(x) ? x : 0;
    }
    double m = sum / (double)t->n;
    return floats(t->jc->outputs[t->output].dtype) ? m : rint(m);
}

enum { ZEROS, ONES, MEAN, SHUFFLED, OTHER_SET, FIRST_INPUT };

static const char *answer_name(const trial *t, size_t kind) {
    static const char *const names[] = {"zeros", "ones", "the mean", "the reference shuffled",
                                        "the output for another input"};
    return kind < FIRST_INPUT ? names[kind] : t->jc->inputs[kind - FIRST_INPUT].name;
}

/* Fills the answer; false when there is none of this kind. */
static bool make(trial *t, size_t kind) {
    size_t other = (t->set + 1) % t->jc->nsets;
    double m = kind == MEAN ? mean(t) : 0;
    const kg_input *in = kind >= FIRST_INPUT ? &t->jc->inputs[kind - FIRST_INPUT] : NULL;
    /* An input of as many elements, in the order of its memory. */
    if (in && (!in->present || (size_t)kg_tensor_numel(&in->shape) != t->n ||
               in->bytes != t->n * kg_dtype_size(in->shape.dtype)))
        return false;
    if ((kind == OTHER_SET && other == t->set) || (kind == SHUFFLED && t->n < 2))
        return false;
    for (size_t i = 0; i < t->n; i++)
        t->answer[i] =
            kind == ZEROS      ? 0
            : kind == ONES     ? 1
            : kind == MEAN     ? m
            : kind == SHUFFLED ? oracle_at(t, t->set, (i + t->n / 2) % t->n)
            : kind == OTHER_SET
                ? oracle_at(t, other, i)
                : kg_element(in->shape.dtype, t->jc->sets[t->set].inputs[kind - FIRST_INPUT], i);
    return true;
}

/* A Candidate must pass on every set, so must an answer to count. */
static void try_answer(trial *t, size_t kind) {
    for (t->set = 0; t->set < t->jc->nsets; t->set++)
        if (!make(t, kind) || !passes(t))
            return;
    kg_json *one = kg_json_new_object();
    kg_json_set_str(one, "answer", answer_name(t, kind));
    kg_json_set_str(one, "output", t->j->op->outputs[t->output].name);
    kg_json_push(t->found, one);
}

static int try_output(trial *t, kg_error *err) {
    t->n = (size_t)kg_tensor_numel(&t->jc->outputs[t->output]);
    if (t->n == 0)
        return KG_OK;
    t->answer = malloc(t->n * sizeof *t->answer);
    t->whole = malloc(t->n * sizeof *t->whole);
    bool made = t->answer && t->whole;
    for (size_t kind = 0; made && kind < FIRST_INPUT + t->jc->ninputs; kind++)
        try_answer(t, kind);
    free(t->answer);
    free(t->whole);
    return made ? KG_OK : kg_fail(err, KG_ENOMEM, "%zu elements: out of memory", t->n);
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
