/* A Case into a kg_case (docs/formats.md, "Case"): one call of an Op without its data, how its
 * inputs are drawn, and the key that its exact pin has. Opens no file: those that fills name lie
 * beside the Case and are the judge's to read. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tune/contract.h"
#include "tune/contract_read.h"

typedef struct reader {
    const kg_op *op;
    kg_case *c;
    kg_error *err;
} reader;

static bool is_real(int dtype) {
    return dtype == KG_F32 || dtype == KG_F64 || dtype == KG_F16 || dtype == KG_BF16;
}

/* The values that an integer dtype holds. */
static void int_limits(int dtype, double *low, double *high) {
    static const double limits[KG_DTYPE_COUNT][2] = {
        [KG_I8] = {-128, 127},
        [KG_U8] = {0, 255},
        [KG_I16] = {-32768, 32767},
        [KG_I32] = {-2147483648.0, 2147483647.0},
        [KG_I64] = {-9007199254740992.0, 9007199254740992.0},
        [KG_BOOL] = {0, 1}};
    *low = is_real(dtype) ? -9007199254740992.0 : limits[dtype][0];
    *high = is_real(dtype) ? 9007199254740992.0 : limits[dtype][1];
}

static int read_pair(const kg_json *j, const char *at, const char *first, const char *second,
                     kg_fill *out, kg_error *err) {
    const char *keys[] = {"kind", first, second, NULL};
    const kg_json *a = NULL, *b = NULL;
    int rc = kg_json_only(j, at, keys, err);
    if (rc == KG_OK)
        rc = kg_need(j, at, first, &a, err);
    if (rc == KG_OK)
        rc = kg_json_double(a, kg_at("%s.%s", at, first).text, &out->a, err);
    if (rc == KG_OK)
        rc = kg_need(j, at, second, &b, err);
    return rc < 0 ? rc : kg_json_double(b, kg_at("%s.%s", at, second).text, &out->b, err);
}

static int read_integers(const kg_json *j, const char *at, int dtype, kg_fill *out, kg_error *err) {
    double low = 0, high = 0;
    int_limits(dtype, &low, &high);
    int rc = read_pair(j, at, "low", "high", out, err);
    if (rc < 0)
        return rc;
    bool whole = floor(out->a) >= out->a && floor(out->b) >= out->b;
    if (!whole || out->a > out->b || out->a < low || out->b > high)
        return kg_fail(err, KG_EFORMAT,
                       "%s: low %.17g and high %.17g must be integers of %s, low not above high",
                       at, out->a, out->b, kg_dtype_name(dtype));
    return KG_OK;
}

static int read_values(const kg_json *j, const char *at, kg_fill *out, kg_error *err) {
    static const char *const keys[] = {"kind", "file", NULL};
    const kg_json *file = NULL;
    kg_at_text here = kg_at("%s.file", at);
    int rc = kg_json_only(j, at, keys, err);
    if (rc == KG_OK)
        rc = kg_need(j, at, "file", &file, err);
    if (rc == KG_OK)
        rc = kg_read_text(file, here.text, &out->file, err);
    if (rc == KG_OK && (*out->file == '\0' || *out->file == '.' || strchr(out->file, '/') != NULL))
        rc = kg_fail(err, KG_EFORMAT,
                     "%s is \"%.60s\"; it must be the name of a file beside the Case", here.text,
                     out->file);
    return rc;
}

static int read_fill(const kg_json *j, const char *at, int dtype, kg_fill *out, kg_error *err) {
    static const char *const kinds[] = {"normal", "uniform", "integers", "values", NULL};
    const kg_json *kind = NULL;
    int k = 0, rc = kg_read_object(j, at, err);
    if (rc == KG_OK)
        rc = kg_need(j, at, "kind", &kind, err);
    if (rc == KG_OK)
        rc = kg_read_choice(kind, kg_at("%s.kind", at).text, kinds, &k, err);
    if (rc < 0)
        return rc;
    out->kind = (kg_fill_kind)k;
    if (k == KG_FILL_VALUES)
        return read_values(j, at, out, err);
    if (k == KG_FILL_INTEGERS)
        return read_integers(j, at, dtype, out, err);
    if (!is_real(dtype))
        return kg_fail(err, KG_EFORMAT,
                       "%s.kind is %s, but the dtype is %s: say integers or values", at, kinds[k],
                       kg_dtype_name(dtype));
    if (k == KG_FILL_UNIFORM) {
        rc = read_pair(j, at, "low", "high", out, err);
        if (rc == KG_OK && out->a > out->b)
            rc = kg_fail(err, KG_EFORMAT, "%s: low %.9g is above high %.9g", at, out->a, out->b);
        return rc;
    }
    rc = read_pair(j, at, "mean", "std", out, err);
    if (rc == KG_OK && out->b < 0)
        rc = kg_fail(err, KG_EFORMAT, "%s.std is %.9g; it must not be negative", at, out->b);
    return rc;
}

static int read_numbers(const kg_json *object, const char *at, const char *key, size_t min,
                        size_t max, int64_t out[KG_MAX_RANK], size_t *n, kg_error *err) {
    const kg_json *j = NULL;
    kg_at_text here = kg_at("%s.%s", at, key);
    int rc = kg_need(object, at, key, &j, err);
    if (rc == KG_OK)
        rc = kg_read_array(j, here.text, min, max, err);
    for (size_t i = 0; rc == KG_OK && i < kg_json_size(j); i++) {
        rc = kg_json_int(kg_json_at(j, i), kg_at("%s[%zu]", here.text, i).text, &out[i], err);
        if (rc == KG_OK && out[i] < 0)
            rc = kg_fail(err, KG_EFORMAT, "%s[%zu] is %lld; it must not be negative", here.text, i,
                         (long long)out[i]);
    }
    *n = kg_json_size(j);
    return rc;
}

/* A judge allocates what the strides span: that must be countable. */
static int check_extent(const kg_tensor *t, const char *at, kg_error *err) {
    int64_t span = 0, part = 0, bytes = 0;
    bool over = false;
    if (kg_tensor_numel(t) == 0)
        return KG_OK;
    for (int i = 0; i < t->ndim; i++)
        over = over || __builtin_mul_overflow(t->size[i] - 1, t->stride[i], &part) ||
               __builtin_add_overflow(span, part, &span);
    over = over || kg_tensor_numel(t) == INT64_MAX || span == INT64_MAX ||
           __builtin_mul_overflow(span + 1, (int64_t)kg_dtype_size(t->dtype), &bytes);
    return over ? kg_fail(err, KG_EOVERFLOW, "%s spans more bytes than 64 bits can count", at)
                : KG_OK;
}

static int read_align(const kg_json *object, const char *at, int32_t *out, kg_error *err) {
    const kg_json *j = NULL;
    int64_t v = 0;
    int rc = kg_need(object, at, "align", &j, err);
    if (rc == KG_OK)
        rc = kg_json_int(j, kg_at("%s.align", at).text, &v, err);
    if (rc == KG_OK && (v < 1 || v > 256 || (v & (v - 1)) != 0))
        rc = kg_fail(err, KG_EFORMAT, "%s.align is %lld; it must be a power of two up to 256", at,
                     (long long)v);
    if (rc == KG_OK)
        *out = (int32_t)v;
    return rc;
}

static int read_tensor(const kg_json *j, const char *at, kg_tensor *t, int32_t *align,
                       kg_fill *fill, kg_error *err) {
    static const char *const keys[] = {"dtype", "shape", "stride", "align", "fill", NULL};
    const kg_json *dtype = NULL, *f = NULL;
    size_t n = 0;
    int number = 0;
    int rc = kg_read_object(j, at, err);
    if (rc == KG_OK)
        rc = kg_json_only(j, at, keys, err);
    if (rc == KG_OK)
        rc = kg_need(j, at, "dtype", &dtype, err);
    if (rc == KG_OK)
        rc = kg_read_dtype(dtype, kg_at("%s.dtype", at).text, &number, err);
    if (rc == KG_OK)
        rc = read_numbers(j, at, "shape", 0, KG_MAX_RANK, t->size, &n, err);
    t->dtype = number;
    t->ndim = (int32_t)n;
    if (rc == KG_OK)
        rc = read_numbers(j, at, "stride", n, n, t->stride, &n, err);
    if (rc == KG_OK)
        rc = check_extent(t, at, err);
    if (rc == KG_OK)
        rc = read_align(j, at, align, err);
    if (rc == KG_OK)
        rc = kg_need(j, at, "fill", &f, err);
    return rc < 0 ? rc : read_fill(f, kg_at("%s.fill", at).text, number, fill, err);
}

static int read_arg(reader *r, const kg_json *args, size_t i) {
    const kg_op_arg *a = &r->op->args[i];
    kg_call *call = &r->c->call;
    kg_at_text at = kg_at("args.%s", a->name);
    const kg_json *j = kg_json_get(args, a->name);
    if (!kg_arg_is_tensor(a->type) && !kg_arg_is_attr(a->type))
        return KG_OK;
    if (j == NULL)
        return kg_fail(r->err, KG_EFORMAT, "%s is missing; an absent optional is null", at.text);
    if (kg_arg_is_attr(a->type))
        return kg_read_attr(a, j, at.text, &call->args[i], r->err);
    if (kg_json_is_null(j) && a->type == KG_ARG_TENSOR_OPT)
        return KG_OK;
    call->args[i].present = true;
    int rc = read_tensor(j, at.text, &call->args[i].u.t, &r->c->align[i], &r->c->fill[i], r->err);
    call->align[i] = r->c->align[i];
    return rc;
}

static int read_args(reader *r, const kg_json *root) {
    const char *names[KG_MAX_ARGS + 1] = {0};
    const kg_json *args = NULL;
    size_t n = 0;
    int rc = kg_need(root, "", "args", &args, r->err);
    r->c->call.nargs = r->op->nargs;
    for (size_t i = 0; i < r->op->nargs; i++)
        if (kg_arg_is_tensor(r->op->args[i].type) || kg_arg_is_attr(r->op->args[i].type))
            names[n++] = r->op->args[i].name;
    if (rc == KG_OK)
        rc = kg_json_only(args, "args", names, r->err);
    for (size_t i = 0; i < r->op->nargs && rc == KG_OK; i++)
        rc = read_arg(r, args, i);
    return rc;
}

static int read_captured(reader *r, const kg_json *program) {
    const kg_json *j = NULL;
    kg_case *c = r->c;
    int32_t align = 0;
    int rc = kg_need(program, "program", "captured", &j, r->err);
    if (rc == KG_OK)
        rc = kg_read_array(j, "program.captured", 0, KG_MAX_CAPTURED, r->err);
    for (size_t i = 0; rc == KG_OK && i < kg_json_size(j); i++) {
        c->call.ncaptured = i + 1;
        rc = read_tensor(kg_json_at(j, i), kg_at("program.captured[%zu]", i).text,
                         &c->call.captured[i], &align, &c->captured_fill[i], r->err);
    }
    return rc;
}

static int read_scalars(reader *r, const kg_json *program) {
    const kg_json *j = NULL;
    kg_call *call = &r->c->call;
    int rc = kg_need(program, "program", "scalars", &j, r->err);
    if (rc == KG_OK)
        rc = kg_read_array(j, "program.scalars", 0, KG_MAX_SCALARS, r->err);
    for (size_t i = 0; rc == KG_OK && i < kg_json_size(j); i++) {
        rc = kg_read_float(kg_json_at(j, i), kg_at("program.scalars[%zu]", i).text,
                           &call->scalars[i], r->err);
        call->nscalars = i + 1;
    }
    return rc;
}

/* The arguments of the Op that a Program travels in. */
static void mark_program_args(reader *r) {
    for (size_t i = 0; i < r->op->nargs; i++) {
        kg_arg_type type = r->op->args[i].type;
        if (kg_arg_is_tensor(type) || kg_arg_is_attr(type))
            continue;
        r->c->call.args[i].present = true;
        if (type == KG_ARG_STR)
            r->c->call.args[i].u.s = kg_program_text(r->c->program);
    }
}

static int read_program(reader *r, const kg_json *root) {
    static const char *const keys[] = {"text", "captured", "scalars", NULL};
    const kg_json *j = kg_json_get(root, "program"), *text = NULL;
    const char *s = NULL;
    if (j == NULL || kg_json_is_null(j))
        return KG_OK;
    if (r->op->nholes == 0)
        return kg_fail(r->err, KG_EFORMAT, "program: %s has no holes", r->op->name);
    int rc = kg_json_only(j, "program", keys, r->err);
    if (rc == KG_OK)
        rc = kg_need(j, "program", "text", &text, r->err);
    if (rc == KG_OK)
        rc = kg_json_str(text, "program.text", &s, r->err);
    if (rc == KG_OK && ((rc = kg_program_parse(s, strlen(s), &r->c->program, r->err)) < 0 ||
                        (rc = kg_program_fits(r->c->program, r->op, r->err)) < 0))
        kg_fail_prefix(r->err, rc, "program.text");
    if (rc == KG_OK)
        rc = read_captured(r, j);
    if (rc == KG_OK)
        rc = read_scalars(r, j);
    if (rc < 0)
        return rc;
    r->c->call.program = r->c->program;
    mark_program_args(r);
    rc = kg_program_check(r->c->program, &r->c->call, r->err);
    return rc < 0 ? kg_fail_prefix(r->err, rc, "program") : KG_OK;
}

static int read_head(reader *r, const kg_json *root) {
    static const char *const keys[] = {"format",  "op",    "device", "precision", "args",
                                       "program", "count", "skip",   NULL};
    const kg_json *j = NULL;
    const char *s = NULL;
    int rc = kg_json_only(root, "case", keys, r->err);
    if (rc == KG_OK)
        rc = kg_need(root, "", "op", &j, r->err);
    if (rc == KG_OK)
        rc = kg_json_str(j, "op", &s, r->err);
    if (rc == KG_OK && strcmp(s, r->op->name) != 0)
        rc = kg_fail(r->err, KG_EFORMAT, "op is \"%.60s\", but the contract is that of %s", s,
                     r->op->name);
    if (rc == KG_OK)
        rc = kg_read_device(root, &r->c->call.device, &r->c->call.precision, r->err);
    if (rc == KG_OK)
        rc = kg_read_skip(r->op, root, &r->c->call.skip_outputs, r->err);
    if (rc == KG_OK)
        rc = kg_need(root, "", "count", &j, r->err);
    if (rc == KG_OK)
        rc = kg_json_int(j, "count", &r->c->count, r->err);
    if (rc == KG_OK && r->c->count < 1)
        rc = kg_fail(r->err, KG_EFORMAT, "count is %lld; it must be at least 1",
                     (long long)r->c->count);
    return rc;
}

static int read_case(reader *r, const kg_json *root) {
    kg_buf text;
    int rc = read_head(r, root);
    if (rc == KG_OK)
        rc = read_args(r, root);
    if (rc == KG_OK)
        rc = read_program(r, root);
    if (rc == KG_OK)
        rc = kg_op_dims(r->op, &r->c->call, &r->c->dims, r->err);
    if (rc == KG_OK)
        rc = kg_key_of_call(r->op, &r->c->call, &r->c->dims, &r->c->key, r->err);
    if (rc == KG_OK)
        rc = kg_key_hash(r->op, &r->c->key, r->c->hash, r->err);
    if (rc < 0)
        return rc;
    kg_buf_init(&text, 0);
    kg_json_canonical(root, &text);
    rc = kg_buf_check(&text, "canonical text", r->err);
    r->c->text = rc == KG_OK ? kg_buf_take(&text) : NULL;
    kg_buf_free(&text);
    return rc;
}

int kg_case_from_json(const char *text, size_t n, const char *what, const kg_op *op, kg_case **out,
                      kg_error *err) {
    kg_json *root = NULL;
    int rc = kg_json_parse(text, n, what, &root, err);
    if (rc < 0)
        return rc;
    reader r = {.op = op, .c = calloc(1, sizeof *r.c), .err = err};
    rc = r.c == NULL ? kg_fail(err, KG_ENOMEM, "%s: out of memory", what)
                     : kg_json_format(root, what, 1, err);
    if (rc == KG_OK && (rc = read_case(&r, root)) < 0)
        kg_fail_prefix(err, rc, "%s", what);
    kg_json_free(root);
    if (rc < 0) {
        kg_case_free(r.c);
        return rc;
    }
    *out = r.c;
    return KG_OK;
}

void kg_case_free(kg_case *c) {
    if (c == NULL)
        return;
    for (size_t i = 0; i < KG_MAX_ARGS; i++)
        free(c->fill[i].file);
    for (size_t i = 0; i < KG_MAX_CAPTURED; i++)
        free(c->captured_fill[i].file);
    kg_program_free(c->program);
    free(c->text);
    free(c);
}
