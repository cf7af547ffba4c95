/* Compares a linear, a matmul or a conv2d with an epilogue that its Kernel was not judged on: some
 * elements of some rows, computed here in double precision, with the Program interpreted. What
 * rounding of the sum can do behind the epilogue is allowed, and the output's own rounding; it
 * finds a Program that was lowered or applied wrongly, not the last bits. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/program.h"
#include "runtime/sample_internal.h"

enum { INPUT, SECOND, BIAS, STRIDE, PADDING, DILATION, GROUPS, CHANNELS_LAST };
enum { COLUMNS = 16 };

/* The product as matmul has it: x (b, m, k), y (b, k, n); a conv2d keeps its own dims, k is what an
 * element sums over. */
typedef struct sums {
    const kg_call *call;
    kg_tensor x, y, out;
    const kg_tensor *bias; /* or NULL */
    int64_t b, m, n, k;
    bool conv;
    int64_t width; /* of a conv2d's output, OW */
} sums;

static void as_three(kg_tensor *t) {
    if (t->ndim == 3)
        return;
    for (int d = 2; d > 0; d--) {
        t->size[d] = t->size[d - 1];
        t->stride[d] = t->stride[d - 1];
    }
    t->size[0] = 1;
    t->stride[0] = 0;
    t->ndim = 3;
}

static void swap_last(kg_tensor *t) {
    int64_t size = t->size[1], stride = t->stride[1];
    t->size[1] = t->size[2];
    t->stride[1] = t->stride[2];
    t->size[2] = size;
    t->stride[2] = stride;
}

/* How many windows fit along a dim of x. */
static int64_t windows(const sums *s, int i) {
    const kg_value *a = s->call->args;
    int64_t reach = a[DILATION].u.list.v[i] * (s->y.size[2 + i] - 1) + 1;
    return (s->x.size[2 + i] + 2 * a[PADDING].u.list.v[i] - reach) / a[STRIDE].u.list.v[i] + 1;
}

static sums conv_of(const kg_call *call, const kg_tensor *out) {
    sums s = {.call = call, .x = call->args[INPUT].u.t, .y = call->args[SECOND].u.t, .out = *out};
    s.conv = true;
    s.bias = call->args[BIAS].present ? &call->args[BIAS].u.t : NULL;
    s.b = s.out.size[0];
    s.m = s.out.size[1];
    s.n = s.out.size[2];
    s.k = s.y.size[1] * s.y.size[2] * s.y.size[3];
    s.width = windows(&s, 1);
    return s;
}

static sums sums_of(const kg_op *op, const kg_call *call, const kg_tensor *out) {
    sums s = {.call = call, .x = call->args[INPUT].u.t, .y = call->args[SECOND].u.t, .out = *out};
    bool linear = strcmp(op->name, "linear") == 0;
    if (strcmp(op->name, "conv2d") == 0)
        return conv_of(call, out);
    as_three(&s.x);
    as_three(&s.y);
    as_three(&s.out);
    if (linear)
        swap_last(&s.y);
    s.bias = linear && call->args[BIAS].present ? &call->args[BIAS].u.t : NULL;
    s.b = s.out.size[0];
    s.m = s.out.size[1];
    s.n = s.out.size[2];
    s.k = s.x.size[2];
    return s;
}

/* How far a sum of terms of this size may be off in the accumulator, and a result in its dtype. */
static double sum_rounding(const kg_call *c) {
    return c->precision == KG_PREC_BF16 ? 0x1p-7 : c->precision == KG_PREC_TF32 ? 0x1p-10 : 1e-5;
}

static double own_rounding(int dtype) {
    return dtype == KG_F32 ? 1e-4 : dtype == KG_F16 ? 4e-3 : 3e-2;
}

static double element(const kg_tensor *t, int64_t i, int64_t j, int64_t k) {
    return kg_sample_load(t, i * t->stride[0] + j * t->stride[1] + k * t->stride[2]);
}

/* The sum of an element and of its terms' sizes, without bias. */
static void product_sum(const sums *s, int64_t b, int64_t m, int64_t n, double *acc, double *size) {
    for (int64_t k = 0; k < s->k; k++) {
        double term = element(&s->x, b, m, k) * element(&s->y, b, k, n);
        *acc += term;
        *size += fabs(term);
    }
}

static int64_t channel_of(const sums *s, int64_t m, int64_t n) {
    return s->call->args[CHANNELS_LAST].u.b ? n : m;
}

static void conv_sum(const sums *s, int64_t b, int64_t m, int64_t n, double *acc, double *size) {
    const kg_value *a = s->call->args;
    const kg_tensor *x = &s->x, *y = &s->y;
    const int64_t o = channel_of(s, m, n), pixel = a[CHANNELS_LAST].u.b ? m : n;
    const int64_t first = o / (y->size[0] / a[GROUPS].u.i) * y->size[1];
    const int64_t at[2] = {pixel / s->width, pixel % s->width};
    for (int64_t k = 0; k < s->k; k++) {
        const int64_t tap[2] = {k / y->size[3] % y->size[2], k % y->size[3]};
        const int64_t c = k / (y->size[2] * y->size[3]);
        int64_t from = b * x->stride[0] + (first + c) * x->stride[1];
        int64_t with = o * y->stride[0] + c * y->stride[1];
        bool in = true;
        for (int i = 0; i < 2; i++) {
            int64_t place = at[i] * a[STRIDE].u.list.v[i] - a[PADDING].u.list.v[i] +
                            tap[i] * a[DILATION].u.list.v[i];
            in = in && place >= 0 && place < x->size[2 + i];
            from += place * x->stride[2 + i];
            with += tap[i] * y->stride[2 + i];
        }
        if (!in)
            continue;
        double term = kg_sample_load(x, from) * kg_sample_load(y, with);
        *acc += term;
        *size += fabs(term);
    }
}

static int check_element(const sums *s, int64_t b, int64_t m, int64_t n, kg_error *err) {
    const kg_program *p = s->call->program;
    double acc = 0, size = 0, want[3];
    (s->conv ? conv_sum : product_sum)(s, b, m, n, &acc, &size);
    if (s->bias != NULL)
        acc += kg_sample_load(s->bias, (s->conv ? channel_of(s, m, n) : n) * s->bias->stride[0]);
    double off = sum_rounding(s->call) * size;
    for (int i = 0; i < 3; i++) {
        want[i] = acc + (double)(i - 1) * off;
        int rc =
            p != NULL ? kg_program_epilogue(p, s->call, want[i], b, m, n, &want[i], err) : KG_OK;
        if (rc != KG_OK)
            return rc;
    }
    double got = element(&s->out, b, m, n);
    double allowed = fabs(want[0] - want[1]) + fabs(want[2] - want[1]) +
                     own_rounding(s->out.dtype) * fabs(want[1]) + 1e-6 * (1 + fabs(acc));
    if (!isfinite(want[0]) || !isfinite(want[1]) || !isfinite(want[2]) ||
        fabs(got - want[1]) <= allowed)
        return KG_OK; /* at the end of the range rounding decides */
    return kg_fail(err, KG_EINVAL, "element (%lld, %lld, %lld) is %g in place of %g", (long long)b,
                   (long long)m, (long long)n, got, want[1]);
}

static int64_t rows_of(const sums *s) {
    int64_t total = s->b * s->m;
    return total < KG_SAMPLE_ROWS ? total : KG_SAMPLE_ROWS;
}

static void row_at(const sums *s, int64_t i, int64_t *b, int64_t *m) {
    int64_t at = kg_sample_pick(i, rows_of(s), s->b * s->m);
    *b = at / s->m;
    *m = at % s->m;
}

static int check_rows(const sums *s, kg_error *err) {
    int64_t columns = s->n < COLUMNS ? s->n : COLUMNS, b, m;
    int rc = KG_OK;
    for (int64_t i = 0; rc == KG_OK && i < rows_of(s); i++) {
        row_at(s, i, &b, &m);
        for (int64_t j = 0; rc == KG_OK && j < columns; j++)
            rc = check_element(s, b, m, kg_sample_pick(j, columns, s->n), err);
    }
    return rc;
}

int kg_sample_product(const kg_op *op, const kg_call *call, const kg_tensor *out, kg_error *err) {
    sums s = sums_of(op, call, out);
    return check_rows(&s, err);
}

/* ---- tensors of a device ---- */

typedef struct device_sums {
    kg_sample_copy copy;
    void *ctx;
    kg_mirror x, y, bias, out, captured[KG_MAX_CAPTURED];
} device_sums;

static int fetch_all(device_sums *d, kg_mirror *m, const kg_tensor *t, kg_error *err) {
    int64_t last = (int64_t)(kg_mirror_extent(t) / kg_dtype_size(t->dtype)) - 1;
    int rc = kg_mirror_open(m, t, err);
    return rc == KG_OK ? kg_mirror_fetch(m, d->copy, d->ctx, 0, last, err) : rc;
}

/* Row (b, m) of a mirror, n elements. */
static int fetch_row(device_sums *d, kg_mirror *mirror, int64_t b, int64_t m, int64_t n,
                     kg_error *err) {
    const kg_tensor *t = mirror->of;
    int64_t first = b * t->stride[0] + m * t->stride[1];
    return kg_mirror_fetch(mirror, d->copy, d->ctx, first, first + (n - 1) * t->stride[2], err);
}

static int fetch(device_sums *d, const sums *s, kg_error *err) {
    size_t whole = kg_mirror_extent(&s->y) + (s->conv ? kg_mirror_extent(&s->x) : 0);
    for (size_t i = 0; i < s->call->ncaptured; i++)
        whole += kg_mirror_extent(&s->call->captured[i]);
    if (whole > KG_SAMPLE_COPIED)
        return kg_fail(err, KG_EUNSUPPORTED,
                       "what to compare would take more than %d MiB of copies",
                       KG_SAMPLE_COPIED >> 20);
    int rc = s->conv ? fetch_all(d, &d->x, &s->x, err) : kg_mirror_open(&d->x, &s->x, err);
    if (rc == KG_OK)
        rc = kg_mirror_open(&d->out, &s->out, err);
    if (rc == KG_OK)
        rc = fetch_all(d, &d->y, &s->y, err);
    if (rc == KG_OK && s->bias != NULL)
        rc = fetch_all(d, &d->bias, s->bias, err);
    for (size_t i = 0; rc == KG_OK && i < s->call->ncaptured; i++)
        rc = fetch_all(d, &d->captured[i], &s->call->captured[i], err);
    for (int64_t i = 0; rc == KG_OK && i < rows_of(s); i++) {
        int64_t b, m;
        row_at(s, i, &b, &m);
        if (!s->conv)
            rc = fetch_row(d, &d->x, b, m, s->k, err);
        if (rc == KG_OK)
            rc = fetch_row(d, &d->out, b, m, s->n, err);
    }
    return rc;
}

int kg_sample_product_device(const kg_op *op, const kg_call *call, const kg_tensor *out,
                             kg_sample_copy copy, void *ctx, kg_error *err) {
    device_sums d = {.copy = copy, .ctx = ctx};
    sums s = sums_of(op, call, out), here;
    kg_call *local = malloc(sizeof(*local));
    if (local == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for a call");
    int rc = fetch(&d, &s, err);
    if (rc == KG_OK) {
        *local = *call;
        for (size_t i = 0; i < call->ncaptured; i++)
            local->captured[i] = d.captured[i].view;
        here = s;
        here.call = local;
        here.x = d.x.view;
        here.y = d.y.view;
        here.out = d.out.view;
        here.bias = s.bias != NULL ? &d.bias.view : NULL;
        rc = check_rows(&here, err);
    }
    kg_mirror *const all[] = {&d.x, &d.y, &d.bias, &d.out};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        kg_mirror_close(all[i]);
    for (size_t i = 0; i < KG_MAX_CAPTURED; i++)
        kg_mirror_close(&d.captured[i]);
    free(local);
    return rc;
}
