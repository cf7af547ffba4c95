/* A registry of made-up Kernels of one Op, for tests: source k promoted for a size, and what the
 * index serves for it. In test_path("generated"). */
#ifndef KG_TEST_REGISTRY_UTIL_H
#define KG_TEST_REGISTRY_UTIL_H

#include "runtime/index.h"
#include "test.h"
#include "tune/registry.h"

static const char registry_op_text[] =
    "{\"format\":1,\"op\":\"twice\",\"schema\":\"twice(Tensor x) -> Tensor\","
    "\"args\":[{\"name\":\"x\",\"type\":\"Tensor\",\"dtypes\":[\"float32\"],\"shape\":[\"N\"]}],"
    "\"dims\":[],\"dynamic\":[\"N\"],"
    "\"outputs\":[{\"name\":\"y\",\"dtype_as\":\"x\",\"like\":\"x\"}],\"holes\":[],"
    "\"reference\":{\"kind\":\"torch\",\"call\":\"torch.mul\"}}";

static inline char *source_of(int k) {
    kg_buf b;
    kg_buf_init(&b, 0);
    kg_buf_printf(
        &b,
        "/* kgen\n{\"format\":1,\"op\":\"twice\",\"target\":\"cpu\",\"tunables\":{\"A\":[1,2]},"
        "\"launches\":[{\"kernel\":\"twice\",\"range\":\"N\",\"args\":[\"x\",\"y\"]}]}\n*/\n"
        "/* %d */\n",
        k);
    return kg_buf_take(&b);
}

static inline kg_op *read_op(void) {
    kg_op *op = NULL;
    kg_error err = {0};
    if (kg_op_from_json(registry_op_text, strlen(registry_op_text), "op", &op, &err))
        FAIL("%s", err.msg);
    return op;
}

/* Called when all is made up and the registry is about to be opened: for faults in it alone. */
__attribute__((unused)) static void (*registry_before_change)(void);

/* Promotes source k for one size, and gives its id. */
static inline int promote_as(const char *root, int k, int64_t size, const char *verdict,
                             int *version, char id[65], kg_error *err) {
    kg_op *op = read_op();
    kg_plan *plan = NULL;
    kg_tuning t;
    kg_registry *r = NULL;
    char *source = source_of(k), record[1024], key[512];
    const char *keys[] = {key};
    CHECK_INT(kg_plan_from_source(source, strlen(source), "twice.c", op, &plan, err), KG_OK);
    kg_tuning_default(plan, &t);
    CHECK_INT(kg_candidate_id(source, strlen(source), plan, &t, id, err), KG_OK);
    snprintf(record, sizeof record,
             "{\"format\":1,\"id\":\"%s\",\"op\":\"twice\",\"arch\":\"x86-64-v3\",\"version\":0,"
             "\"source\":\"kernel.c\",\"tunables\":{\"A\":1},\"verdict\":\"%s\","
             "\"proposer\":{\"name\":\"files\"},\"created\":\"2026-01-01T00:00:00Z\","
             "\"environment\":{\"torch\":\"2.13.0\"}}",
             id, verdict);
    snprintf(key, sizeof key,
             "{\"attrs\":{},\"device\":\"cpu\",\"dims\":{\"N\":%lld},\"dtypes\":[\"float32\"],"
             "\"layout\":[\"c\"],\"op\":\"twice\",\"precision\":\"native\",\"program\":null}",
             (long long)size);
    if (registry_before_change)
        registry_before_change();
    int rc = kg_registry_open(root, true, &r, err);
    if (!rc)
        rc = kg_registry_promote(r, registry_op_text, NULL, source, strlen(source), record, keys, 1,
                                 version, err);
    kg_registry_close(r);
    kg_plan_free(plan);
    kg_op_free(op);
    free(source);
    return rc;
}

static inline int promote(int k, int64_t size, char id[65]) {
    int version = 0;
    kg_error err = {0};
    if (promote_as(test_path("generated"), k, size, "pass", &version, id, &err))
        FAIL("%s", err.msg);
    return version;
}

/* The id that the index serves for a size; "" when no pin is for it. */
static inline void served(int64_t size, char id[65]) {
    kg_index *x = NULL;
    kg_error err = {0};
    const kg_index_op *op = NULL;
    const char *root = test_path("generated"), *path = test_path("index");
    if (kg_index_build(root, path, &err))
        FAIL("%s", err.msg);
    if (kg_index_open(path, root, kg_registry_fingerprint(root), &x, &err))
        FAIL("%s", err.msg);
    id[0] = '\0';
    int at = kg_index_find(x, "twice");
    if (at >= 0) {
        if (kg_index_get(x, (size_t)at, &op, &err))
            FAIL("%s", err.msg);
        for (size_t i = 0; i < op->npins; i++)
            if (op->pins[i].key.min[0] == size)
                snprintf(id, 65, "%s", op->kernels[op->pins[i].kernel].id);
    }
    kg_index_free(x);
}

static inline void check_served(int64_t size, const char *want) {
    char id[65];
    served(size, id);
    CHECK_STR(id, want);
}

#endif
