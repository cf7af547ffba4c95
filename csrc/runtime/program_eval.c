/* Binds a Program to a call (checks, the bytes of `struct kg_programs`) and evaluates it on the
 * host, one element at a time and in double: the reference that lowered code is held against. Slow
 * on purpose; it shares no text with the lowering, so that a mistake in one shows. */
#include "runtime/program_ir.h"

#include <math.h>
#include <string.h>

/* Elements that the indices which differ within a row may span: offsets are int32, doubled for
 * int64. */
#define MAX_SPAN ((int64_t)(1 << 30) - 8)

static int check_tensor(const kg_program *p, size_t i, const kg_tensor *t, kg_error *err) {
    if (t->dtype != p->dtype[i])
        return kg_fail(err, KG_EINVAL, "captured tensor %zu is %s; the Program was traced with %s",
                       i, kg_dtype_name(t->dtype) != NULL ? kg_dtype_name(t->dtype) : "of no dtype",
                       kg_dtype_name(p->dtype[i]));
    if (t->ndim != p->rank[i])
        return kg_fail(err, KG_EINVAL,
                       "captured tensor %zu has %d dims; the Program was traced with %d", i,
                       (int)t->ndim, (int)p->rank[i]);
    for (int d = 0; d < t->ndim; d++)
        if (t->size[d] < 1 || t->size[d] > INT32_MAX)
            return kg_fail(
                err, KG_EINVAL,
                "captured tensor %zu has size %lld in dim %d; a look-up needs 1 to 2^31-1", i,
                (long long)t->size[d], d);
    return KG_OK;
}

static int check_span(size_t i, const kg_tensor *t, uint8_t dims, kg_error *err) {
    int64_t span = 0;
    for (int d = 0; d < t->ndim; d++) {
        int64_t part;
        if (!(dims >> d & 1))
            continue;
        if (__builtin_mul_overflow(t->size[d] - 1, t->stride[d], &part) || part > MAX_SPAN ||
            part < 0 || (span += part) > MAX_SPAN)
            return kg_fail(err, KG_EUNSUPPORTED,
                           "captured tensor %zu spans more than 2^30 elements along one row of "
                           "scores",
                           i);
    }
    return KG_OK;
}

static int check_scalar(size_t i, int type, double v, kg_error *err) {
    bool whole = v >= INT32_MIN && v <= INT32_MAX && v == floor(v);
    if (type == KG_PT_I32 && !whole)
        return kg_fail(err, KG_EINVAL, "scalar %zu is %g; the Program needs an int32", i, v);
    if (type == KG_PT_BOOL && v != 0.0 && v != 1.0)
        return kg_fail(err, KG_EINVAL, "scalar %zu is %g; the Program needs 0 or 1", i, v);
    return KG_OK;
}

int kg_program_check(const kg_program *p, const kg_call *call, kg_error *err) {
    if (call->ncaptured != p->ntensors)
        return kg_fail(err, KG_EINVAL, "%zu captured tensors were given; the Program has %zu",
                       call->ncaptured, p->ntensors);
    if (call->nscalars != p->nscalars)
        return kg_fail(err, KG_EINVAL, "%zu scalars were given; the Program has %zu",
                       call->nscalars, p->nscalars);
    for (size_t i = 0; i < p->ntensors; i++) {
        int rc = check_tensor(p, i, &call->captured[i], err);
        if (rc == KG_OK)
            rc = check_span(i, &call->captured[i], p->spread[i], err);
        if (rc != KG_OK)
            return rc;
    }
    for (size_t i = 0; i < p->nscalars; i++) {
        int rc = check_scalar(i, p->scalar[i], call->scalars[i], err);
        if (rc != KG_OK)
            return rc;
    }
    return KG_OK;
}

/* Least and greatest along dims d.. of an int64 tensor. */
static void i64_extremes(const kg_tensor *t, int d, const int64_t *at, int64_t *lo, int64_t *hi) {
    if (d == t->ndim) {
        *lo = *at < *lo ? *at : *lo;
        *hi = *at > *hi ? *at : *hi;
        return;
    }
    int64_t n = t->stride[d] == 0 ? 1 : t->size[d];
    if (d == t->ndim - 1 && t->stride[d] == 1) {
        int64_t l = *lo, h = *hi;
        for (int64_t i = 0; i < n; i++) {
            l = at[i] < l ? at[i] : l;
            h = at[i] > h ? at[i] : h;
        }
        *lo = l;
        *hi = h;
        return;
    }
    for (int64_t i = 0; i < n; i++)
        i64_extremes(t, d + 1, at + i * t->stride[d], lo, hi);
}

static int check_i64(size_t i, const kg_tensor *t, kg_error *err) {
    int64_t lo = 0, hi = 0;
    i64_extremes(t, 0, t->data, &lo, &hi);
    if (lo < INT32_MIN || hi > INT32_MAX)
        return kg_fail(err, KG_EINVAL, "captured int64 tensor %zu holds %lld, which is no int32", i,
                       (long long)(lo < INT32_MIN ? lo : hi));
    return KG_OK;
}

static void put_at(void *bytes, size_t offset, const void *v, size_t n) {
    memcpy((char *)bytes + offset, v, n);
}

static void put_tensor(const kg_program *p, size_t i, const kg_tensor *t, void *bytes) {
    put_at(bytes, kg_program_offset_pointer(p, i), &t->data, sizeof t->data);
    for (int d = 0; d < t->ndim; d++) {
        int32_t n = (int32_t)t->size[d];
        put_at(bytes, kg_program_offset_stride(p, i, (size_t)d), &t->stride[d], 8);
        put_at(bytes, kg_program_offset_size(p, i, (size_t)d), &n, 4);
    }
}

int kg_program_args(const kg_program *p, const kg_call *call, void *bytes, size_t n,
                    kg_error *err) {
    if (n != kg_program_args_size(p))
        return kg_fail(err, KG_EINVAL, "the arguments of the Program are %zu bytes, not %zu",
                       kg_program_args_size(p), n);
    if (p == NULL) {
        memset(bytes, 0, n);
        return KG_OK;
    }
    int rc = kg_program_check(p, call, err);
    for (size_t i = 0; rc == KG_OK && i < p->ntensors; i++)
        if (p->dtype[i] == KG_I64 && call->device == KG_CPU)
            rc = check_i64(i, &call->captured[i], err);
    if (rc != KG_OK)
        return rc;
    memset(bytes, 0, n);
    for (size_t i = 0; i < p->ntensors; i++)
        put_tensor(p, i, &call->captured[i], bytes);
    for (size_t i = 0; i < p->nscalars; i++) {
        float f = (float)call->scalars[i];
        int32_t k = p->scalar[i] == KG_PT_F32 ? 0 : (int32_t)call->scalars[i];
        const void *v = p->scalar[i] == KG_PT_F32 ? (const void *)&f : (const void *)&k;
        put_at(bytes, kg_program_offset_scalar(p, i), v, 4);
    }
    return KG_OK;
}

/* A value on the host: float32 as double, int32 and bool as int32. */
typedef union pvalue {
    double f;
    int32_t i;
} pvalue;

typedef struct evaluation {
    const kg_program *p;
    const kg_call *call;
    double score;
    int32_t b, h, q, kv;
    pvalue v[KG_PROGRAM_MAX_VALUES];
} evaluation;

static pvalue operand_value(const evaluation *e, const kg_poperand *a) {
    switch (a->kind) {
    case KG_PK_VALUE:
        return e->v[a->index];
    case KG_PK_SCORE:
        return (pvalue){.f = e->score};
    case KG_PK_B:
        return (pvalue){.i = e->b};
    case KG_PK_H:
        return (pvalue){.i = e->h};
    case KG_PK_Q:
        return (pvalue){.i = e->q};
    case KG_PK_KV:
        return (pvalue){.i = e->kv};
    case KG_PK_SCALAR:
        if (a->type == KG_PT_F32)
            return (pvalue){.f = (double)(float)e->call->scalars[a->index]};
        return (pvalue){.i = (int32_t)e->call->scalars[a->index]};
    default:
        if (a->type == KG_PT_F32)
            return (pvalue){.f = (double)a->literal.f};
        return (pvalue){.i = a->literal.i};
    }
}

static int32_t wrap(int64_t v) {
    uint32_t u = (uint32_t)((uint64_t)v & 0xffffffffu);
    int32_t r;
    memcpy(&r, &u, sizeof r);
    return r;
}

static int64_t floor_div(int64_t a, int64_t b) {
    if (b == 0)
        return 0;
    int64_t q = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}

static int32_t int_op(kg_pop op, int64_t a, int64_t b) {
    switch (op) {
    case KG_POP_ADD:
        return wrap(a + b);
    case KG_POP_SUB:
        return wrap(a - b);
    case KG_POP_MUL:
        return wrap(a * b);
    case KG_POP_NEG:
        return wrap(-a);
    case KG_POP_ABS:
        return wrap(a < 0 ? -a : a);
    case KG_POP_MIN:
        return wrap(a < b ? a : b);
    case KG_POP_MAX:
        return wrap(a > b ? a : b);
    case KG_POP_FLOORDIV:
        return wrap(floor_div(a, b));
    case KG_POP_REM:
        return b == 0 ? 0 : wrap(a - floor_div(a, b) * b);
    case KG_POP_TRUNCDIV:
        return b == 0 ? 0 : wrap(a / b);
    case KG_POP_AND:
        return wrap(a & b);
    case KG_POP_OR:
        return wrap(a | b);
    case KG_POP_XOR:
        return wrap(a ^ b);
    case KG_POP_NOT:
        return wrap(~a);
    case KG_POP_SHL:
        return b < 0 || b > 31 ? 0 : wrap(a * ((int64_t)1 << b));
    default: /* SHR */
        return wrap(a >> (b < 0 || b > 31 ? 31 : b));
    }
}

static double nan_or(double a, double b, double otherwise) {
    return isnan(a) || isnan(b) ? (double)NAN : otherwise;
}

static double float_rem(double a, double b) {
    double m = fmod(a, b);
    return m != 0.0 && (m < 0.0) != (b < 0.0) ? m + b : m;
}

static double float_floordiv(double a, double b) {
    if (b == 0.0)
        return a / b;
    double m = fmod(a, b), d = (a - m) / b;
    if (m != 0.0 && (b < 0.0) != (m < 0.0))
        d -= 1.0;
    if (d == 0.0)
        return copysign(0.0, a / b);
    double f = floor(d);
    return d - f > 0.5 ? f + 1.0 : f;
}

static double float_function(kg_pop op, double a) {
    switch (op) {
    case KG_POP_NEG:
        return -a;
    case KG_POP_ABS:
        return fabs(a);
    case KG_POP_TANH:
        return tanh(a);
    case KG_POP_EXP:
        return exp(a);
    case KG_POP_EXP2:
        return exp2(a);
    case KG_POP_LOG:
        return log(a);
    case KG_POP_LOG2:
        return log2(a);
    case KG_POP_SQRT:
        return sqrt(a);
    case KG_POP_RSQRT:
        return 1.0 / sqrt(a);
    case KG_POP_SIN:
        return sin(a);
    case KG_POP_COS:
        return cos(a);
    case KG_POP_SIGMOID:
        return a < 0.0 ? exp(a) / (1.0 + exp(a)) : 1.0 / (1.0 + exp(-a));
    case KG_POP_ERF:
        return erf(a);
    case KG_POP_FLOOR:
        return floor(a);
    default: /* CEIL */
        return ceil(a);
    }
}

static double float_op(kg_pop op, double a, double b) {
    switch (op) {
    case KG_POP_ADD:
        return a + b;
    case KG_POP_SUB:
        return a - b;
    case KG_POP_MUL:
        return a * b;
    case KG_POP_DIV:
        return a / b;
    case KG_POP_MIN:
        return nan_or(a, b, a < b ? a : b);
    case KG_POP_MAX:
        return nan_or(a, b, a > b ? a : b);
    case KG_POP_FLOORDIV:
        return float_floordiv(a, b);
    case KG_POP_REM:
        return float_rem(a, b);
    case KG_POP_POW:
        return pow(a, b);
    default:
        return float_function(op, a);
    }
}

static bool compare(kg_pop op, double a, double b) {
    switch (op) {
    case KG_POP_EQ:
        return a == b;
    case KG_POP_NE:
        return a != b;
    case KG_POP_LT:
        return a < b;
    case KG_POP_LE:
        return a <= b;
    case KG_POP_GT:
        return a > b;
    default: /* GE */
        return a >= b;
    }
}

static double as_number(int type, pvalue v) {
    return type == KG_PT_F32 ? v.f : (double)v.i;
}

static pvalue cast(int from, int to, pvalue v) {
    double n = as_number(from, v);
    if (to == KG_PT_F32)
        return (pvalue){.f = n};
    if (to == KG_PT_BOOL)
        return (pvalue){.i = n != 0.0};
    if (isnan(n))
        return (pvalue){.i = 0};
    n = n > INT32_MAX ? INT32_MAX : n < INT32_MIN ? INT32_MIN : n;
    return (pvalue){.i = (int32_t)n};
}

static double half_value(uint16_t h) {
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    double v = exponent == 0    ? ldexp(mantissa, -24)
               : exponent != 31 ? ldexp(mantissa + 1024, exponent - 25)
               : mantissa != 0  ? (double)NAN
                                : (double)INFINITY;
    return h >> 15 ? -v : v;
}

static double bfloat16_value(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return (double)f;
}

static pvalue element(int dtype, const unsigned char *at) {
    union {
        float f32;
        double f64;
        uint16_t u16;
        int16_t i16;
        int32_t i32;
        int64_t i64;
        int8_t i8;
        uint8_t u8;
    } u = {.f64 = 0};
    memcpy(&u, at, kg_dtype_size(dtype));
    switch (dtype) {
    case KG_F32:
        return (pvalue){.f = (double)u.f32};
    case KG_F64:
        return (pvalue){.f = u.f64};
    case KG_F16:
        return (pvalue){.f = half_value(u.u16)};
    case KG_BF16:
        return (pvalue){.f = bfloat16_value(u.u16)};
    case KG_I8:
        return (pvalue){.i = u.i8};
    case KG_U8:
        return (pvalue){.i = u.u8};
    case KG_I16:
        return (pvalue){.i = u.i16};
    case KG_I32:
        return (pvalue){.i = u.i32};
    case KG_I64:
        return (pvalue){.i = wrap(u.i64)};
    default:
        return (pvalue){.i = u.u8 != 0};
    }
}

static pvalue look_up(const evaluation *e, const kg_pinstr *in) {
    const kg_tensor *t = &e->call->captured[in->tensor];
    int64_t at = 0;
    for (int d = 0; d < in->nargs; d++) {
        int64_t i = operand_value(e, &in->arg[d]).i, n = t->size[d];
        i = i < 0 ? i + n : i;
        i = i < 0 ? 0 : i >= n ? n - 1 : i;
        at += i * t->stride[d];
    }
    return element(t->dtype,
                   (const unsigned char *)t->data + at * (int64_t)kg_dtype_size(t->dtype));
}

static pvalue bool_op(kg_pop op, int32_t a, int32_t b) {
    switch (op) {
    case KG_POP_AND:
        return (pvalue){.i = a & b};
    case KG_POP_OR:
        return (pvalue){.i = a | b};
    case KG_POP_XOR:
        return (pvalue){.i = a ^ b};
    default:
        return (pvalue){.i = !a};
    }
}

static pvalue evaluate(const evaluation *e, const kg_pinstr *in) {
    pvalue a[3] = {{.f = 0}, {.f = 0}, {.f = 0}};
    if (in->op == KG_POP_LOAD)
        return look_up(e, in);
    for (int j = 0; j < in->nargs; j++)
        a[j] = operand_value(e, &in->arg[j]);
    if (in->op == KG_POP_WHERE)
        return a[0].i ? a[1] : a[2];
    if (in->op == KG_POP_CAST)
        return cast(in->arg[0].type, in->type, a[0]);
    if (in->op >= KG_POP_EQ && in->op <= KG_POP_GE) {
        int type = in->arg[0].type;
        return (pvalue){.i = compare(in->op, as_number(type, a[0]), as_number(type, a[1]))};
    }
    if (in->type == KG_PT_F32)
        return (pvalue){.f = float_op(in->op, a[0].f, a[1].f)};
    if (in->type == KG_PT_I32)
        return (pvalue){.i = int_op(in->op, a[0].i, in->nargs > 1 ? a[1].i : 0)};
    return bool_op(in->op, a[0].i, in->nargs > 1 ? a[1].i : 0);
}

static int start(evaluation *e, const kg_program *p, const kg_call *call, const int64_t at[4],
                 kg_error *err) {
    for (int i = 0; i < 4; i++)
        if (at[i] < INT32_MIN || at[i] > INT32_MAX)
            return kg_fail(err, KG_EINVAL, "index %lld of a Program is no int32", (long long)at[i]);
    *e = (evaluation){.p = p,
                      .call = call,
                      .b = (int32_t)at[0],
                      .h = (int32_t)at[1],
                      .q = (int32_t)at[2],
                      .kv = (int32_t)at[3]};
    return kg_program_check(p, call, err);
}

static pvalue run(evaluation *e, const kg_psection *s) {
    for (size_t i = 0; i < s->n; i++)
        e->v[i] = evaluate(e, &s->value[i]);
    return operand_value(e, &s->result);
}

static int map(const kg_program *p, const kg_call *call, double value, const int64_t at[4],
               double *out, kg_error *err) {
    evaluation e;
    int rc = start(&e, p, call, at, err);
    if (rc != KG_OK)
        return rc;
    e.score = value;
    *out = run(&e, &p->score).f;
    return KG_OK;
}

int kg_program_score(const kg_program *p, const kg_call *call, double score, int64_t b, int64_t h,
                     int64_t q, int64_t kv, double *out, kg_error *err) {
    if (kg_program_has(p, "SCORE"))
        return map(p, call, score, (const int64_t[4]){b, h, q, kv}, out, err);
    *out = score;
    return KG_OK;
}

int kg_program_epilogue(const kg_program *p, const kg_call *call, double acc, int64_t b, int64_t m,
                        int64_t n, double *out, kg_error *err) {
    if (kg_program_has(p, "EPILOGUE"))
        return map(p, call, acc, (const int64_t[4]){b, 0, m, n}, out, err);
    *out = acc;
    return KG_OK;
}

int kg_program_mask(const kg_program *p, const kg_call *call, int64_t b, int64_t h, int64_t q,
                    int64_t kv, bool *out, kg_error *err) {
    evaluation e;
    if (!p->mask.present) {
        *out = true;
        return KG_OK;
    }
    int rc = start(&e, p, call, (const int64_t[4]){b, h, q, kv}, err);
    if (rc != KG_OK)
        return rc;
    *out = run(&e, &p->mask).i != 0;
    return KG_OK;
}
