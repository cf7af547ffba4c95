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
    /* For the host to read: oracles of this set and of another, an input. Scratch is kept. */
    const void *oracle, *other, *input;
    void *scratch[3];
    kg_json *found;
} trial;

static bool floats(int dtype) {
    return dtype == KG_F32 || dtype == KG_F64 || dtype == KG_F16 || dtype == KG_BF16;
}

static double oracle_at(const trial *t, const void *oracle, size_t i) {
    int dtype = t->jc->outputs[t->output].dtype;
    return kg_element(floats(dtype) ? KG_F64 : KG_I64, oracle, i);
}

/* Whether the answer would pass for this output and set. */
static bool passes(const trial *t) {
    const kg_tensor *shape = &t->jc->outputs[t->output];
    const kg_set *set = &t->jc->sets[t->set];
    kg_comparison c;
    if (!floats(shape->dtype)) {
        for (size_t i = 0; i < t->n; i++)
            t->whole[i] = (int64_t)t->answer[i];
        return memcmp(t->whole, t->oracle, t->n * sizeof *t->whole) == 0;
    }
    if (kg_compare(KG_F64, t->answer, t->oracle, t->n, kg_poison(KG_F64, 1), t->j->threads, &c,
                   NULL) != KG_OK)
        return false;
    kg_tolerance tol = kg_tolerance_of(shape->dtype, t->jc->c->call.precision, t->jc->reduction,
                                       set->torch_errors[t->output], c.scale);
    return !c.unwritten && !c.nonfinite && !c.misplaced && c.norm_err <= tol.norm &&
           c.max_err <= tol.max;
}

static double mean(const trial *t) {
    double sum = 0;
    for (size_t i = 0; i < t->n; i++) {
        double x = oracle_at(t, t->oracle, i);
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
        t->answer[i] = kind == ZEROS       ? 0
                       : kind == ONES      ? 1
                       : kind == MEAN      ? m
                       : kind == SHUFFLED  ? oracle_at(t, t->oracle, (i + t->n / 2) % t->n)
                       : kind == OTHER_SET ? oracle_at(t, t->other, i)
                                           : kg_element(in->shape.dtype, t->input, i);
    return true;
}

static int view(trial *t, size_t which, const void *from, size_t bytes, const void **out,
                kg_error *err) {
    const void *at = NULL;
    int rc = from ? t->j->device->view(t->j, from, bytes, t->scratch[which], &at, err) : KG_OK;
    *out = at;
    return rc;
}

/* What an answer of this kind is made of, and held against. */
static int look(trial *t, size_t kind, kg_error *err) {
    const kg_set *sets = t->jc->sets;
    size_t bytes = t->n * sizeof(double), i = kind - FIRST_INPUT;
    int rc = view(t, 0, sets[t->set].oracles[t->output], bytes, &t->oracle, err);
    if (rc == KG_OK && kind == OTHER_SET)
        rc =
            view(t, 1, sets[(t->set + 1) % t->jc->nsets].oracles[t->output], bytes, &t->other, err);
    if (rc == KG_OK && kind >= FIRST_INPUT && t->jc->inputs[i].bytes <= bytes)
        rc = view(t, 2, sets[t->set].inputs[i], t->jc->inputs[i].bytes, &t->input, err);
    return rc;
}

/* A Candidate must pass on every set, so must an answer to count. */
static int try_answer(trial *t, size_t kind, kg_error *err) {
    for (t->set = 0; t->set < t->jc->nsets; t->set++) {
        int rc = look(t, kind, err);
        if (rc != KG_OK || !make(t, kind) || !passes(t))
            return rc;
    }
    kg_json *one = kg_json_new_object();
    kg_json_set_str(one, "answer", answer_name(t, kind));
    kg_json_set_str(one, "output", t->j->op->outputs[t->output].name);
    kg_json_push(t->found, one);
    return KG_OK;
}

static int try_output(trial *t, kg_error *err) {
    t->n = (size_t)kg_tensor_numel(&t->jc->outputs[t->output]);
    if (t->n == 0)
        return KG_OK;
    t->answer = malloc(t->n * sizeof *t->answer);
    t->whole = malloc(t->n * sizeof *t->whole);
    bool made = t->answer && t->whole;
    for (size_t i = 0; t->j->device->target != KG_CPU && i < 3; i++)
        made = (t->scratch[i] = malloc(t->n * sizeof(double))) && made;
    int rc = made ? KG_OK : kg_fail(err, KG_ENOMEM, "%zu elements: out of memory", t->n);
    for (size_t kind = 0; rc == KG_OK && kind < FIRST_INPUT + t->jc->ninputs; kind++)
        rc = try_answer(t, kind, err);
    free(t->answer);
    free(t->whole);
    for (size_t i = 0; i < 3; i++) {
        free(t->scratch[i]);
        t->scratch[i] = NULL;
    }
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
