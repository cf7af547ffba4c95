/* Puts what went wrong into words that a proposer can act on: which output or buffer, where, what
 * was expected, what came. */
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tune/judge_internal.h"

const char *kg_set_label(const kg_bench *b, char *out, size_t n) {
    const char *name = b->set < b->jc->nsets ? b->jc->sets[b->set].name : "";
    size_t index = (size_t)(b->jc - b->j->cases);
    if (*name)
        snprintf(out, n, "case %zu, set %zu (%s)", index, b->set, name);
    else
        snprintf(out, n, "case %zu, set %zu", index, b->set);
    return out;
}

void kg_condemn(kg_bench *b, kg_verdict v, const char *fmt, ...) {
    char label[160];
    va_list ap;
    b->cr->verdict = b->report->verdict = v;
    kg_buf_clear(&b->report->message);
    kg_buf_printf(&b->report->message, "%s: ", kg_set_label(b, label, sizeof label));
    va_start(ap, fmt);
    kg_buf_vprintf(&b->report->message, fmt, ap);
    va_end(ap);
}

static void put_index(kg_buf *b, const kg_tensor *shape, const int64_t *index) {
    kg_buf_putc(b, '[');
    for (int32_t d = 0; d < shape->ndim; d++)
        kg_buf_printf(b, d ? ", %" PRId64 : "%" PRId64, index[d]);
    kg_buf_putc(b, ']');
}

/* "they lie in [0..3, 4090..4095]". */
static void put_box(kg_buf *b, const kg_tensor *shape, const kg_mismatches *m) {
    kg_buf_puts(b, "; they lie in [");
    for (int32_t d = 0; d < shape->ndim; d++) {
        kg_buf_puts(b, d ? ", " : "");
        if (m->low[d] == m->high[d])
            kg_buf_printf(b, "%" PRId64, m->low[d]);
        else
            kg_buf_printf(b, "%" PRId64 "..%" PRId64, m->low[d], m->high[d]);
    }
    kg_buf_puts(b, "] of [");
    for (int32_t d = 0; d < shape->ndim; d++)
        kg_buf_printf(b, d ? ", %" PRId64 : "%" PRId64, shape->size[d]);
    kg_buf_putc(b, ']');
}

/* ", in dim 1 only at 12..15 of each 16". */
static void put_periods(kg_buf *b, const kg_tensor *shape, const kg_mismatches *m) {
    for (int32_t d = 0; d < shape->ndim; d++) {
        uint64_t bits = 0;
        int period = kg_period_of(m, d, &bits);
        const char *before = " ";
        if (!period)
            continue;
        kg_buf_printf(b, ", in dim %d only at", (int)d);
        for (int i = 0; i < period; i++) {
            int last = i;
            if (!(bits >> i & 1))
                continue;
            while (last + 1 < period && bits >> (last + 1) & 1)
                last++;
            kg_buf_printf(b, last > i ? "%s%d..%d" : "%s%d", before, i, last);
            before = ", ";
            i = last;
        }
        kg_buf_printf(b, " of each %d", period);
    }
}

static bool is_float_type(int dtype) {
    return dtype == KG_F32 || dtype == KG_F64 || dtype == KG_F16 || dtype == KG_BF16;
}

typedef struct wrong_output {
    kg_tensor shape;
    const char *name;
    const char *got, *oracle;
    uint64_t poison;
    kg_mismatches found;
} wrong_output;

static void element_texts(const wrong_output *w, size_t i, char expected[40], char got[40]) {
    int oracle = is_float_type(w->shape.dtype) ? KG_F64 : KG_I64;
    kg_element_text(oracle, &w->found.expected[i], 0, expected);
    kg_element_text(w->shape.dtype, &w->found.got[i], 0, got);
}

static void put_mismatches(kg_buf *b, const wrong_output *w) {
    put_box(b, &w->shape, &w->found);
    put_periods(b, &w->shape, &w->found);
    kg_buf_puts(b, "; first:");
    for (size_t i = 0; i < w->found.shown && i < 4; i++) {
        char expected[40], got[40];
        element_texts(w, i, expected, got);
        kg_buf_puts(b, i ? ", " : " ");
        put_index(b, &w->shape, w->found.index[i]);
        kg_buf_printf(b, " expected %s got %s", expected, got);
    }
}

/* Numbers that JSON has; others as text. */
static void set_number(kg_json *o, const char *key, double x, const char *text) {
    if (isfinite(x))
        kg_json_set_double(o, key, x);
    else
        kg_json_set_str(o, key, text);
}

static kg_json *mismatch_list(const wrong_output *w) {
    kg_json *list = kg_json_new_array();
    int oracle = is_float_type(w->shape.dtype) ? KG_F64 : KG_I64;
    for (size_t i = 0; i < w->found.shown; i++) {
        char expected[40], got[40];
        element_texts(w, i, expected, got);
        kg_json *one = kg_json_new_object(), *index = kg_json_new_array();
        for (int32_t d = 0; d < w->shape.ndim; d++)
            kg_json_push_int(index, w->found.index[i][d]);
        kg_json_set(one, "index", index);
        set_number(one, "expected", kg_element(oracle, &w->found.expected[i], 0), expected);
        set_number(one, "got", kg_element(w->shape.dtype, &w->found.got[i], 0), got);
        kg_json_push(list, one);
    }
    return list;
}

static void keep_details(kg_bench *b, const wrong_output *w, const kg_comparison *c,
                         kg_tolerance t) {
    kg_json *o = kg_json_new_object(), *box = kg_json_new_array();
    kg_json_set_int(o, "case", (int64_t)(b->jc - b->j->cases));
    kg_json_set_int(o, "set", (int64_t)b->set);
    kg_json_set_str(o, "output", w->name);
    kg_json_set_int(o, "elements", (int64_t)c->n);
    kg_json_set_int(o, "wrong", (int64_t)w->found.count);
    kg_json_set_int(o, "unwritten", (int64_t)c->unwritten);
    kg_json_set_int(o, "nonfinite", (int64_t)c->nonfinite);
    kg_json_set_double(o, "norm_err", c->norm_err);
    kg_json_set_double(o, "norm_limit", t.norm);
    kg_json_set_double(o, "max_err", c->max_err);
    kg_json_set_double(o, "max_limit", t.max);
    kg_json_set_double(o, "scale", c->scale);
    for (int32_t d = 0; w->found.count && d < w->shape.ndim; d++) {
        kg_json *pair = kg_json_new_array();
        kg_json_push_int(pair, w->found.low[d]);
        kg_json_push_int(pair, w->found.high[d]);
        kg_json_push(box, pair);
    }
    kg_json_set(o, "box", box);
    kg_json_set(o, "mismatches", mismatch_list(w));
    kg_json_free(b->report->details);
    b->report->details = o;
}

/* What is not written or not finite is shown alone. When every element is within the limit of the
 * worst one and the norm is not, the largest errors are shown. */
static double shown_limit(kg_verdict v, const kg_comparison *c, kg_tolerance t) {
    double scale = c->scale > 0 ? c->scale : 1;
    if (v != KG_VERDICT_WRONG_VALUES || c->misplaced)
        return INFINITY;
    return c->max_err > t.max ? t.max * scale : c->max_err * scale / 2;
}

/* Goes through output and oracle in pieces, as they may lie on a device. */
static int find_wrong(kg_bench *b, wrong_output *w, double limit, kg_error *err) {
    enum { PIECE = 4 << 20 };
    size_t n = (size_t)kg_tensor_numel(&w->shape), size = kg_dtype_size(w->shape.dtype);
    size_t room = n < PIECE ? n : PIECE;
    char *scratch = malloc(room * (size + sizeof(double)) + 1);
    if (!scratch)
        return kg_fail(err, KG_ENOMEM, "%zu elements: out of memory", room);
    char *oracles = scratch, *outputs = scratch + room * sizeof(double);
    int rc = KG_OK;
    for (size_t at = 0; rc == KG_OK && at < n; at += PIECE) {
        size_t some = n - at < PIECE ? n - at : PIECE;
        const void *out, *oracle;
        rc = b->j->device->view(b->j, w->got + at * size, some * size, outputs, &out, err);
        if (rc == KG_OK)
            rc = b->j->device->view(b->j, w->oracle + at * sizeof(double), some * sizeof(double),
                                    oracles, &oracle, err);
        if (rc == KG_OK)
            kg_find_more(&w->shape, out, oracle, at, some, w->poison, limit, &w->found);
    }
    free(scratch);
    return rc;
}

int kg_condemn_values(kg_bench *b, kg_verdict v, size_t output, int side, const kg_comparison *c,
                      kg_tolerance t, const char *what, kg_error *err) {
    const kg_set *set = &b->jc->sets[b->set];
    wrong_output w = {.shape = b->jc->outputs[output],
                      .name = b->j->op->outputs[output].name,
                      .got = kg_slot_data(&b->j->outputs[side][output]),
                      .oracle = set->oracles[output],
                      .poison = b->poison[side][output]};
    int rc = find_wrong(b, &w, shown_limit(v, c, t), err);
    if (rc != KG_OK)
        return rc;
    kg_condemn(b, v, "output '%s': %s", w.name, what);
    kg_buf *m = &b->report->message;
    if (v == KG_VERDICT_WRONG_VALUES && is_float_type(w.shape.dtype))
        kg_buf_printf(m,
                      "; norm error %.3g (allowed %.3g), largest error %.3g of the scale %.3g "
                      "(allowed %.3g), torch's own %.3g and %.3g",
                      c->norm_err, t.norm, c->max_err, c->scale, t.max,
                      set->torch_errors[output].norm, set->torch_errors[output].max);
    kg_buf_printf(m, "; %zu of %zu elements are %s", w.found.count, c->n,
                  v == KG_VERDICT_NOT_ALL_WRITTEN ? "not written"
                  : v == KG_VERDICT_NONFINITE     ? "NaN or Inf"
                                                  : "wrong");
    if (w.found.count)
        put_mismatches(m, &w);
    keep_details(b, &w, c, t);
    return KG_OK;
}
