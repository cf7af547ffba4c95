/* Keys of calls and pins, and which pin may serve which call. Compares plain numbers: no names, no
 * text, but in the reason that a person asked for. */
#include "runtime/signature.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "runtime/flat.h"
#include "runtime/program.h"

#define WHY_SIZE 256

bool kg_hash128_parse(const char *text, kg_hash128 *out) {
    uint64_t half[2] = {0, 0};
    for (size_t i = 0; i < 32; i++) {
        char c = text[i];
        uint64_t v = 0;
        if (c >= '0' && c <= '9')
            v = (uint64_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            v = (uint64_t)(c - 'a') + 10;
        else
            return false;
        half[i / 16] = half[i / 16] << 4 | v;
    }
    if (text[32] != '\0')
        return false;
    *out = (kg_hash128){.hi = half[0], .lo = half[1]};
    return true;
}

static char layout_of(const kg_value *v) {
    const kg_tensor *t = &v->u.t;
    if (!v->present)
        return KG_LAYOUT_ABSENT;
    if (kg_tensor_contiguous(t))
        return KG_LAYOUT_CONTIGUOUS;
    return t->stride[t->ndim - 1] == 1 || t->size[t->ndim - 1] == 1 ? KG_LAYOUT_INNER
                                                                    : KG_LAYOUT_STRIDED;
}

/* Only the member that the type uses, so that nothing undefined is hashed or compared. */
static void take_attr(kg_key *k, const kg_op_arg *a, const kg_value *v) {
    kg_value *out = &k->attr[k->nattrs];
    k->attr_type[k->nattrs++] = (uint8_t)a->type;
    out->present = v->present;
    if (!v->present)
        return;
    switch (a->type) {
    case KG_ARG_FLOAT:
    case KG_ARG_FLOAT_OPT:
        out->u.f = v->u.f;
        break;
    case KG_ARG_BOOL:
        out->u.b = v->u.b;
        break;
    case KG_ARG_INT_LIST:
        out->u.list.n = v->u.list.n < KG_MAX_LIST ? v->u.list.n : KG_MAX_LIST;
        memcpy(out->u.list.v, v->u.list.v, out->u.list.n * sizeof *out->u.list.v);
        break;
    default:
        out->u.i = v->u.i;
    }
}

int kg_key_of_call(const kg_op *op, const kg_call *call, const kg_dims *dims, kg_key *out,
                   kg_error *err) {
    kg_key k;
    memset(&k, 0, sizeof k);
    k.device = (uint8_t)call->device;
    k.precision = (uint8_t)call->precision;
    for (size_t i = 0; i < op->noutputs; i++)
        if (op->outputs[i].optional)
            k.skip |= (uint8_t)(call->skip_outputs & 1U << i);
    if (call->program != NULL) {
        k.program = KG_PROGRAM_HASH;
        if (!kg_hash128_parse(kg_program_hash(call->program), &k.program_hash))
            return kg_fail(err, KG_EFORMAT, "%s: the Program has no hash", op->name);
    }
    for (size_t i = 0; i < op->nargs; i++) {
        const kg_value *v = &call->args[i];
        if (kg_arg_is_attr(op->args[i].type) && op->args[i].key)
            take_attr(&k, &op->args[i], v);
        if (!kg_arg_is_tensor(op->args[i].type))
            continue;
        k.layout[k.ntensors] = layout_of(v);
        k.dtype[k.ntensors++] = v->present ? (uint8_t)v->u.t.dtype : 0;
    }
    for (size_t i = 0; i < op->ndims; i++)
        if (op->dims[i].key) {
            k.min[k.ndims] = k.max[k.ndims] = dims->value[i];
            k.ndims++;
        }
    *out = k;
    return KG_OK;
}

bool kg_key_exact(const kg_key *k) {
    for (size_t i = 0; i < k->ndims; i++)
        if (k->min[i] != k->max[i])
            return false;
    return k->program != KG_PROGRAM_ANY;
}

/* By bits: the text of a key keeps -0.0 and NaN apart from 0.0, and so must this. */
static bool same_attr(const kg_key *a, const kg_key *b, size_t i) {
    const kg_value *x = &a->attr[i], *y = &b->attr[i];
    if (a->attr_type[i] != b->attr_type[i] || x->present != y->present)
        return false;
    if (!x->present)
        return true;
    switch (a->attr_type[i]) {
    case KG_ARG_FLOAT:
    case KG_ARG_FLOAT_OPT:
        return memcmp(&x->u.f, &y->u.f, sizeof x->u.f) == 0 || (isnan(x->u.f) && isnan(y->u.f));
    case KG_ARG_BOOL:
        return x->u.b == y->u.b;
    case KG_ARG_INT_LIST:
        return x->u.list.n == y->u.list.n &&
               memcmp(x->u.list.v, y->u.list.v, x->u.list.n * sizeof *x->u.list.v) == 0;
    default:
        return x->u.i == y->u.i;
    }
}

static bool same_shape(const kg_key *a, const kg_key *b) {
    return a->ntensors == b->ntensors && a->nattrs == b->nattrs && a->ndims == b->ndims;
}

static bool same_hash(const kg_key *a, const kg_key *b) {
    return a->program_hash.lo == b->program_hash.lo && a->program_hash.hi == b->program_hash.hi;
}

bool kg_key_equal(const kg_key *a, const kg_key *b) {
    if (a->device != b->device || a->precision != b->precision || a->program != b->program ||
        a->skip != b->skip || !same_shape(a, b) ||
        (a->program == KG_PROGRAM_HASH && !same_hash(a, b)))
        return false;
    for (size_t i = 0; i < a->ntensors; i++)
        if (a->dtype[i] != b->dtype[i] || a->layout[i] != b->layout[i])
            return false;
    for (size_t i = 0; i < a->nattrs; i++)
        if (!same_attr(a, b, i))
            return false;
    for (size_t i = 0; i < a->ndims; i++)
        if (a->min[i] != b->min[i] || a->max[i] != b->max[i])
            return false;
    return true;
}

static bool differs(char *why, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Always false, so that a mismatch is one statement. */
static bool differs(char *why, const char *fmt, ...) {
    va_list ap;
    if (why == NULL)
        return false;
    va_start(ap, fmt);
    vsnprintf(why, WHY_SIZE, fmt, ap);
    va_end(ap);
    return false;
}

/* The name of the nth argument or dim of a kind; off the fast path. */
static const char *tensor_name(const kg_op *op, size_t n) {
    for (size_t i = 0; i < op->nargs; i++)
        if (kg_arg_is_tensor(op->args[i].type) && n-- == 0)
            return op->args[i].name;
    return "?";
}

static const char *attr_name(const kg_op *op, size_t n) {
    for (size_t i = 0; i < op->nargs; i++)
        if (kg_arg_is_attr(op->args[i].type) && op->args[i].key && n-- == 0)
            return op->args[i].name;
    return "?";
}

static const char *dim_name(const kg_op *op, size_t n) {
    for (size_t i = 0; i < op->ndims; i++)
        if (op->dims[i].key && n-- == 0)
            return op->dims[i].name;
    return "?";
}

static const char *attr_text(const kg_key *k, size_t i, char out[64]) {
    const kg_value *v = &k->attr[i];
    size_t at = 0;
    switch (k->attr_type[i]) {
    case KG_ARG_FLOAT:
    case KG_ARG_FLOAT_OPT:
        snprintf(out, 64, "%.9g", v->u.f);
        break;
    case KG_ARG_BOOL:
        snprintf(out, 64, "%s", v->u.b ? "true" : "false");
        break;
    case KG_ARG_INT_LIST:
        out[0] = '\0';
        for (size_t n = 0; n < v->u.list.n && at < 50; n++)
            at += (size_t)snprintf(out + at, 64 - at, "%s%.0f", n > 0 ? " " : "",
                                   (double)v->u.list.v[n]);
        break;
    default:
        snprintf(out, 64, "%lld", (long long)v->u.i);
    }
    return v->present ? out : "None";
}

static bool match_head(const kg_op *op, const kg_key *pin, const kg_key *call, char *why) {
    static const char *const precisions[] = {"native", "tf32", "bf16"};
    if (pin->device != call->device)
        return differs(why, "device is %s, the pin has %s", call->device ? "cuda" : "cpu",
                       pin->device ? "cuda" : "cpu");
    if (pin->precision > call->precision)
        return differs(why, "precision is %s, the pin has %s",
                       precisions[call->precision < 3 ? call->precision : 0],
                       precisions[pin->precision < 3 ? pin->precision : 0]);
    for (size_t i = 0; i < op->noutputs; i++)
        if ((pin->skip & ~call->skip) >> i & 1)
            return differs(why, "%s is wanted, the pin leaves it out", op->outputs[i].name);
    if (pin->program == KG_PROGRAM_ANY)
        return call->program != KG_PROGRAM_NONE ||
               differs(why, "program: the call has none, the pin serves calls that have one");
    if (pin->program != call->program)
        return differs(why, "program: the call has %s, the pin %s",
                       call->program == KG_PROGRAM_NONE ? "none" : "one",
                       pin->program == KG_PROGRAM_NONE ? "none" : "one");
    if (pin->program == KG_PROGRAM_HASH && !same_hash(pin, call)) {
        char a[33], b[33];
        kg_hash128_hex(call->program_hash, a);
        kg_hash128_hex(pin->program_hash, b);
        return differs(why, "program is %.12s, the pin has %.12s", a, b);
    }
    return true;
}

static bool layout_fits(char pin, char call) {
    if (pin == call)
        return true;
    if (pin == KG_LAYOUT_ABSENT || call == KG_LAYOUT_ABSENT)
        return false;
    return pin == KG_LAYOUT_STRIDED || (pin == KG_LAYOUT_INNER && call == KG_LAYOUT_CONTIGUOUS);
}

static bool match_tensors(const kg_op *op, const kg_key *pin, const kg_key *call, char *why) {
    for (size_t i = 0; i < pin->ntensors; i++) {
        if (!layout_fits(pin->layout[i], call->layout[i]))
            return differs(why, "layout of %s is %c, the pin has %c", tensor_name(op, i),
                           call->layout[i], pin->layout[i]);
        if (pin->layout[i] != KG_LAYOUT_ABSENT && pin->dtype[i] != call->dtype[i])
            return differs(why, "dtype of %s is %s, the pin has %s", tensor_name(op, i),
                           kg_dtype_name(call->dtype[i]), kg_dtype_name(pin->dtype[i]));
    }
    return true;
}

bool kg_key_match(const kg_op *op, const kg_key *pin, const kg_key *call, char *why) {
    char a[64], b[64];
    if (!same_shape(pin, call))
        return differs(why, "the pin is of another contract");
    if (!match_head(op, pin, call, why) || !match_tensors(op, pin, call, why))
        return false;
    for (size_t i = 0; i < pin->nattrs; i++)
        if (!same_attr(pin, call, i))
            return differs(why, "attrs.%s is %s, the pin has %s", attr_name(op, i),
                           attr_text(call, i, a), attr_text(pin, i, b));
    for (size_t i = 0; i < pin->ndims; i++) {
        long long v = call->min[i], min = pin->min[i], max = pin->max[i];
        if (v >= min && v <= max)
            continue;
        if (min == max)
            return differs(why, "dims.%s is %lld, the pin has %lld", dim_name(op, i), v, min);
        return differs(why, "dims.%s is %lld, the pin has %lld..%lld", dim_name(op, i), v, min,
                       max);
    }
    return true;
}

static double log_size(int64_t n) {
    return log2(n < 1 ? 1.0 : (double)n);
}

double kg_key_distance(const kg_key *pin, const kg_key *call) {
    double sum = 0;
    for (size_t i = 0; i < pin->ndims && i < call->ndims; i++)
        if (pin->min[i] != pin->max[i])
            sum +=
                fabs(log_size(call->min[i]) - (log_size(pin->min[i]) + log_size(pin->max[i])) / 2);
    return sum;
}

static void put_attr(kg_buf *out, const kg_key *k, size_t i) {
    const kg_value *v = &k->attr[i];
    kg_put_u8(out, k->attr_type[i]);
    kg_put_u8(out, v->present);
    if (!v->present)
        return;
    switch (k->attr_type[i]) {
    case KG_ARG_FLOAT:
    case KG_ARG_FLOAT_OPT:
        kg_put_f64(out, v->u.f);
        break;
    case KG_ARG_BOOL:
        kg_put_u8(out, v->u.b);
        break;
    case KG_ARG_INT_LIST:
        kg_put_u32(out, (uint32_t)v->u.list.n);
        for (size_t n = 0; n < v->u.list.n; n++)
            kg_put_i64(out, v->u.list.v[n]);
        break;
    default:
        kg_put_i64(out, v->u.i);
    }
}

int kg_key_write(const kg_key *k, kg_buf *out) {
    kg_put_u8(out, k->device);
    kg_put_u8(out, k->precision);
    kg_put_u8(out, k->program);
    kg_put_u8(out, k->skip);
    kg_put_u64(out, k->program_hash.lo);
    kg_put_u64(out, k->program_hash.hi);
    kg_put_u32(out, k->ntensors);
    for (size_t i = 0; i < k->ntensors; i++) {
        kg_put_u8(out, k->dtype[i]);
        kg_put_u8(out, (uint8_t)k->layout[i]);
    }
    kg_put_u32(out, k->nattrs);
    for (size_t i = 0; i < k->nattrs; i++)
        put_attr(out, k, i);
    kg_put_u32(out, k->ndims);
    for (size_t i = 0; i < k->ndims; i++) {
        kg_put_i64(out, k->min[i]);
        kg_put_i64(out, k->max[i]);
    }
    return out->status;
}

static void need(kg_reader *r, bool holds) {
    if (r->status == KG_OK && !holds)
        r->status = KG_EFORMAT;
}

static void get_attr(kg_reader *r, kg_key *k, size_t i) {
    kg_value *v = &k->attr[i];
    k->attr_type[i] = kg_get_u8(r);
    need(r, kg_arg_is_attr((kg_arg_type)k->attr_type[i]));
    v->present = kg_get_u8(r) != 0;
    if (!v->present || r->status < 0)
        return;
    switch (k->attr_type[i]) {
    case KG_ARG_FLOAT:
    case KG_ARG_FLOAT_OPT:
        v->u.f = kg_get_f64(r);
        break;
    case KG_ARG_BOOL:
        v->u.b = kg_get_u8(r) != 0;
        break;
    case KG_ARG_INT_LIST:
        v->u.list.n = kg_flat_count(r, KG_MAX_LIST);
        for (size_t n = 0; n < v->u.list.n; n++)
            v->u.list.v[n] = kg_get_i64(r);
        break;
    default:
        v->u.i = kg_get_i64(r);
    }
}

static void get_key(kg_reader *r, kg_key *k) {
    k->device = kg_get_u8(r);
    k->precision = kg_get_u8(r);
    k->program = kg_get_u8(r);
    k->skip = kg_get_u8(r);
    need(r, k->device <= KG_CUDA && k->precision <= KG_PREC_BF16 && k->program <= KG_PROGRAM_ANY);
    k->program_hash.lo = kg_get_u64(r);
    k->program_hash.hi = kg_get_u64(r);
    k->ntensors = (uint8_t)kg_flat_count(r, KG_MAX_ARGS);
    for (size_t i = 0; i < k->ntensors; i++) {
        k->dtype[i] = kg_get_u8(r);
        k->layout[i] = (char)kg_get_u8(r);
        need(r, k->dtype[i] < KG_DTYPE_COUNT && k->layout[i] != '\0' &&
                    strchr("-cis", k->layout[i]) != NULL);
    }
    k->nattrs = (uint8_t)kg_flat_count(r, KG_MAX_ARGS);
    for (size_t i = 0; i < k->nattrs && r->status == KG_OK; i++)
        get_attr(r, k, i);
    k->ndims = (uint8_t)kg_flat_count(r, KG_MAX_DIMS);
    for (size_t i = 0; i < k->ndims; i++) {
        k->min[i] = kg_get_i64(r);
        k->max[i] = kg_get_i64(r);
        need(r, k->min[i] <= k->max[i]);
    }
}

int kg_key_read(kg_reader *in, kg_key *out, kg_error *err) {
    kg_key k;
    memset(&k, 0, sizeof k);
    get_key(in, &k);
    if (in->status < 0)
        return kg_flat_fail(in, "key", err);
    *out = k;
    return KG_OK;
}
