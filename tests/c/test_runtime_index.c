/* The index: what is written is read back; what is damaged is refused, or at least never believed;
 * what changes in a registry changes its fingerprint. */
#include <sys/stat.h>
#include <unistd.h>

#include "contract_util.h"
#include "runtime/index.h"

static const char source[] = "/* kgen\n{\"format\": 1, \"op\": \"softmax\", \"target\": \"cpu\", "
                             "\"tunables\": {\"WAY\": [3, 5]},\n"
                             "\"require\": \"N > 1\", \"launches\": [{\"kernel\": \"rows\", "
                             "\"range\": \"M\", \"args\": [\"input\", "
                             "\"output\", {\"i64\": \"N\"}]}]}\n*/\nvoid rows(void) {}\n";

typedef struct sample {
    kg_op *op;
    kg_plan *plan;
    kg_index_kernel kernels[2];
    kg_index_pin pins[3];
    kg_hash128 programs[1];
    kg_index_op block;
} sample;

static void make_key(const kg_op *op, int64_t m, int64_t n, kg_key *key) {
    kg_error err = {0};
    kg_dims dims;
    kg_call call = softmax_call(TENSOR(KG_F32, m, n), 1);
    CHECK_OK(kg_op_dims(op, &call, &dims, &err), err);
    CHECK_OK(kg_key_of_call(op, &call, &dims, key, &err), err);
}

static void make_sample(sample *s) {
    kg_error err = {0};
    memset(s, 0, sizeof(*s));
    s->op = repo_op("kernels/ops/softmax.json");
    CHECK_OK(kg_plan_from_source(source, strlen(source), "a test", s->op, &s->plan, &err), err);
    s->programs[0] = (kg_hash128){7, 8};
    for (int i = 0; i < 2; i++)
        s->kernels[i] = (kg_index_kernel){
            .id = i == 0 ? "aa11" : "bb22",
            .arch = i == 0 ? "x86-64-v3" : "x86-64-v4",
            .source = "softmax/x/kernel.c",
            .version = i + 1,
            .ambiguous = i == 1,
            .source_hash = kg_xxh128(source, strlen(source)),
            .env = {.device = "a CPU",
                    .torch = "2.13.0",
                    .compiler = "gcc 12.2.0",
                    .kgen = "0.1.0"},
            .tuning = {.value = {3 + 2 * i}},
            .plan = s->plan,
            .nprograms = i == 1,
            .programs = s->programs,
        };
    for (uint32_t i = 0; i < 3; i++) {
        s->pins[i].kernel = i % 2;
        make_key(s->op, 4, 8 + (int64_t)i, &s->pins[i].key);
    }
    s->block = (kg_index_op){.op = s->op,
                             .task = "softmax/task",
                             .nkernels = 2,
                             .npins = 3,
                             .kernels = s->kernels,
                             .pins = s->pins};
}

static void free_sample(sample *s) {
    kg_plan_free(s->plan);
    kg_op_free(s->op);
}

TEST(index_reads_what_it_wrote) {
    kg_error err = {0};
    sample s;
    kg_index *x;
    const kg_index_op *block;
    const kg_plan *plan;
    const char *path = test_path("deep/folder/index");
    make_sample(&s);
    CHECK_OK(kg_index_write(path, "/a/registry", 42, &s.block, 1, &err), err);
    CHECK_OK(kg_index_open(path, "/a/registry", 42, &x, &err), err);
    CHECK_STR(kg_index_registry(x), "/a/registry");
    CHECK_INT(kg_index_count(x), 1);
    CHECK_STR(kg_index_name(x, 0), "softmax");
    CHECK_STR(kg_index_schema(x, 0), s.op->schema);
    CHECK_STR(kg_index_hash(x, 0), s.op->hash);
    CHECK_INT(kg_index_find(x, "softmax"), 0);
    CHECK_INT(kg_index_find(x, "conv2d"), -1);
    CHECK_OK(kg_index_get(x, 0, &block, &err), err);
    CHECK_INT(block->nkernels, 2);
    CHECK_INT(block->npins, 3);
    CHECK_STR(block->task, "softmax/task");
    CHECK_STR(block->kernels[1].id, "bb22");
    CHECK_STR(block->kernels[1].arch, "x86-64-v4");
    CHECK_INT(block->kernels[1].version, 2);
    CHECK(block->kernels[1].ambiguous && !block->kernels[0].ambiguous);
    CHECK_STR(block->kernels[0].env.compiler, "gcc 12.2.0");
    CHECK_INT(block->kernels[1].tuning.value[0], 5);
    CHECK_INT(block->kernels[1].nprograms, 1);
    CHECK_UINT(block->kernels[1].programs[0].hi, 8);
    CHECK_UINT(block->kernels[0].source_hash.lo, s.kernels[0].source_hash.lo);
    CHECK_INT(block->pins[2].kernel, 0);
    CHECK(kg_key_equal(&block->pins[2].key, &s.pins[2].key));
    CHECK_OK(kg_index_plan(x, 0, 1, &plan, &err), err);
    CHECK_INT(plan->nlaunches, 1);
    CHECK_STR(plan->launches[0].kernel, "rows");
    kg_index_free(x);
    free_sample(&s);
}

TEST(index_refuses_another_state_or_place) {
    kg_error err = {0};
    sample s;
    kg_index *x;
    const char *path = test_path("index");
    make_sample(&s);
    CHECK_ERR(kg_index_open(path, "/a", 1, &x, &err), err, KG_ENOTFOUND, "index");
    CHECK_OK(kg_index_write(path, "/a", 1, &s.block, 1, &err), err);
    CHECK_ERR(kg_index_open(path, "/a", 2, &x, &err), err, KG_EEXIST, "another state of /a");
    CHECK_ERR(kg_index_open(path, "/b", 1, &x, &err), err, KG_ECORRUPT, "is the index of /a");
    s.pins[1].kernel = 2;
    CHECK_ERR(kg_index_write(path, "/a", 1, &s.block, 1, &err), err, KG_EINVAL,
              "pin 1 of softmax names Kernel 2 of 2");
    CHECK_OK(kg_index_open(path, "/a", 1, &x, &err), err); /* the old one stands */
    kg_index_free(x);
    free_sample(&s);
}

static void write_bytes(const char *path, const void *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    CHECK(f != NULL && fwrite(bytes, 1, n, f) == n && fclose(f) == 0);
}

static void read_index(const char *path, kg_buf *out) {
    kg_error err = {0};
    kg_buf_init(out, 0);
    CHECK_OK(kg_read_file(path, 1 << 20, out, &err), err);
}

TEST(index_refuses_every_torn_or_changed_file) {
    kg_error err = {0};
    sample s;
    kg_index *x;
    kg_buf file;
    const char *path = test_path("index");
    make_sample(&s);
    CHECK_OK(kg_index_write(path, "/a", 1, &s.block, 1, &err), err);
    read_index(path, &file);
    for (size_t n = 0; n < file.len; n += n < 64 ? 1 : 97) {
        write_bytes(path, file.data, n);
        CHECK_INT(kg_index_open(path, "/a", 1, &x, &err), KG_ECORRUPT);
    }
    for (size_t i = 0; i < file.len; i += i < 64 ? 1 : 53) {
        file.data[i] = (char)(file.data[i] ^ 4);
        write_bytes(path, file.data, file.len);
        int rc = kg_index_open(path, "/a", 1, &x, &err);
        bool fingerprint = i >= 40 && i < 48;
        CHECK_INT(rc, fingerprint ? KG_EEXIST : KG_ECORRUPT);
        file.data[i] = (char)(file.data[i] ^ 4);
    }
    kg_buf_free(&file);
    free_sample(&s);
}

/* A forger fixes the hash. Whatever the body says then, nothing outside it may be read. */
TEST(index_survives_a_forged_body) {
    kg_error err = {0};
    sample s;
    kg_buf file;
    uint64_t seed = 12345;
    size_t whole = 0;
    const char *path = test_path("index");
    make_sample(&s);
    CHECK_OK(kg_index_write(path, "/a", 1, &s.block, 1, &err), err);
    read_index(path, &file);
    for (int i = 0; i < 3000; i++) {
        kg_index *x;
        const kg_index_op *block;
        const kg_plan *plan;
        char *copy = malloc(file.len);
        memcpy(copy, file.data, file.len);
        for (int k = 0; k < 1 + i % 3; k++) {
            seed = seed * 6364136223846793005U + 1442695040888963407U;
            copy[48 + (seed >> 33) % (file.len - 48)] = (char)(seed >> 24);
        }
        kg_hash128 h = kg_xxh128(copy + 48, file.len - 48);
        memcpy(copy + 24, &h.lo, 8);
        memcpy(copy + 32, &h.hi, 8);
        write_bytes(path, copy, file.len);
        free(copy);
        if (kg_index_open(path, "/a", 1, &x, &err) != KG_OK)
            continue;
        for (size_t k = 0; k < kg_index_count(x); k++) {
            if (kg_index_get(x, k, &block, &err) != KG_OK)
                continue;
            whole++;
            for (size_t p = 0; p < block->npins; p++)
                CHECK(block->pins[p].kernel < block->nkernels);
            for (size_t j = 0; j < block->nkernels; j++)
                kg_index_plan(x, k, j, &plan, &err);
        }
        kg_index_free(x);
    }
    CHECK(whole > 0); /* else the changes were all caught early and the test says nothing */
    kg_buf_free(&file);
    free_sample(&s);
}

/* ---- the golden file ---- */

#define GOLDEN "tests/golden/index/registry.bin"
enum { GOLDEN_FINGERPRINT = 0x1234567 };

/* Built of the other golden files: three Ops, with a plan for each target, pins of each kind, and
 * one Op that has neither. */
typedef struct registry {
    kg_op *op[3];
    kg_plan *plan[2];
    kg_index_kernel kernels[3];
    kg_index_pin pins[4];
    kg_hash128 programs[2];
    kg_index_op blocks[3];
} registry;

static kg_plan *golden_plan(const char *path, const kg_op *op, kg_hash128 *hash) {
    kg_error err = {0};
    kg_plan *plan = NULL;
    char *text = repo_text(path);
    CHECK_OK(kg_plan_from_source(text, strlen(text), path, op, &plan, &err), err);
    *hash = kg_xxh128(text, strlen(text));
    free(text);
    return plan;
}

static void golden_pin(const char *path, const kg_op *op, uint32_t kernel, kg_index_pin *out) {
    kg_error err = {0};
    kg_json *pin = NULL;
    char *text = repo_text(path);
    CHECK_OK(kg_json_parse(text, strlen(text), path, &pin, &err), err);
    CHECK_OK(kg_key_from_json(op, kg_json_get(pin, "key"), path, &out->key, &err), err);
    out->kernel = kernel;
    kg_json_free(pin);
    free(text);
}

static void golden_case_pin(const char *path, const kg_op *op, uint32_t kernel, kg_index_pin *out) {
    kg_error err = {0};
    kg_case *c = NULL;
    char *text = repo_text(path);
    CHECK_OK(kg_case_from_json(text, strlen(text), path, op, &c, &err), err);
    *out = (kg_index_pin){.kernel = kernel, .key = c->key};
    kg_case_free(c);
    free(text);
}

static void make_registry(registry *r) {
    memset(r, 0, sizeof(*r));
    r->op[0] = repo_op("kernels/ops/attention.json");
    r->op[1] = repo_op("tests/golden/op/conv2d.json");
    r->op[2] = repo_op("kernels/ops/softmax.json");
    r->programs[0] = (kg_hash128){0x0123456789abcdef, 0xfedcba9876543210};
    r->programs[1] = (kg_hash128){1, 2};
    r->kernels[0] = (kg_index_kernel){
        .id = "11", .arch = "sm_90", .source = "attention/sm_90/11/kernel.cu", .version = 7};
    r->kernels[0].env = (kg_index_env){"a GPU", "2.13.0", "NVRTC 13.0", "0.1.0", "580.65"};
    r->kernels[0].plan = r->plan[0] =
        golden_plan("tests/golden/plan/tma.cu", r->op[0], &r->kernels[0].source_hash);
    kg_tuning_default(r->plan[0], &r->kernels[0].tuning);
    r->kernels[0].nprograms = 2;
    r->kernels[0].programs = r->programs;
    r->kernels[1] = (kg_index_kernel){.id = "22",
                                      .arch = "x86-64-v3",
                                      .source = "softmax/x86-64-v3/22/kernel.c",
                                      .version = 1,
                                      .ambiguous = true};
    r->kernels[1].env = (kg_index_env){"a CPU", "2.13.0", "gcc 12.2.0", "0.1.0", ""};
    r->kernels[1].plan = r->plan[1] =
        golden_plan("tests/golden/plan/rows.c", r->op[2], &r->kernels[1].source_hash);
    r->kernels[2] = r->kernels[1];
    r->kernels[1].tuning = (kg_tuning){.value = {16, 4}};
    r->kernels[2].tuning = (kg_tuning){.value = {8, -1}};
    r->kernels[2].id = "33";
    golden_pin("tests/golden/pin/attention.json", r->op[0], 0, &r->pins[0]);
    golden_case_pin("tests/golden/case/attention.json", r->op[0], 0, &r->pins[1]);
    golden_pin("tests/golden/pin/softmax.json", r->op[2], 1, &r->pins[2]);
    make_key(r->op[2], 4096, 4096, &r->pins[3].key);
    r->blocks[0] = (kg_index_op){r->op[0], "", 1, 2, r->kernels, r->pins};
    r->blocks[1] = (kg_index_op){r->op[1], "conv2d/task", 0, 0, NULL, NULL};
    r->blocks[2] = (kg_index_op){r->op[2], "", 2, 2, r->kernels + 1, r->pins + 2};
}

static void free_registry(registry *r) {
    for (int i = 0; i < 2; i++)
        kg_plan_free(r->plan[i]);
    for (int i = 0; i < 3; i++)
        kg_op_free(r->op[i]);
}

static void check_written(const char *path) {
    kg_buf file;
    read_index(path, &file);
    check_golden(GOLDEN, file.data, file.len);
    kg_buf_free(&file);
}

static void check_golden_softmax(kg_index *x) {
    kg_error err = {0};
    const kg_index_op *block;
    const kg_plan *plan;
    CHECK_OK(kg_index_get(x, 2, &block, &err), err);
    CHECK_UINT(block->nkernels, 2);
    CHECK_UINT(block->npins, 2);
    CHECK_STR(block->kernels[1].id, "33");
    CHECK_STR(block->kernels[1].arch, "x86-64-v3");
    CHECK_STR(block->kernels[1].source, "softmax/x86-64-v3/22/kernel.c");
    CHECK_STR(block->kernels[1].env.compiler, "gcc 12.2.0");
    CHECK(block->kernels[1].ambiguous && !kg_key_exact(&block->pins[0].key));
    CHECK_INT(block->kernels[1].tuning.value[0], 8);
    CHECK_INT(block->kernels[1].tuning.value[1], -1);
    CHECK_UINT(block->pins[0].kernel, 1);
    CHECK_INT(block->pins[0].key.max[1], 1048576);
    CHECK_UINT(block->pins[1].kernel, 0);
    CHECK_INT(block->pins[1].key.min[1], 4096);
    CHECK_OK(kg_index_plan(x, 2, 0, &plan, &err), err);
    CHECK_STR(plan->launches[1].kernel, "rows");
    CHECK_STR(kg_expr_text(plan->require), "N % VEC == 0 && input.contiguous && (K == 1 || K > 4)");
}

static void check_golden_content(kg_index *x) {
    kg_error err = {0};
    const kg_index_op *block;
    const kg_plan *plan;
    CHECK_STR(kg_index_registry(x), "/a/registry");
    CHECK_UINT(kg_index_count(x), 3);
    CHECK_INT(kg_index_find(x, "conv2d"), 1);
    CHECK_STR(kg_index_name(x, 0), "attention");
    CHECK_STR(kg_index_schema(x, 2), "softmax(Tensor input, int dim) -> Tensor");
    CHECK_OK(kg_index_get(x, 1, &block, &err), err);
    CHECK_STR(block->task, "conv2d/task");
    CHECK_UINT(block->nkernels + block->npins, 0);
    CHECK_STR(kg_expr_text(block->op->dims[7].expr), "(H + 2 * padding[0] - KH) / stride[0] + 1");
    CHECK_OK(kg_index_get(x, 0, &block, &err), err);
    CHECK_STR(block->kernels[0].arch, "sm_90");
    CHECK_INT(block->kernels[0].version, 7);
    CHECK_UINT(block->kernels[0].nprograms, 2);
    CHECK_UINT(block->kernels[0].programs[0].hi, 0xfedcba9876543210);
    CHECK_INT(block->pins[0].key.program, KG_PROGRAM_ANY);
    CHECK_INT(block->pins[1].key.program, KG_PROGRAM_HASH);
    CHECK(kg_key_exact(&block->pins[1].key));
    CHECK_OK(kg_index_plan(x, 0, 0, &plan, &err), err);
    CHECK_UINT(plan->nmaps, 1);
    CHECK_INT(plan->maps[0].swizzle, 128);
    CHECK_STR(plan->holes[1], "MASK");
    check_golden_softmax(x);
}

/* What was read, with the plans that a block leaves apart, for writing again. */
static void rewrite(kg_index *x, const char *path) {
    kg_error err = {0};
    kg_index_op blocks[3];
    kg_index_kernel kernels[3][2];
    for (size_t i = 0; i < 3; i++) {
        const kg_index_op *block;
        CHECK_OK(kg_index_get(x, i, &block, &err), err);
        CHECK(block->nkernels <= 2);
        blocks[i] = *block;
        blocks[i].kernels = kernels[i];
        for (size_t k = 0; k < block->nkernels; k++) {
            kernels[i][k] = block->kernels[k];
            CHECK_OK(kg_index_plan(x, i, k, &kernels[i][k].plan, &err), err);
        }
    }
    CHECK_OK(kg_index_write(path, "/a/registry", GOLDEN_FINGERPRINT, blocks, 3, &err), err);
}

TEST(index_golden_file) {
    kg_error err = {0};
    registry r;
    kg_index *x;
    make_registry(&r);
    CHECK_OK(
        kg_index_write(test_path("index"), "/a/registry", GOLDEN_FINGERPRINT, r.blocks, 3, &err),
        err);
    check_written(test_path("index"));
    free_registry(&r);
    CHECK_OK(kg_index_open(KGEN_SOURCE_DIR "/" GOLDEN, "/a/registry", GOLDEN_FINGERPRINT, &x, &err),
             err);
    check_golden_content(x);
    rewrite(x, test_path("again"));
    check_written(test_path("again"));
    kg_index_free(x);
}

static void make_file(const char *path, const char *text) {
    kg_error err = {0};
    CHECK_OK(kg_write_atomic(path, text, strlen(text), &err), err);
}

TEST(fingerprint_sees_every_change) {
    kg_error err = {0};
    CHECK_UINT(kg_registry_fingerprint(test_path("nowhere")), 0);
    CHECK_OK(kg_mkdirs(test_path("r/softmax/x86-64-v3/pins"), &err), err);
    uint64_t last = kg_registry_fingerprint(test_path("r"));
    CHECK(last != 0);
    CHECK_UINT(kg_registry_fingerprint(test_path("r")), last);
    enum { STEPS = 7 };
    for (int i = 0; i < STEPS; i++) {
        switch (i) {
        case 0:
            make_file(test_path("r/softmax/op.json"), "{}");
            break;
        case 1:
            make_file(test_path("r/softmax/x86-64-v3/pins/a"), "1");
            break;
        case 2:
            make_file(test_path("r/softmax/x86-64-v3/pins/a"), "2");
            break;
        case 3: /* in place, which leaves the folder's time as it was */
            write_bytes(test_path("r/softmax/x86-64-v3/pins/a"), "22", 2);
            break;
        case 4:
            CHECK_OK(kg_mkdirs(test_path("r/softmax/x86-64-v3/abcd"), &err), err);
            break;
        case 5:
            CHECK_INT(unlink(test_path("r/softmax/x86-64-v3/pins/a")), 0);
            break;
        case 6:
            CHECK_OK(kg_mkdirs(test_path("r/attention"), &err), err);
            break;
        }
        uint64_t now = kg_registry_fingerprint(test_path("r"));
        if (now == last)
            FAIL("step %d left the fingerprint as it was", i);
        last = now;
    }
}
