/* Records: an object, or lines that each give one of its fields, by the first byte, a value (JSON,
 * else text). As record.json of a Kernel that was promoted: whatever stands there, the registry and
 * the index are read, and what the index serves, the registry lists. As the Record of a promotion,
 * made one of the Candidate below: what is promoted is listed once, can be promoted again without
 * another version, rolled back to and looked at by gc; and the index holds it or says why not. */
#define _GNU_SOURCE
#include "fuzz_folder.h"

#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "runtime/index.h"
#include "tune/registry.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char OP[] =
    "{\"format\":1,\"op\":\"softmax\",\"schema\":\"softmax(Tensor x) -> Tensor\","
    "\"args\":[{\"name\":\"x\",\"type\":\"Tensor\",\"dtypes\":[\"float32\"],\"shape\":[\"N\"]}],"
    "\"dims\":[],\"dynamic\":[\"N\"],"
    "\"outputs\":[{\"name\":\"y\",\"dtype_as\":\"x\",\"like\":\"x\"}],\"holes\":[],"
    "\"reference\":{\"kind\":\"torch\",\"call\":\"torch.softmax\"}}";
static const char SOURCE[] =
    "/* kgen\n{\"format\":1,\"op\":\"softmax\",\"target\":\"cpu\",\"tunables\":{\"VEC\":[16,8]},"
    "\"launches\":[{\"kernel\":\"k\",\"range\":\"N\",\"args\":[\"x\",\"y\"]}]}\n*/\n";
static const char KEY[] =
    "{\"attrs\":{},\"device\":\"cpu\",\"dims\":{\"N\":7},\"dtypes\":[\"float32\"],"
    "\"layout\":[\"c\"],\"op\":\"softmax\",\"precision\":\"native\",\"program\":null}";
static const char ARCH[] = "x86-64-v3";

static char id[65], standing[64], made[64], index_file[64];
static size_t warnings;

static void warned(void *ctx, const char *message) {
    (void)ctx, (void)message;
    warnings++;
}

static void quiet(void *ctx, kg_log_level level, const char *message) {
    (void)ctx, (void)level, (void)message;
}

static void find_id(void) {
    kg_op *op;
    kg_plan *plan;
    kg_tuning tuning;
    kg_error err;
    if (kg_op_from_json(OP, sizeof OP - 1, "op", &op, &err) != KG_OK ||
        kg_plan_from_source(SOURCE, sizeof SOURCE - 1, "kernel.c", op, &plan, &err) != KG_OK)
        abort();
    kg_tuning_default(plan, &tuning);
    if (kg_candidate_id(SOURCE, sizeof SOURCE - 1, plan, &tuning, id, &err) != KG_OK)
        abort();
    kg_plan_free(plan);
    kg_op_free(op);
}

static int promote(kg_registry *r, const char *record, int *version) {
    const char *keys[] = {KEY};
    kg_error err;
    return kg_registry_promote(r, OP, NULL, SOURCE, sizeof SOURCE - 1, record, keys, 1, version,
                               &err);
}

static void prepare(void) {
    if (id[0])
        return;
    char record[512];
    int version;
    kg_registry *r;
    fuzz_folder_make();
    kg_log_set_sink(quiet, NULL);
    find_id();
    snprintf(standing, sizeof standing, "%s/standing", fuzz_folder);
    snprintf(made, sizeof made, "%s/made", fuzz_folder);
    snprintf(index_file, sizeof index_file, "%s/index", fuzz_folder);
    snprintf(
        record, sizeof record,
        "{\"format\":1,\"id\":\"%s\",\"op\":\"softmax\",\"arch\":\"%s\",\"source\":\"kernel.c\","
        "\"tunables\":{\"VEC\":16},\"verdict\":\"pass\"}",
        id, ARCH);
    if (kg_registry_open(standing, true, &r, NULL) != KG_OK ||
        promote(r, record, &version) != KG_OK)
        abort();
    kg_registry_close(r);
}

/* How many Kernels an index of the registry has; it is made and it opens. */
static size_t indexed(const char *registry) {
    kg_index *x;
    const kg_index_op *op;
    const kg_plan *plan;
    size_t n = 0;
    warnings = 0;
    if (kg_index_build_told(registry, index_file, warned, NULL, NULL) != KG_OK ||
        kg_index_open(index_file, registry, kg_registry_fingerprint(registry), &x, NULL) != KG_OK)
        __builtin_trap();
    for (size_t i = 0; i < kg_index_count(x); i++) {
        if (kg_index_get(x, i, &op, NULL) != KG_OK)
            __builtin_trap();
        for (size_t k = 0; k < op->nkernels; k++, n++)
            if (kg_index_plan(x, i, k, &plan, NULL) != KG_OK)
                __builtin_trap();
    }
    kg_index_free(x);
    return n;
}

static void stands_there(const uint8_t *data, size_t size) {
    char path[256];
    kg_registry *r;
    const kg_kernel *kernels;
    kg_buf report;
    snprintf(path, sizeof path, "%s/softmax/%s/%s/record.json", standing, ARCH, id);
    fuzz_write(path, data, size);
    if (kg_registry_open(standing, false, &r, NULL) != KG_OK)
        __builtin_trap();
    if (indexed(standing) > kg_registry_kernels(r, &kernels))
        __builtin_trap();
    kg_buf_init(&report, 0);
    kg_registry_gc(r, true, &report, NULL);
    kg_buf_free(&report);
    kg_registry_close(r);
}

static const char *text_of(const kg_json *object, const char *key) {
    const char *text;
    return kg_json_str(kg_json_get(object, key), key, &text, NULL) == KG_OK ? text : "";
}

static void was_promoted(kg_registry *r, const kg_json *record, const char *text) {
    const kg_kernel *kernels;
    kg_buf report;
    char name[32];
    int again;
    size_t moved;
    if (kg_registry_kernels(r, &kernels) != 1 || kernels[0].version != 1 || kernels[0].pins != 1 ||
        strcmp(kernels[0].op, text_of(record, "op")) != 0 || strcmp(kernels[0].id, id) != 0)
        __builtin_trap();
    if (indexed(made) != 1 && warnings == 0)
        __builtin_trap();
    if (promote(r, text, &again) != KG_OK || again != 1)
        __builtin_trap();
    snprintf(name, sizeof name, "%s", "v1");
    kg_registry_rollback(r, text_of(record, "op"), name, &moved, NULL);
    kg_buf_init(&report, 0);
    if (kg_registry_gc(r, true, &report, NULL) != KG_OK)
        __builtin_trap();
    kg_buf_free(&report);
}

/* op, arch and source are the data's own where they are text. */
static void is_promoted(kg_json *record) {
    static const char *const own[][2] = {
        {"op", "softmax"}, {"arch", ARCH}, {"source", "kernel.c"}, {NULL, NULL}};
    kg_registry *r;
    kg_buf text;
    int version;
    for (size_t i = 0; own[i][0]; i++)
        if (!kg_json_is_string(kg_json_get(record, own[i][0])))
            kg_json_set_str(record, own[i][0], own[i][1]);
    kg_buf_init(&text, 0);
    kg_remove_tree(made, NULL);
    if (kg_json_canonical(record, &text) == KG_OK &&
        kg_registry_open(made, true, &r, NULL) == KG_OK) {
        if (promote(r, text.data, &version) == KG_OK)
            was_promoted(r, record, text.data);
        kg_registry_close(r);
    }
    kg_buf_free(&text);
}

static void put_field(kg_json *record, const uint8_t *line, size_t n) {
    static const char *const fields[] = {
        "op",   "arch",     "source",      "tunables", "version", "pins",    "cases",
        "kind", "programs", "environment", "proposer", "created", "message", "format"};
    kg_json *value = NULL;
    char text[300];
    const char *field = fields[line[0] % (sizeof fields / sizeof *fields)];
    if (kg_json_parse((const char *)line + 1, n - 1, field, &value, NULL) == KG_OK) {
        kg_json_set(record, field, value);
        return;
    }
    snprintf(text, sizeof text, "%.*s", (int)(n - 1), (const char *)line + 1);
    kg_json_set_str(record, field, text);
}

static kg_json *of_lines(const uint8_t *data, size_t size) {
    kg_json *record = kg_json_new_object(), *tunables = kg_json_new_object();
    kg_json_set_int(record, "format", 1);
    kg_json_set_int(record, "version", 1);
    kg_json_set_int(tunables, "VEC", 16);
    kg_json_set(record, "tunables", tunables);
    for (size_t at = 0; at < size;) {
        const uint8_t *end = memchr(data + at, '\n', size - at);
        size_t n = end ? (size_t)(end - data) - at : size - at;
        if (n > 1)
            put_field(record, data + at, n);
        at += n + 1;
    }
    return record;
}

/* With an id that is the Candidate's and a verdict that promotes. */
static void use(kg_json *record) {
    kg_buf text;
    kg_buf_init(&text, 0);
    kg_json_set_str(record, "id", id);
    kg_json_set_str(record, "verdict", "pass");
    if (kg_json_canonical(record, &text) == KG_OK)
        stands_there((const uint8_t *)text.data, text.len);
    kg_buf_free(&text);
    is_promoted(record);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    kg_json *record = NULL;
    prepare();
    if (size == 0 || data[0] != '{') {
        record = of_lines(data, size);
        use(record);
    } else {
        stands_there(data, size);
        if (kg_json_parse((const char *)data, size, "Record", &record, NULL) == KG_OK)
            use(record);
    }
    kg_json_free(record);
    return 0;
}
