/* Compares an attention Kernel with a Program it was not judged on: 64 query rows, computed here in
 * double precision one by one, with the Program interpreted. It samples ends and middles of the
 * rows, where tiles begin and end, and is no judge: it finds a Program that was lowered or applied
 * wrongly, not the last bits. */
#include "runtime/sample_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "runtime/program.h"

enum { QUERY, KEY, VALUE, SCALE = 6, GQA = 7 };
enum { OUTPUT, LSE };
enum { FEWEST_ROWS = 4 };

typedef struct rows {
    const kg_op *op;
    const kg_call *call;
    const kg_tensor *q, *k, *v, *outs;
    double scale, tolerance;
    int64_t group; /* query heads that share a key head */
    double *weights, *row;
} rows;

static double half_bits(uint16_t h) {
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    double m = exponent == 0    ? ldexp(mantissa, -24)
               : exponent == 31 ? (mantissa != 0 ? (double)NAN : (double)INFINITY)
                                : ldexp(1024 + mantissa, exponent - 25);
    return (h & 0x8000) != 0 ? -m : m;
}

double kg_sample_load(const kg_tensor *t, int64_t at) {
    const char *p = (const char *)t->data + at * (int64_t)kg_dtype_size(t->dtype);
    uint32_t wide;
    uint16_t half;
    float f;
    switch (t->dtype) {
    case KG_F32:
        memcpy(&f, p, sizeof(f));
        return (double)f;
    case KG_F16:
        memcpy(&half, p, sizeof(half));
        return half_bits(half);
    default:
        memcpy(&half, p, sizeof(half));
        wide = (uint32_t)half << 16;
        memcpy(&f, &wide, sizeof(f));
        return (double)f;
    }
}

static int64_t place(const kg_tensor *t, int64_t b, int64_t h, int64_t s) {
    return b * t->stride[0] + h * t->stride[1] + s * t->stride[2];
}

/* The score of one pair after Program and mask; -inf when it is masked. */
static int score(const rows *r, int64_t b, int64_t h, int64_t q, int64_t kv, double *out,
                 kg_error *err) {
    const kg_program *p = r->call->program;
    int64_t from = place(r->q, b, h, q), to = place(r->k, b, h / r->group, kv);
    double dot = 0;
    bool keep = true;
    int rc = KG_OK;
    for (int64_t d = 0; d < r->q->size[3]; d++)
        dot += kg_sample_load(r->q, from + d * r->q->stride[3]) *
               kg_sample_load(r->k, to + d * r->k->stride[3]);
    *out = dot * r->scale;
    if (p != NULL && kg_program_has(p, "SCORE"))
        rc = kg_program_score(p, r->call, *out, b, h, q, kv, out, err);
    if (rc == KG_OK && p != NULL && kg_program_has(p, "MASK"))
        rc = kg_program_mask(p, r->call, b, h, q, kv, &keep, err);
    if (!keep)
        *out = -(double)INFINITY;
    return rc;
}

/* Fills weights and gives log-sum-exp; all-masked rows weigh nothing. */
static int softmax_row(const rows *r, int64_t b, int64_t h, int64_t q, double *lse, kg_error *err) {
    int64_t n = r->k->size[2];
    double top = -(double)INFINITY, sum = 0;
    for (int64_t kv = 0; kv < n; kv++) {
        int rc = score(r, b, h, q, kv, &r->weights[kv], err);
        if (rc != KG_OK)
            return rc;
        top = r->weights[kv] > top || isnan(r->weights[kv]) ? r->weights[kv] : top;
    }
    for (int64_t kv = 0; kv < n; kv++) {
        double w = top == -(double)INFINITY ? 0.0 : exp(r->weights[kv] - top);
        r->weights[kv] = w;
        sum += w;
    }
    for (int64_t kv = 0; sum > 0 && kv < n; kv++)
        r->weights[kv] /= sum;
    *lse = sum > 0 || isnan(sum) ? top + log(sum) : -(double)INFINITY;
    return KG_OK;
}

/* The distance between out and the reference, in units of the row's own scale: the sum of |weight *
 * value|. */
static double row_error(const rows *r, int64_t b, int64_t h, int64_t q) {
    const kg_tensor *out = &r->outs[OUTPUT];
    double error = 0, scale = 0;
    for (int64_t d = 0; d < r->v->size[3]; d++) {
        double want = 0, size = 0;
        for (int64_t kv = 0; kv < r->k->size[2]; kv++) {
            double x = kg_sample_load(r->v, place(r->v, b, h / r->group, kv) + d * r->v->stride[3]);
            want += r->weights[kv] != 0 ? r->weights[kv] * x : 0;
            size += r->weights[kv] != 0 ? fabs(r->weights[kv] * x) : 0;
        }
        double got = kg_sample_load(out, place(out, b, h, q) + d * out->stride[3]);
        if (isnan(want) && isnan(got))
            continue;
        error += (got - want) * (got - want);
        scale += size * size;
    }
    return error == 0 ? 0 : sqrt(error) / (sqrt(scale) + 1e-30);
}

static int check_row(const rows *r, int64_t b, int64_t h, int64_t q, kg_error *err) {
    const kg_tensor *out = &r->outs[LSE];
    double lse;
    int rc = softmax_row(r, b, h, q, &lse, err);
    if (rc != KG_OK)
        return rc;
    double error = row_error(r, b, h, q);
    if (!(error <= r->tolerance))
        return kg_fail(err, KG_EINVAL,
                       "row (%lld, %lld, %lld) is off by %.2g of its size, %.2g is allowed",
                       (long long)b, (long long)h, (long long)q, error, r->tolerance);
    if (out->data == NULL)
        return KG_OK;
    double got = kg_sample_load(out, b * out->stride[0] + h * out->stride[1] + q * out->stride[2]);
    if (got == lse || (isnan(got) && isnan(lse)) ||
        fabs(got - lse) <= r->tolerance * (1 + fabs(lse)))
        return KG_OK;
    return kg_fail(err, KG_EINVAL, "lse of row (%lld, %lld, %lld) is %g in place of %g",
                   (long long)b, (long long)h, (long long)q, got, lse);
}

int64_t kg_sample_pick(int64_t i, int64_t n, int64_t total) {
    if (total <= n)
        return i;
    if (i < 2 || i >= n - 2)
        return i < 2 ? i : total - (n - i);
    uint64_t spread = (uint64_t)i * 0x9e3779b97f4a7c15U;
    return (int64_t)(spread % (uint64_t)total);
}

/* fp32 Programs may amplify a score's rounding; half formats round outputs and, in Kernels,
 * weights. */
static double tolerance_of(int dtype) {
    return dtype == KG_F32 ? 1e-3 : dtype == KG_F16 ? 1e-2 : 4e-2;
}

static int64_t total_rows(const rows *r) {
    return r->q->size[0] * r->q->size[1] * r->q->size[2];
}

/* Row i of n as batch, head and position. */
static void row_at(const rows *r, int64_t i, int64_t n, int64_t *b, int64_t *h, int64_t *q) {
    int64_t heads = r->q->size[1], length = r->q->size[2], at = kg_sample_pick(i, n, total_rows(r));
    *b = at / (heads * length);
    *h = at / length % heads;
    *q = at % length;
}

static bool rows_of(rows *r, const kg_op *op, const kg_call *call, const kg_tensor *outs) {
    *r = (rows){.op = op,
                .call = call,
                .q = &call->args[QUERY].u.t,
                .k = &call->args[KEY].u.t,
                .v = &call->args[VALUE].u.t,
                .outs = outs};
    if (total_rows(r) == 0 || r->k->size[2] == 0)
        return false;
    r->group = r->q->size[1] / r->k->size[1];
    r->scale = call->args[SCALE].present ? call->args[SCALE].u.f : 1 / sqrt((double)r->q->size[3]);
    r->tolerance = tolerance_of(r->q->dtype);
    return true;
}

static int check_rows(rows *r, int64_t n, kg_error *err) {
    int rc = KG_OK;
    r->weights = malloc((size_t)r->k->size[2] * sizeof(double));
    if (r->weights == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for a row of %lld weights",
                       (long long)r->k->size[2]);
    for (int64_t i = 0; rc == KG_OK && i < n; i++) {
        int64_t b, h, q;
        row_at(r, i, n, &b, &h, &q);
        rc = check_row(r, b, h, q, err);
    }
    free(r->weights);
    return rc;
}

int kg_sample_attention(const kg_op *op, const kg_call *call, const kg_tensor *outs,
                        kg_error *err) {
    rows r;
    if (!rows_of(&r, op, call, outs))
        return KG_OK;
    int64_t total = total_rows(&r);
    return check_rows(&r, total < KG_SAMPLE_ROWS ? total : KG_SAMPLE_ROWS, err);
}

/* ---- tensors of a device ---- */

typedef struct device_sample {
    kg_sample_copy copy;
    void *ctx;
    kg_mirror q, k, v, out, lse, captured[KG_MAX_CAPTURED];
} device_sample;

size_t kg_mirror_extent(const kg_tensor *t) {
    int64_t last = 0;
    for (int32_t i = 0; i < t->ndim; i++)
        last += t->size[i] > 0 ? (t->size[i] - 1) * t->stride[i] : 0;
    return (size_t)(last + 1) * kg_dtype_size(t->dtype);
}

int kg_mirror_open(kg_mirror *m, const kg_tensor *t, kg_error *err) {
    size_t bytes = kg_mirror_extent(t);
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED)
        return kg_fail(err, KG_ENOMEM, "no address space for a copy of %zu bytes", bytes);
    *m = (kg_mirror){.of = t, .bytes = bytes, .view = *t};
    m->view.data = p;
    return KG_OK;
}

void kg_mirror_close(kg_mirror *m) {
    if (m->bytes > 0)
        munmap(m->view.data, m->bytes);
    m->bytes = 0;
}

int kg_mirror_fetch(kg_mirror *m, kg_sample_copy copy, void *ctx, int64_t first, int64_t last,
                    kg_error *err) {
    size_t item = kg_dtype_size(m->of->dtype);
    size_t at = (size_t)first * item, n = (size_t)(last - first + 1) * item;
    return copy(ctx, (char *)m->view.data + at, (const char *)m->of->data + at, n, err);
}

/* Elements from the first to the last of a head's rows [0, n) of t. */
static int64_t head_span(const kg_tensor *t, int64_t n) {
    return (n - 1) * t->stride[2] + (t->size[3] - 1) * t->stride[3];
}

static int fetch_head(device_sample *s, kg_mirror *m, int64_t b, int64_t h, kg_error *err) {
    int64_t first = place(m->of, b, h, 0);
    return kg_mirror_fetch(m, s->copy, s->ctx, first, first + head_span(m->of, m->of->size[2]),
                           err);
}

static int fetch_row(device_sample *s, kg_mirror *m, int64_t b, int64_t h, int64_t q,
                     kg_error *err) {
    int64_t first = place(m->of, b, h, q);
    return kg_mirror_fetch(m, s->copy, s->ctx, first, first + head_span(m->of, 1), err);
}

static int fetch(device_sample *s, const rows *r, int64_t n, kg_error *err) {
    int64_t b, h, q, seen_b = -1, seen_h = -1;
    int rc = KG_OK;
    for (int64_t i = 0; rc == KG_OK && i < n; i++) {
        row_at(r, i, n, &b, &h, &q);
        if (b != seen_b || h / r->group != seen_h) {
            rc = fetch_head(s, &s->k, b, h / r->group, err);
            if (rc == KG_OK)
                rc = fetch_head(s, &s->v, b, h / r->group, err);
            seen_b = b;
            seen_h = h / r->group;
        }
        if (rc == KG_OK)
            rc = fetch_row(s, &s->q, b, h, q, err);
        if (rc == KG_OK)
            rc = fetch_row(s, &s->out, b, h, q, err);
        if (rc == KG_OK && s->lse.bytes > 0) {
            int64_t at = place(s->lse.of, b, h, q);
            rc = kg_mirror_fetch(&s->lse, s->copy, s->ctx, at, at, err);
        }
    }
    return rc;
}

static int open_mirrors(device_sample *s, const rows *r, kg_error *err) {
    int rc = kg_mirror_open(&s->q, r->q, err);
    if (rc == KG_OK)
        rc = kg_mirror_open(&s->k, r->k, err);
    if (rc == KG_OK)
        rc = kg_mirror_open(&s->v, r->v, err);
    if (rc == KG_OK)
        rc = kg_mirror_open(&s->out, &r->outs[OUTPUT], err);
    if (rc == KG_OK && r->outs[LSE].data != NULL)
        rc = kg_mirror_open(&s->lse, &r->outs[LSE], err);
    for (size_t i = 0; rc == KG_OK && i < r->call->ncaptured; i++) {
        kg_mirror *m = &s->captured[i];
        rc = kg_mirror_open(m, &r->call->captured[i], err);
        if (rc == KG_OK)
            rc = s->copy(s->ctx, m->view.data, m->of->data, m->bytes, err);
    }
    return rc;
}

static void close_mirrors(device_sample *s) {
    kg_mirror *const all[] = {&s->q, &s->k, &s->v, &s->out, &s->lse};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        kg_mirror_close(all[i]);
    for (size_t i = 0; i < KG_MAX_CAPTURED; i++)
        kg_mirror_close(&s->captured[i]);
}

/* Rows whose keys and values, each in a head of its own at worst, stay within the limit. */
static int affordable_rows(const rows *r, int64_t *n, kg_error *err) {
    size_t item = kg_dtype_size(r->k->dtype), fixed = 0;
    size_t head = (size_t)(head_span(r->k, r->k->size[2]) + head_span(r->v, r->v->size[2])) * item;
    for (size_t i = 0; i < r->call->ncaptured; i++)
        fixed += kg_mirror_extent(&r->call->captured[i]);
    size_t left = fixed < KG_SAMPLE_COPIED ? KG_SAMPLE_COPIED - fixed : 0;
    int64_t total = total_rows(r), fit = (int64_t)(left / (head > 0 ? head : 1));
    *n = total < KG_SAMPLE_ROWS ? total : KG_SAMPLE_ROWS;
    *n = fit < *n ? fit : *n;
    if (*n >= FEWEST_ROWS || *n == total)
        return KG_OK;
    return kg_fail(err, KG_EUNSUPPORTED,
                   "the rows to compare would take more than %zu MiB of copies",
                   (size_t)KG_SAMPLE_COPIED >> 20);
}

int kg_sample_attention_device(const kg_op *op, const kg_call *call, const kg_tensor *outs,
                               kg_sample_copy copy, void *ctx, kg_error *err) {
    device_sample s = {.copy = copy, .ctx = ctx};
    kg_tensor results[2] = {outs[OUTPUT], outs[LSE]};
    int64_t n = 0;
    rows r;
    if (!rows_of(&r, op, call, outs))
        return KG_OK;
    int rc = affordable_rows(&r, &n, err);
    if (rc != KG_OK)
        return rc;
    kg_call *local = malloc(sizeof(*local));
    if (local == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for a call");
    rc = open_mirrors(&s, &r, err);
    if (rc == KG_OK)
        rc = fetch(&s, &r, n, err);
    if (rc == KG_OK) {
        *local = *call;
        local->args[QUERY].u.t = s.q.view;
        local->args[KEY].u.t = s.k.view;
        local->args[VALUE].u.t = s.v.view;
        for (size_t i = 0; i < call->ncaptured; i++)
            local->captured[i] = s.captured[i].view;
        results[OUTPUT] = s.out.view;
        if (s.lse.bytes > 0)
            results[LSE] = s.lse.view;
        rows_of(&r, op, local, results);
        rc = check_rows(&r, n, err);
    }
    close_mirrors(&s);
    free(local);
    return rc;
}
