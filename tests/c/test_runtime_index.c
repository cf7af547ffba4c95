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
