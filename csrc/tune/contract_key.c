/* Keys as JSON, and the names of pins, which are hashes of it (docs/formats.md, "Pin"). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "tune/contract.h"
#include "tune/contract_read.h"

static const char *const devices[] = {"cpu", "cuda", NULL};
static const char *const precisions[] = {"native", "tf32", "bf16", NULL};

/* JSON has no infinity and no NaN; as text they stay apart from an absent value. */
static void set_float(kg_json *object, const char *key, double v) {
    if (isfinite(v))
        kg_json_set_double(object, key, v);
    else
        kg_json_set_str(object, key, isnan(v) ? "nan" : v > 0 ? "inf" : "-inf");
}

int kg_read_float(const kg_json *j, const char *at, double *out, kg_error *err) {
    const char *s = NULL;
    if (!kg_json_is_string(j))
        return kg_json_double(j, at, out, err);
    int rc = kg_json_str(j, at, &s, err);
    if (rc < 0)
        return rc;
    if (strcmp(s, "inf") == 0)
        *out = (double)INFINITY;
    else if (strcmp(s, "-inf") == 0)
        *out = -(double)INFINITY;
    else if (strcmp(s, "nan") == 0)
        *out = (double)NAN;
    else
        return kg_fail(err, KG_EFORMAT, "%s is \"%.40s\"; it must be a number, inf, -inf or nan",
                       at, s);
    return KG_OK;
}

static void set_attr(kg_json *object, const char *name, int type, const kg_value *v) {
    if (!v->present) {
        kg_json_set_str(object, name, NULL);
        return;
    }
    if (type == KG_ARG_FLOAT || type == KG_ARG_FLOAT_OPT) {
        set_float(object, name, v->u.f);
    } else if (type == KG_ARG_BOOL) {
        kg_json_set_bool(object, name, v->u.b);
    } else if (type == KG_ARG_INT_LIST) {
        kg_json *list = kg_json_new_array();
        for (size_t i = 0; i < v->u.list.n; i++)
            kg_json_push_int(list, v->u.list.v[i]);
        kg_json_set(object, name, list);
    } else {
        kg_json_set_int(object, name, v->u.i);
    }
}

int kg_read_attr(const kg_op_arg *a, const kg_json *j, const char *at, kg_value *out,
                 kg_error *err) {
    kg_value v;
    memset(&v, 0, sizeof v);
    int rc = KG_OK;
    bool optional = a->type == KG_ARG_INT_OPT || a->type == KG_ARG_FLOAT_OPT;
    v.present = !(optional && kg_json_is_null(j));
    if (!v.present) {
        *out = v;
        return KG_OK;
    }
    if (a->type == KG_ARG_FLOAT || a->type == KG_ARG_FLOAT_OPT) {
        rc = kg_read_float(j, at, &v.u.f, err);
    } else if (a->type == KG_ARG_BOOL) {
        rc = kg_json_bool(j, at, &v.u.b, err);
    } else if (a->type == KG_ARG_INT_LIST) {
        rc = kg_read_array(j, at, 0, KG_MAX_LIST, err);
        v.u.list.n = rc == KG_OK ? kg_json_size(j) : 0;
        for (size_t i = 0; rc == KG_OK && i < v.u.list.n; i++)
            rc = kg_json_int(kg_json_at(j, i), kg_at("%s[%zu]", at, i).text, &v.u.list.v[i], err);
    } else {
        rc = kg_json_int(j, at, &v.u.i, err);
    }
    if (rc == KG_OK)
        *out = v;
    return rc;
}

int kg_read_choice(const kg_json *j, const char *at, const char *const *names, int *out,
                   kg_error *err) {
    const char *s = NULL;
    kg_buf known;
    int rc = kg_json_str(j, at, &s, err);
    if (rc < 0)
        return rc;
    for (int i = 0; names[i] != NULL; i++)
        if (strcmp(s, names[i]) == 0) {
            *out = i;
            return KG_OK;
        }
    kg_buf_init(&known, 300);
    for (int i = 0; names[i] != NULL; i++)
        kg_buf_printf(&known, "%s%s", i > 0 ? ", " : "", names[i]);
    rc = kg_fail(err, KG_EFORMAT, "%s is \"%.40s\"; it may be %s", at, s,
                 known.data != NULL ? known.data : "");
    kg_buf_free(&known);
    return rc;
}

int kg_read_device(const kg_json *object, int *device, int *precision, kg_error *err) {
    const kg_json *j = NULL;
    int rc = kg_need(object, "", "device", &j, err);
    if (rc == KG_OK)
        rc = kg_read_choice(j, "device", devices, device, err);
    if (rc == KG_OK)
        rc = kg_need(object, "", "precision", &j, err);
    return rc < 0 ? rc : kg_read_choice(j, "precision", precisions, precision, err);
}

static void set_tensors(kg_json *root, const kg_key *key) {
    kg_json *dtypes = kg_json_new_array(), *layout = kg_json_new_array();
    for (size_t i = 0; i < key->ntensors; i++) {
        char letter[2] = {key->layout[i], '\0'};
        bool absent = key->layout[i] == KG_LAYOUT_ABSENT;
        kg_json_push_str(dtypes, absent ? NULL : kg_dtype_name(key->dtype[i]));
        kg_json_push_str(layout, letter);
    }
    kg_json_set(root, "dtypes", dtypes);
    kg_json_set(root, "layout", layout);
}

static void set_attrs(kg_json *root, const kg_op *op, const kg_key *key) {
    kg_json *attrs = kg_json_new_object();
    size_t n = 0;
    for (size_t i = 0; i < op->nargs && n < key->nattrs; i++)
        if (kg_arg_is_attr(op->args[i].type) && op->args[i].key) {
            set_attr(attrs, op->args[i].name, key->attr_type[n], &key->attr[n]);
            n++;
        }
    kg_json_set(root, "attrs", attrs);
}

static void set_dims(kg_json *root, const kg_op *op, const kg_key *key) {
    kg_json *dims = kg_json_new_object();
    size_t n = 0;
    for (size_t i = 0; i < op->ndims && n < key->ndims; i++) {
        if (!op->dims[i].key)
            continue;
        if (key->min[n] == key->max[n]) {
            kg_json_set_int(dims, op->dims[i].name, key->min[n]);
        } else {
            kg_json *range = kg_json_new_object();
            kg_json_set_int(range, "min", key->min[n]);
            kg_json_set_int(range, "max", key->max[n]);
            kg_json_set(dims, op->dims[i].name, range);
        }
        n++;
    }
    kg_json_set(root, "dims", dims);
}

/* Absent when nothing is left out, so that names of pins without it stay what they are. */
static void set_skip(kg_json *root, const kg_op *op, const kg_key *key) {
    kg_json *list = key->skip != 0 ? kg_json_new_array() : NULL;
    for (size_t i = 0; list != NULL && i < op->noutputs; i++)
        if (key->skip >> i & 1)
            kg_json_push_str(list, op->outputs[i].name);
    if (list != NULL)
        kg_json_set(root, "skip", list);
}

kg_json *kg_key_to_json(const kg_op *op, const kg_key *key) {
    kg_json *root = kg_json_new_object();
    char hash[33];
    kg_hash128_hex(key->program_hash, hash);
    kg_json_set_str(root, "op", op->name);
    kg_json_set_str(root, "device", devices[key->device == KG_CUDA]);
    kg_json_set_str(root, "precision", precisions[key->precision < 3 ? key->precision : 0]);
    set_tensors(root, key);
    set_attrs(root, op, key);
    kg_json_set_str(root, "program",
                    key->program == KG_PROGRAM_NONE  ? NULL
                    : key->program == KG_PROGRAM_ANY ? "*"
                                                     : hash);
    set_dims(root, op, key);
    set_skip(root, op, key);
    if (kg_json_size(root) == (key->skip != 0 ? 9 : 8))
        return root;
    kg_json_free(root);
    return NULL;
}

static int read_layout(const kg_json *root, const kg_op *op, kg_key *k, kg_error *err) {
    static const char *const letters[] = {"c", "i", "s", "-", NULL};
    const kg_json *dtypes = NULL, *layout = NULL;
    size_t n = 0;
    for (size_t i = 0; i < op->nargs; i++)
        n += kg_arg_is_tensor(op->args[i].type);
    int rc = kg_need(root, "", "dtypes", &dtypes, err);
    if (rc == KG_OK)
        rc = kg_read_array(dtypes, "dtypes", n, n, err);
    if (rc == KG_OK)
        rc = kg_need(root, "", "layout", &layout, err);
    if (rc == KG_OK)
        rc = kg_read_array(layout, "layout", n, n, err);
    for (size_t i = 0; i < n && rc == KG_OK; i++) {
        kg_at_text at = kg_at("dtypes[%zu]", i);
        int letter = 0, dtype = 0;
        rc = kg_read_choice(kg_json_at(layout, i), kg_at("layout[%zu]", i).text, letters, &letter,
                            err);
        if (rc < 0)
            break;
        k->layout[i] = letters[letter][0];
        bool absent = k->layout[i] == KG_LAYOUT_ABSENT,
             null = kg_json_is_null(kg_json_at(dtypes, i));
        if (absent != null)
            rc = kg_fail(err, KG_EFORMAT, "%s must be null exactly where layout is -", at.text);
        else if (!absent)
            rc = kg_read_dtype(kg_json_at(dtypes, i), at.text, &dtype, err);
        k->dtype[i] = (uint8_t)dtype;
        k->ntensors = (uint8_t)(i + 1);
    }
    return rc;
}

static int read_attrs(const kg_json *root, const kg_op *op, kg_key *k, kg_error *err) {
    const char *names[KG_MAX_ARGS + 1] = {0};
    const kg_json *attrs = NULL, *j = NULL;
    int rc = kg_need(root, "", "attrs", &attrs, err);
    for (size_t i = 0; i < op->nargs && rc == KG_OK; i++) {
        const kg_op_arg *a = &op->args[i];
        if (!kg_arg_is_attr(a->type) || !a->key)
            continue;
        names[k->nattrs] = a->name;
        rc = kg_need(attrs, "attrs", a->name, &j, err);
        if (rc == KG_OK)
            rc = kg_read_attr(a, j, kg_at("attrs.%s", a->name).text, &k->attr[k->nattrs], err);
        k->attr_type[k->nattrs++] = (uint8_t)a->type;
    }
    return rc < 0 ? rc : kg_json_only(attrs, "attrs", names, err);
}

static int read_range(const kg_op_dim *d, const kg_json *j, const char *at, kg_key *k,
                      kg_error *err) {
    static const char *const keys[] = {"min", "max", NULL};
    int64_t *min = &k->min[k->ndims], *max = &k->max[k->ndims];
    const kg_json *low = NULL, *high = NULL;
    if (kg_json_is_number(j)) {
        int rc = kg_json_int(j, at, min, err);
        *max = *min;
        return rc;
    }
    if (!kg_json_is_object(j))
        return kg_fail(err, KG_EFORMAT, "%s must be a size or {\"min\", \"max\"}, found %s", at,
                       kg_json_type(j));
    if (!d->dynamic)
        return kg_fail(err, KG_EFORMAT,
                       "%s is a range, but the contract does not list %s as dynamic", at, d->name);
    int rc = kg_json_only(j, at, keys, err);
    if (rc == KG_OK)
        rc = kg_need(j, at, "min", &low, err);
    if (rc == KG_OK)
        rc = kg_json_int(low, kg_at("%s.min", at).text, min, err);
    if (rc == KG_OK)
        rc = kg_need(j, at, "max", &high, err);
    if (rc == KG_OK)
        rc = kg_json_int(high, kg_at("%s.max", at).text, max, err);
    if (rc == KG_OK && (*min >= *max || *min < 0))
        rc = kg_fail(err, KG_EFORMAT, "%s: min %lld must be below max %lld, and not negative", at,
                     (long long)*min, (long long)*max);
    return rc;
}

static int read_dims(const kg_json *root, const kg_op *op, kg_key *k, kg_error *err) {
    const char *names[KG_MAX_DIMS + 1] = {0};
    const kg_json *dims = NULL, *j = NULL;
    int rc = kg_need(root, "", "dims", &dims, err);
    for (size_t i = 0; i < op->ndims && rc == KG_OK; i++) {
        if (!op->dims[i].key)
            continue;
        names[k->ndims] = op->dims[i].name;
        rc = kg_need(dims, "dims", op->dims[i].name, &j, err);
        if (rc == KG_OK)
            rc = read_range(&op->dims[i], j, kg_at("dims.%s", op->dims[i].name).text, k, err);
        k->ndims++;
    }
    return rc < 0 ? rc : kg_json_only(dims, "dims", names, err);
}

static int read_program(const kg_json *root, kg_key *k, kg_error *err) {
    const kg_json *j = NULL;
    const char *s = NULL;
    int rc = kg_need(root, "", "program", &j, err);
    if (rc < 0 || kg_json_is_null(j))
        return rc;
    rc = kg_json_str(j, "program", &s, err);
    if (rc < 0)
        return rc;
    k->program = strcmp(s, "*") == 0 ? KG_PROGRAM_ANY : KG_PROGRAM_HASH;
    if (k->program == KG_PROGRAM_HASH && !kg_hash128_parse(s, &k->program_hash))
        return kg_fail(err, KG_EFORMAT,
                       "program is \"%.40s\"; it must be null, \"*\" or 32 lower-case hex digits",
                       s);
    return KG_OK;
}

static int read_skipped(const kg_op *op, const kg_json *j, const char *at, uint32_t *out,
                        kg_error *err) {
    const char *s = NULL;
    int rc = kg_json_str(j, at, &s, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < op->noutputs; i++)
        if (op->outputs[i].optional && strcmp(op->outputs[i].name, s) == 0) {
            if (*out >> i & 1)
                return kg_fail(err, KG_EFORMAT, "%s is \"%.60s\" once more", at, s);
            *out |= 1U << i;
            return KG_OK;
        }
    return kg_fail(err, KG_EFORMAT, "%s is \"%.60s\"; it must be an optional output of %s", at, s,
                   op->name);
}

int kg_read_skip(const kg_op *op, const kg_json *object, uint32_t *out, kg_error *err) {
    const kg_json *list = kg_json_get(object, "skip");
    *out = 0;
    if (list == NULL)
        return KG_OK;
    int rc = kg_read_array(list, "skip", 1, KG_MAX_OUTPUTS, err);
    for (size_t i = 0; rc == KG_OK && i < kg_json_size(list); i++)
        rc = read_skipped(op, kg_json_at(list, i), kg_at("skip[%zu]", i).text, out, err);
    return rc;
}

static int read_key(const kg_op *op, const kg_json *root, kg_key *k, kg_error *err) {
    static const char *const keys[] = {"op",    "device",  "precision", "dtypes", "layout",
                                       "attrs", "program", "dims",      "skip",   NULL};
    const kg_json *j = NULL;
    const char *s = NULL;
    int device = 0, precision = 0;
    uint32_t skip = 0;
    int rc = kg_json_only(root, "key", keys, err);
    if (rc == KG_OK)
        rc = kg_need(root, "", "op", &j, err);
    if (rc == KG_OK)
        rc = kg_json_str(j, "op", &s, err);
    if (rc == KG_OK && strcmp(s, op->name) != 0)
        rc = kg_fail(err, KG_EFORMAT, "op is \"%.60s\", but the contract is that of %s", s,
                     op->name);
    if (rc == KG_OK)
        rc = kg_read_device(root, &device, &precision, err);
    k->device = (uint8_t)device;
    k->precision = (uint8_t)precision;
    if (rc == KG_OK)
        rc = read_layout(root, op, k, err);
    if (rc == KG_OK)
        rc = read_attrs(root, op, k, err);
    if (rc == KG_OK)
        rc = read_program(root, k, err);
    if (rc == KG_OK)
        rc = kg_read_skip(op, root, &skip, err);
    k->skip = (uint8_t)skip;
    return rc < 0 ? rc : read_dims(root, op, k, err);
}

int kg_key_from_json(const kg_op *op, const kg_json *json, const char *what, kg_key *out,
                     kg_error *err) {
    kg_key k;
    memset(&k, 0, sizeof k);
    int rc = read_key(op, json, &k, err);
    if (rc < 0)
        return kg_fail_prefix(err, rc, "%s: key", what);
    *out = k;
    return KG_OK;
}

int kg_key_hash(const kg_op *op, const kg_key *key, char hash[33], kg_error *err) {
    kg_json *root = kg_key_to_json(op, key);
    char full[65];
    kg_buf text;
    if (root == NULL)
        return kg_fail(err, KG_ENOMEM, "key of %s: out of memory", op->name);
    kg_buf_init(&text, 0);
    kg_json_canonical(root, &text);
    int rc = kg_buf_check(&text, "key", err);
    if (rc == KG_OK) {
        kg_sha256_hex(text.data, text.len, full);
        memcpy(hash, full, 32);
        hash[32] = '\0';
    }
    kg_json_free(root);
    kg_buf_free(&text);
    return rc;
}
