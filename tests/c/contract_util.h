/* Contracts, plans and calls for the tests of the contract core. */
#ifndef KG_TEST_CONTRACT_UTIL_H
#define KG_TEST_CONTRACT_UTIL_H

#include "base/fs.h"
#include "test.h"
#include "tune/contract.h"

/* The text of a file of the repository; the caller's. */
static inline char *repo_text(const char *path) {
    kg_buf b;
    kg_error err = {0};
    char full[1024];
    snprintf(full, sizeof full, "%s/%s", KGEN_SOURCE_DIR, path);
    kg_buf_init(&b, 0);
    CHECK_OK(kg_read_file(full, 1 << 20, &b, &err), err);
    return kg_buf_take(&b);
}

static inline kg_op *repo_op(const char *path) {
    kg_error err = {0};
    kg_op *op = NULL;
    char *text = repo_text(path);
    CHECK_OK(kg_op_from_json(text, strlen(text), path, &op, &err), err);
    free(text);
    return op;
}

static inline kg_value tensor_value(int dtype, int ndim, const int64_t *size) {
    kg_value v = {.present = true};
    v.u.t.dtype = dtype;
    v.u.t.ndim = ndim;
    for (int i = 0; i < ndim; i++)
        v.u.t.size[i] = size[i];
    kg_tensor_set_contiguous(&v.u.t);
    return v;
}

#define TENSOR(dtype, ...)                                                                         \
    tensor_value((dtype), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),               \
                 (const int64_t[]){__VA_ARGS__})

static inline kg_value int_value(int64_t i) {
    return (kg_value){.present = true, .u.i = i};
}

static inline kg_value bool_value(bool b) {
    return (kg_value){.present = true, .u.b = b};
}

static inline kg_value pair_value(int64_t a, int64_t b) {
    kg_value v = {.present = true};
    v.u.list.v[0] = a;
    v.u.list.v[1] = b;
    v.u.list.n = 2;
    return v;
}

static inline kg_call softmax_call(kg_value input, int64_t dim) {
    kg_call c = {.nargs = 2};
    c.args[0] = input;
    c.args[1] = int_value(dim);
    return c;
}

/* scale None, no Program. */
static inline kg_call attention_call(kg_value q, kg_value k, kg_value v, bool gqa) {
    kg_call c = {.nargs = 8};
    c.args[0] = q;
    c.args[1] = k;
    c.args[2] = v;
    c.args[7] = bool_value(gqa);
    return c;
}

static inline kg_call conv2d_call(kg_value input, kg_value weight, kg_value stride,
                                  kg_value padding) {
    kg_call c = {.nargs = 5};
    c.args[0] = input;
    c.args[1] = weight;
    c.args[3] = stride;
    c.args[4] = padding;
    return c;
}

/* Compares with a golden file. On a difference what was made is kept in the build folder, to be
 * looked at and, when the format was meant to change, copied. */
static inline void check_golden(const char *path, const void *bytes, size_t n) {
    kg_buf want;
    kg_error err = {0};
    char full[1024], made[1024];
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    snprintf(full, sizeof full, "%s/%s", KGEN_SOURCE_DIR, path);
    snprintf(made, sizeof made, "%s/made-%s", KGEN_BINARY_DIR, name);
    kg_buf_init(&want, 0);
    int rc = kg_read_file(full, 1 << 20, &want, &err);
    if (rc == KG_OK && want.len == n && memcmp(want.data, bytes, n) == 0) {
        kg_buf_free(&want);
        return;
    }
    size_t at = 0;
    while (at < want.len && at < n && want.data[at] == ((const char *)bytes)[at])
        at++;
    CHECK_OK(kg_write_atomic(made, bytes, n, &err), err);
    FAIL("%s differs from byte %zu on (%zu bytes, not %zu); what was made is %s", path, at, n,
         want.len, made);
}

/* `text` with the first `from` replaced by `to`; the caller's. */
static inline char *replaced(const char *text, const char *from, const char *to) {
    const char *at = strstr(text, from);
    if (at == NULL)
        FAIL("\"%s\" is not in the text", from);
    size_t n = strlen(text) - strlen(from) + strlen(to) + 1;
    char *out = malloc(n);
    snprintf(out, n, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    return out;
}

#endif
