/* Compares an attention Kernel with a Program it was not judged on: 64 query rows, computed here in
 * double precision one by one, with the Program interpreted. It samples ends and middles of the
 * rows, where tiles begin and end, and is no judge: it finds a Program that was lowered or applied
 * wrongly, not the last bits. */
#include "runtime/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/program.h"

enum { QUERY, KEY, VALUE, SCALE = 6, GQA = 7 };
enum { OUTPUT, LSE };

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

static double load(const kg_tensor *t, int64_t at) {
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
        dot += load(r->q, from + d * r->q->stride[3]) * load(r->k, to + d * r->k->stride[3]);
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
            double x = load(r->v, place(r->v, b, h / r->group, kv) + d * r->v->stride[3]);
            want += r->weights[kv] != 0 ? r->weights[kv] * x : 0;
            size += r->weights[kv] != 0 ? fabs(r->weights[kv] * x) : 0;
        }
        double got = load(out, place(out, b, h, q) + d * out->stride[3]);
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
    double got = load(out, b * out->stride[0] + h * out->stride[1] + q * out->stride[2]);
    if (got == lse || (isnan(got) && isnan(lse)) ||
        fabs(got - lse) <= r->tolerance * (1 + fabs(lse)))
        return KG_OK;
    return kg_fail(err, KG_EINVAL, "lse of row (%lld, %lld, %lld) is %g in place of %g",
                   (long long)b, (long long)h, (long long)q, got, lse);
}

/* Row i of n samples over total rows: both ends, and between them steps that share no factor with
 * tile sizes. */
static int64_t pick(int64_t i, int64_t n, int64_t total) {
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

int kg_sample_attention(const kg_op *op, const kg_call *call, const kg_tensor *outs,
                        kg_error *err) {
    rows r = {.op = op,
              .call = call,
              .q = &call->args[QUERY].u.t,
              .k = &call->args[KEY].u.t,
              .v = &call->args[VALUE].u.t,
              .outs = outs};
    int64_t heads = r.q->size[1], length = r.q->size[2], total = r.q->size[0] * heads * length;
    if (total == 0 || r.k->size[2] == 0)
        return KG_OK;
    r.group = heads / r.k->size[1];
    r.scale = call->args[SCALE].present ? call->args[SCALE].u.f : 1 / sqrt((double)r.q->size[3]);
    r.tolerance = tolerance_of(r.q->dtype);
    r.weights = malloc((size_t)r.k->size[2] * sizeof(double));
    if (r.weights == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for a row of %lld weights",
                       (long long)r.k->size[2]);
    int64_t n = total < KG_SAMPLE_ROWS ? total : KG_SAMPLE_ROWS;
    int rc = KG_OK;
    for (int64_t i = 0; rc == KG_OK && i < n; i++) {
        int64_t at = pick(i, n, total);
        rc = check_row(&r, at / (heads * length), at / length % heads, at % length, err);
    }
    free(r.weights);
    return rc;
}
