/* Serving on CUDA without a GPU: the driver is tests/fake's, the compiler is NVRTC itself. What the
 * launcher hands to the driver, what a capture may do, and what a lost device costs. */
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "contract_util.h"
#include "fake_driver.h"
#include "nvrtc_util.h"
#include "runtime/index.h"
#include "runtime/runtime.h"
#include "sys/cuda.h"

/* ---- a host, with a stream a device ---- */

static const fake_cuda *fake;
static kg_cu_stream streams[4];
static _Atomic int allocated, released;
static kg_error err;

/* Memory that is there before a capture, as torch has for its graphs. */
static _Alignas(256) unsigned char pool[16384];
static size_t pool_used;
static bool from_pool;

static bool in_pool(const void *p) {
    return (uintptr_t)p >= (uintptr_t)pool && (uintptr_t)p < (uintptr_t)pool + sizeof(pool);
}

static int host_empty(kg_tensor *t, int32_t device, int32_t index, void **handle, kg_error *e) {
    kg_cuda_scope scope;
    kg_cu_ptr p = 0;
    CHECK_INT(device, KG_CUDA);
    if (from_pool) {
        t->data = *handle = pool + pool_used;
        pool_used += 4096;
        CHECK(pool_used <= sizeof(pool));
        allocated++;
        return KG_OK;
    }
    int rc = kg_cuda_enter(index, &scope, e);
    if (rc == KG_OK)
        rc = kg_cuda_alloc((size_t)kg_tensor_numel(t) * kg_dtype_size(t->dtype), &p, e);
    kg_cuda_leave(&scope);
    if (rc != KG_OK)
        return rc;
    allocated++;
    memset((void *)(uintptr_t)p, 0xee, (size_t)kg_tensor_numel(t) * kg_dtype_size(t->dtype));
    t->data = (void *)(uintptr_t)p;
    *handle = t->data;
    return KG_OK;
}

static void host_release(void *handle) {
    kg_cuda_scope scope;
    released++;
    if (in_pool(handle))
        return;
    if (kg_cuda_enter(0, &scope, NULL) == KG_OK)
        kg_cuda_free((kg_cu_ptr)(uintptr_t)handle);
    kg_cuda_leave(&scope);
}

static int host_parallel(int64_t n, int64_t grain, void (*fn)(int64_t, int64_t, void *), void *ctx,
                         kg_error *e) {
    (void)grain, (void)e;
    fn(0, n, ctx);
    return KG_OK;
}

static int host_threads(void) {
    return 1;
}

static int host_stream(int32_t index, kg_cu_stream *out, kg_error *e) {
    (void)e;
    *out = streams[index];
    return KG_OK;
}

static const kg_host host = {.empty = host_empty,
                             .release = host_release,
                             .parallel = host_parallel,
                             .threads = host_threads,
                             .stream = host_stream};

static char said[8192];

static void hear(void *ctx, kg_log_level level, const char *message) {
    (void)ctx;
    size_t n = strlen(said);
    if (level >= KG_LOG_WARNING)
        snprintf(said + n, sizeof(said) - n, "%s\n", message);
}

/* ---- a registry of one Kernel that is pinned for any size ---- */

typedef struct fixture {
    kg_op *op;
    kg_plan *plan;
    const kg_rt_op *rt;
} fixture;

static const char *pin_arch = "sm_80", *pin_device = "";

static void open_pin(const kg_op *op, const kg_call *call, kg_key *key) {
    kg_dims dims;
    CHECK_OK(kg_op_dims(op, call, &dims, &err), err);
    CHECK_OK(kg_key_of_call(op, call, &dims, key, &err), err);
    for (int i = 0; i < key->ndims; i++) {
        key->min[i] = 1;
        key->max[i] = INT64_C(1) << 40;
    }
    if (key->program != KG_PROGRAM_NONE)
        key->program = KG_PROGRAM_ANY;
}

static void start_process(const char *settings) {
    fake = use_fake(settings); /* first: NVRTC's search asks the driver's version */
    need_nvrtc();
    kg_log_set_sink(hear, NULL);
    setenv("KGEN_CACHE", test_path("cache"), 1);
    CHECK_OK(kg_rt_start(&host, "2.13.0", &err), err);
    int n = 0;
    for (int i = 0; kg_cuda_count(&n, NULL) == KG_OK && i < n; i++) {
        kg_cuda_scope scope;
        CHECK_OK(kg_cuda_enter(i, &scope, &err), err);
        CHECK_OK(kg_cuda_stream_create(&streams[i], &err), err);
        kg_cuda_leave(&scope);
    }
}

static void start(fixture *f, const char *settings, const char *source, const char *contract,
                  const kg_call *call) {
    char file[256];
    start_process(settings);
    f->op = repo_op(contract);
    snprintf(file, sizeof(file), "%s/kernel.cu", f->op->name);
    CHECK_OK(kg_mkdirs(test_path("registry"), &err), err);
    CHECK_OK(kg_mkdirs(test_path(f->op->name[0] == 's' ? "registry/softmax" : "registry/attention"),
                       &err),
             err);
    char *registry = realpath(test_path("registry"), NULL);
    char *path = kg_path_join(registry, file);
    CHECK_OK(kg_write_atomic(path, source, strlen(source), &err), err);
    CHECK_OK(kg_plan_from_source(source, strlen(source), "test.cu", f->op, &f->plan, &err), err);
    kg_index_kernel kernel = {.id = "1234",
                              .arch = pin_arch,
                              .source = file,
                              .version = 1,
                              .source_hash = kg_xxh128(source, strlen(source)),
                              .env = {.device = pin_device,
                                      .torch = "2.13.0",
                                      .compiler = "",
                                      .kgen = KGEN_VERSION,
                                      .driver = ""},
                              .plan = f->plan};
    kg_tuning_default(f->plan, &kernel.tuning);
    kg_index_pin pin = {.kernel = 0};
    open_pin(f->op, call, &pin.key);
    kg_index_op block = {
        .op = f->op, .task = "", .nkernels = 1, .npins = 1, .kernels = &kernel, .pins = &pin};
    char *index = kg_index_path(registry);
    CHECK_OK(kg_index_write(index, registry, kg_registry_fingerprint(registry), &block, 1, &err),
             err);
    CHECK_OK(kg_rt_add_registry(registry, true, &err), err);
    CHECK_OK(kg_rt_find_op(f->op->name, &f->rt, &err), err);
    free(index);
    free(path);
    free(registry);
}

static void finish(fixture *f) {
    kg_plan_free(f->plan);
    kg_op_free(f->op);
}

static kg_call rows_call(int64_t m, int64_t n) {
    kg_call c = softmax_call(TENSOR(KG_F32, m, n), 1);
    c.device = KG_CUDA;
    return c;
}

static void start_rows(fixture *f, const char *settings, const char *source) {
    kg_call c = rows_call(4, 64);
    start(f, settings, source, "kernels/ops/softmax.json", &c);
}

/* One call with an input of its own; the output's handle, NULL when it was not served. */
static int serve(const fixture *f, kg_call *c, float *x, void **out) {
    void *handles[KG_MAX_OUTPUTS] = {NULL};
    c->args[0].u.t.data = x;
    err.msg[0] = '\0';
    int rc = kg_rt_run(f->rt, c, handles, &err);
    *out = rc == KG_OK ? handles[0] : NULL;
    return rc;
}

static float *make_input(int64_t n) {
    float *x = aligned_alloc(256, ((size_t)n * 4 + 255) / 256 * 256);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)i;
    return x;
}

/* ---- what the launcher hands over ---- */

#define EVERYTHING                                                                                 \
    "/* kgen\n{\"format\": 1, \"op\": \"softmax\", \"target\": \"cuda\", \"min_arch\": "           \
    "\"sm_90\", \"tunables\": {\"THREADS\": [128, 256]}, \"specialize\": [\"N\"],\n"               \
    "\"workspace\": {\"w\": {\"dtype\": \"float32\", \"shape\": [\"M\"], \"zero\": true}, "        \
    "\"u\": {\"dtype\": \"int64\", \"shape\": [\"M\", 3]}}, \"zero\": [\"output\"],\n"             \
    "\"tensor_maps\": {\"map\": {\"tensor\": \"input\", \"dims\": [\"N\", \"M\"], \"strides\": "   \
    "[\"N * 4\"], \"box\": [32, 8], \"swizzle\": 128, \"l2\": 256}},\n"                            \
    "\"launches\": [{\"kernel\": \"rows\", \"grid\": [\"2 * M\", 3], \"block\": [\"THREADS\"], "   \
    "\"cluster\": [2], \"shared\": \"64 * 1024\", \"pdl\": true, \"args\": [\"input\", "           \
    "\"output\", \"w\", \"u\", {\"map\": \"map\"}, {\"i32\": \"M\"}, {\"i64\": \"N\"}, "           \
    "{\"f32\": 0.5}, {\"f64\": 0.25}]},\n"                                                         \
    "{\"kernel\": \"skipped\", \"grid\": [1], \"block\": [1], \"when\": \"M > 100\", \"args\": "   \
    "[\"output\"]},\n"                                                                             \
    "{\"kernel\": \"tail\", \"grid\": [\"M\"], \"block\": [32, 2], \"cooperative\": true, "        \
    "\"args\": [\"output\", {\"i64\": \"N\"}]}]}\n*/\n"                                            \
    "struct Map { unsigned long long a[16]; };\n"                                                  \
    "extern \"C\" __global__ void __cluster_dims__(2) rows(const KG_T_input *x, KG_T_output *y, "  \
    "KG_T_w *w, KG_T_u *u, const __grid_constant__ Map m, int32_t rows, int64_t n, float f, "      \
    "double d) { y[0] = x[0] + w[0] + u[0] + m.a[0] + rows + n + f + d + THREADS; }\n"             \
    "extern \"C\" __global__ void skipped(float *y) {}\n"                                          \
    "extern \"C\" __global__ void tail(KG_T_output *y, int64_t n) { y[n] = 1; }\n"

/* What the kernel saw of memory, before any other runs. */
typedef struct seen {
    float out, w;
    int64_t runs;
} seen;

static void look(const fake_launch *l, void *ctx) {
    seen *s = ctx;
    float *y = (float *)FAKE_ARG(uintptr_t, l, 1);
    s->out = y[5];
    s->w = ((const float *)FAKE_ARG(uintptr_t, l, 2))[3];
    s->runs++;
    y[5] = 42;
}

TEST_WITHIN(serve_cuda_hands_over_all_of_a_plan, 120) {
    fixture f;
    void *out;
    float *x = make_input(4 * 64);
    seen s = {.out = 1, .w = 1};
    start_rows(&f, "arch=90,sms=132", EVERYTHING);
    fake->on_launch("rows", look, &s);
    kg_call c = rows_call(4, 64);
    int rc = serve(&f, &c, x, &out);
    if (rc != KG_OK)
        FAIL("%s %s", err.msg, said);
    CHECK_INT(fake->nlaunches(), 2);
    const fake_launch *l = fake->launch(0);
    CHECK_STR(l->function, "rows");
    CHECK_MEM(l->grid, ((unsigned[]){8, 3, 1}), sizeof(l->grid));
    CHECK_MEM(l->block, ((unsigned[]){128, 1, 1}), sizeof(l->block));
    CHECK_MEM(l->cluster, ((unsigned[]){2, 1, 1}), sizeof(l->cluster));
    CHECK_UINT(l->shared, 64 * 1024);
    CHECK(l->pdl && !l->cooperative && l->stream == (void *)streams[0]);
    CHECK_UINT(FAKE_ARG(uintptr_t, l, 0), (uintptr_t)x);
    CHECK_UINT(FAKE_ARG(uintptr_t, l, 1), (uintptr_t)out);
    uintptr_t w = FAKE_ARG(uintptr_t, l, 2), u = FAKE_ARG(uintptr_t, l, 3);
    CHECK_UINT(w % 256, 0);
    CHECK_UINT(u, w + 256);
    const uint64_t *map = (const uint64_t *)(const void *)(l->bytes + l->offset[4]);
    CHECK_UINT(map[0], (uintptr_t)x);
    CHECK_UINT(map[1], KG_CU_MAP_F32 | 2 << 8 | 3 << 16 | 3 << 24);
    CHECK_UINT(map[2], 64); /* dims */
    CHECK_UINT(map[3], 4);
    CHECK_UINT(map[7], 256); /* the stride of dim 1 */
    CHECK_INT(FAKE_ARG(int32_t, l, 5), 4);
    CHECK_INT(FAKE_ARG(int64_t, l, 6), 64);
    CHECK_NEAR(FAKE_ARG(float, l, 7), 0.5, 0);
    CHECK_NEAR(FAKE_ARG(double, l, 8), 0.25, 0);
    CHECK_NEAR(s.out, 0, 0); /* cleared before, both of them */
    CHECK_NEAR(s.w, 0, 0);
    l = fake->launch(1);
    CHECK_STR(l->function, "tail");
    CHECK(l->cooperative && !l->pdl);
    CHECK_MEM(l->block, ((unsigned[]){32, 2, 1}), sizeof(l->block));
    CHECK_MEM(l->cluster, ((unsigned[]){1, 1, 1}), sizeof(l->cluster));
    CHECK_NEAR(((float *)out)[5], 42, 0);
    host_release(out);
    CHECK_INT(allocated, released);
    CHECK_UINT(fake->live_bytes(), 0);
    free(x);
    finish(&f);
}

TEST_WITHIN(serve_cuda_encodes_a_map_once_an_address, 120) {
    fixture f;
    void *out;
    float *x = make_input(4 * 64), *other = make_input(4 * 64);
    start_rows(&f, "arch=90", EVERYTHING);
    kg_call c = rows_call(4, 64);
    for (int i = 0; i < 5; i++) {
        CHECK_OK(serve(&f, &c, x, &out), err);
        host_release(out);
    }
    CHECK_UINT(fake->calls("cuTensorMapEncodeTiled"), 1);
    for (int i = 0; i < 4; i++) {
        CHECK_OK(serve(&f, &c, i % 2 ? other : x, &out), err);
        host_release(out);
        const fake_launch *l = fake->launch(fake->nlaunches() - 2);
        CHECK_UINT(*(const uintptr_t *)(const void *)(l->bytes + l->offset[4]),
                   (uintptr_t)(i % 2 ? other : x));
    }
    CHECK_UINT(fake->calls("cuTensorMapEncodeTiled"), 2);
    CHECK_UINT(fake->calls("cuModuleLoadData"), 1);
    free(x);
    free(other);
    finish(&f);
}

TEST_WITHIN(serve_cuda_on_the_second_device, 120) {
    fixture f;
    void *out;
    float *x = make_input(4 * 64);
    int current = -1;
    kg_cuda_scope scope;
    start_rows(&f, "devices=2,arch=90", EVERYTHING);
    CHECK_OK(kg_cuda_enter(0, &scope, &err), err);
    kg_call c = rows_call(4, 64);
    for (int32_t index = 1; index >= 0; index--) {
        c.device_index = index;
        CHECK_OK(serve(&f, &c, x, &out), err);
        const fake_launch *l = fake->launch(fake->nlaunches() - 1);
        CHECK_INT(l->device, index);
        CHECK(l->stream == (void *)streams[index]);
        host_release(out);
    }
    CHECK_UINT(fake->live_modules(), 2); /* a module belongs to a context */
    CHECK_OK(kg_cuda_pointer_device(1, &current, &err), err);
    kg_cuda_leave(&scope);
    free(x);
    finish(&f);
}

/* ---- plain rows, for the rest ---- */

#define PLAIN_PLAN(more, args)                                                                     \
    "/* kgen\n{\"format\": 1, \"op\": \"softmax\", \"target\": \"cuda\"" more                      \
    ", \"launches\": [{\"kernel\": \"plain\", \"grid\": [\"M\"], \"block\": [64], \"args\": "      \
    "[" args "]}]}\n*/\n"
#define PLAIN_BODY                                                                                 \
    "extern \"C\" __global__ void plain(const KG_T_input *x, KG_T_output *y, int32_t n) "          \
    "{ y[0] = x[n]; }\n"
#define PLAIN PLAIN_PLAN("", "\"input\", \"output\", {\"i32\": \"N\"}") PLAIN_BODY

TEST_WITHIN(serve_cuda_holds_arguments_against_the_kernel, 120) {
    static const struct {
        const char *args, *says;
    } bad[] = {
        {PLAIN_PLAN("", "\"input\", \"output\"") PLAIN_BODY,
         "launches[0].args: the plan gives 2 arguments, the kernel plain has 3 parameters"},
        {PLAIN_PLAN("", "\"input\", \"output\", {\"i64\": \"N\"}") PLAIN_BODY,
         "launches[0].args[2] is an i64 of 8 bytes; the parameter 2 of plain has 4"},
        {PLAIN_PLAN("", "\"input\", \"output\", {\"i32\": \"N\"}") "void __global__ other() {}\n",
         "the source has no kernel plain"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        pid_t child = fork();
        if (child == 0) {
            fixture f;
            void *out;
            float *x = make_input(4 * 64);
            start_rows(&f, "", bad[i].args);
            kg_call c = rows_call(4, 64);
            CHECK_INT(serve(&f, &c, x, &out), KG_ENOTFOUND);
            CHECK_HAS(said, bad[i].says);
            CHECK_UINT(fake->nlaunches(), 0);
            _exit(0);
        }
        int status;
        waitpid(child, &status, 0);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
            test_skip("no NVRTC");
        CHECK_INT(status, 0);
    }
}

TEST_WITHIN(serve_cuda_loads_nothing_in_a_capture, 120) {
    fixture f;
    void *out;
    float *x = make_input(4 * 64);
    kg_cu_graph graph;
    kg_cu_graph_exec exec;
    kg_cuda_scope scope;
    start_rows(&f, "", PLAIN);
    kg_call c = rows_call(4, 64);
    CHECK_OK(kg_cuda_enter(0, &scope, &err), err);
    CHECK_OK(kg_cuda_capture_begin(streams[0], &err), err);
    CHECK_INT(serve(&f, &c, x, &out), KG_EBUSY);
    CHECK_HAS(err.msg, "softmax/v1");
    CHECK_HAS(err.msg, "kgen.warmup(model, inputs)");
    CHECK_UINT(fake->calls("cuModuleLoadData"), 0);
    CHECK_OK(kg_cuda_capture_end(streams[0], &graph, &err), err);
    kg_cuda_graph_destroy(graph);
    /* Warmed up, the same call is recorded, and so is another size of the loaded image. */
    CHECK_OK(serve(&f, &c, x, &out), err);
    host_release(out);
    size_t before = fake->nlaunches();
    kg_call wide = rows_call(2, 128);
    CHECK_OK(kg_cuda_capture_begin(streams[0], &err), err);
    from_pool = true;
    CHECK_OK(serve(&f, &wide, x, &out), err);
    CHECK_INT(serve(&f, &c, x, &out), KG_OK);
    from_pool = false;
    CHECK_OK(kg_cuda_capture_end(streams[0], &graph, &err), err);
    CHECK_OK(kg_cuda_graph_instantiate(graph, &exec, &err), err);
    CHECK_UINT(fake->nlaunches(), before + 2);
    CHECK(fake->launch(before)->captured && !fake->launch(before)->from_graph);
    CHECK_OK(kg_cuda_graph_launch(exec, streams[0], &err), err);
    CHECK_UINT(fake->nlaunches(), before + 4);
    const fake_launch *l = fake->launch(before + 2);
    CHECK(l->from_graph);
    CHECK_UINT(l->grid[0], 2);
    CHECK_INT(FAKE_ARG(int32_t, l, 2), 128);
    CHECK_UINT(FAKE_ARG(uintptr_t, l, 1), (uintptr_t)pool);
    CHECK_UINT(fake->calls("cuModuleLoadData"), 1);
    kg_cuda_graph_exec_destroy(exec);
    kg_cuda_graph_destroy(graph);
    kg_cuda_leave(&scope);
    free(x);
    finish(&f);
}

/* ---- failures ---- */

TEST_WITHIN(serve_cuda_launch_failure_falls_back_with_one_warning, 120) {
    fixture f;
    void *out;
    float *x = make_input(4 * 64);
    start_rows(&f, "fail=cuLaunchKernelEx:0:701", PLAIN);
    kg_call c = rows_call(4, 64);
    for (int i = 0; i < 3; i++)
        CHECK_INT(serve(&f, &c, x, &out), KG_ENOTFOUND);
    CHECK_HAS(said, "softmax/v1 could not be launched (cuLaunchKernelEx: "
                    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES");
    CHECK(strstr(strstr(said, "could not be launched") + 1, "could not be launched") == NULL);
    CHECK_INT(allocated, released);
    free(x);
    finish(&f);
}

static size_t quarantined(void) {
    char **names = NULL;
    size_t n = 0;
    if (kg_list_dir(test_path("cache/quarantine"), &names, &n, NULL) != KG_OK)
        return 0;
    kg_free_names(names, n);
    return n;
}

static int in_child(void (*fn)(void)) {
    int status;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        fn();
        _exit(0);
    }
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        test_skip("no NVRTC");
    return status;
}

static void fault_at_once(void) {
    fixture f;
    void *out;
    float *x = make_input(4 * 64);
    start_rows(&f, "fault=plain:700", PLAIN);
    kg_call c = rows_call(4, 64);
    CHECK_INT(serve(&f, &c, x, &out), KG_EDEVICE);
    CHECK_HAS(err.msg, "softmax/v1: cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS");
    CHECK_HAS(err.msg, "it is quarantined: remove ");
    CHECK_UINT(quarantined(), 1);
    CHECK_INT(serve(&f, &c, x, &out), KG_EDEVICE);
}

static void refused(void) {
    fixture f;
    void *out;
    float *x = make_input(4 * 64);
    start_rows(&f, "", PLAIN);
    kg_call c = rows_call(4, 64);
    CHECK_INT(serve(&f, &c, x, &out), KG_ENOTFOUND);
    CHECK_HAS(said, "softmax/v1 is quarantined on this device after cuStreamSynchronize: "
                    "CUDA_ERROR_ILLEGAL_ADDRESS");
    CHECK_HAS(said, "cache/quarantine/");
    CHECK_UINT(fake->nlaunches(), 0);
}

static void served(void) {
    fixture f;
    void *out;
    float *x = make_input(4 * 64);
    start_rows(&f, "", PLAIN);
    kg_call c = rows_call(4, 64);
    CHECK_OK(serve(&f, &c, x, &out), err);
}

TEST_WITHIN(serve_cuda_quarantine_survives_the_process_and_is_lifted, 120) {
    CHECK_INT(in_child(fault_at_once), 0);
    CHECK_INT(in_child(refused), 0);
    CHECK_OK(kg_remove_tree(test_path("cache/quarantine"), &err), err);
    CHECK_INT(in_child(served), 0);
}

/* A later call of a Kernel that ran well before: the driver tells at the next call of all. */
TEST_WITHIN(serve_cuda_later_fault_is_put_down_to_the_last_kernel, 120) {
    fixture f;
    void *out;
    float *x = make_input(4 * 64);
    kg_cuda_scope scope;
    start_rows(&f, "", PLAIN);
    kg_call c = rows_call(4, 64);
    CHECK_OK(serve(&f, &c, x, &out), err);
    fake->fault("plain", 719);
    CHECK_OK(serve(&f, &c, x, &out), err);
    CHECK_OK(kg_cuda_enter(0, &scope, &err), err);
    CHECK_INT(kg_cuda_synchronize(&err), KG_EDEVICE); /* torch's own, say */
    CHECK_INT(serve(&f, &c, x, &out), KG_EDEVICE);
    CHECK_HAS(err.msg, "softmax/v1, the last Kernel of kgen that was launched on the device");
    CHECK_HAS(err.msg, "CUDA_ERROR_LAUNCH_FAILED");
    CHECK_UINT(quarantined(), 1);
    free(x);
    finish(&f);
}

TEST_WITHIN(serve_cuda_fault_of_others_quarantines_nobody, 120) {
    fixture f;
    void *out;
    float *x = make_input(4 * 64);
    kg_cuda_scope scope;
    start_rows(&f, "", PLAIN);
    kg_call c = rows_call(4, 64);
    CHECK_OK(kg_cuda_enter(0, &scope, &err), err);
    fake->fail("cuCtxSynchronize", 1, 700);
    CHECK_INT(kg_cuda_synchronize(&err), KG_EDEVICE);
    CHECK_INT(serve(&f, &c, x, &out), KG_EDEVICE);
    CHECK_HAS(err.msg, "before any Kernel of kgen ran on the device");
    CHECK_UINT(quarantined(), 0);
    free(x);
    finish(&f);
}

TEST_WITHIN(serve_cuda_without_a_device_falls_back, 120) {
    fixture f;
    void *out;
    float *x = make_input(4 * 64);
    start_rows(&f, "devices=0", PLAIN);
    kg_call c = rows_call(4, 64);
    CHECK_INT(serve(&f, &c, x, &out), KG_ENOTFOUND);
    free(x);
    finish(&f);
}

/* ---- which Kernel serves which device ---- */

static const struct {
    const char *pin, *min, *device;
    bool serves;
} ARCHS[] = {
    {"sm_80", "", "arch=90", true},
    {"sm_80", "", "arch=80", true},
    {"sm_90", "", "arch=80", false},
    {"sm_80", "", "arch=100", true},
    {"sm_90", "", "arch=90", true},
    {"sm_90", "", "arch=100", false},
    {"sm_80", ", \"min_arch\": \"sm_90\"", "arch=80", false},
};
static size_t which;

static void serve_arch(void) {
    fixture f;
    void *out;
    float *x = make_input(4 * 64);
    char source[2048];
    snprintf(source, sizeof(source), "%s%s%s",
             "/* kgen\n{\"format\": 1, \"op\": \"softmax\", \"target\": \"cuda\"", ARCHS[which].min,
             strstr(PLAIN, ", \"launches\""));
    pin_arch = ARCHS[which].pin;
    start_rows(&f, ARCHS[which].device, source);
    kg_call c = rows_call(4, 64);
    int rc = serve(&f, &c, x, &out);
    if (rc != (ARCHS[which].serves ? KG_OK : KG_ENOTFOUND))
        FAIL("row %zu: %s %s %s", which, kg_status_name(rc), err.msg, said);
}

TEST_WITHIN(serve_cuda_by_architecture, 300) {
    for (which = 0; which < sizeof(ARCHS) / sizeof(ARCHS[0]); which++)
        CHECK_INT(in_child(serve_arch), 0);
}

TEST_WITHIN(serve_cuda_strict_compares_the_device, 120) {
    fixture f;
    void *out;
    float *x = make_input(4 * 64);
    pin_device = "NVIDIA A100";
    start_rows(&f, "", PLAIN);
    CHECK_OK(kg_rt_set_policy("strict", &err), err);
    kg_call c = rows_call(4, 64);
    CHECK_INT(serve(&f, &c, x, &out), KG_ENOTFOUND);
    CHECK_HAS(said, "judged with device NVIDIA A100, here is Fake GPU 0");
    CHECK_OK(kg_rt_set_policy("arch", &err), err);
    CHECK_OK(serve(&f, &c, x, &out), err);
    host_release(out);
    free(x);
    finish(&f);
}

/* ---- numbers that no device has ---- */

static void bind(const char *grid, const char *more, int64_t m, int arch, const char *says) {
    char source[1024];
    kg_op *op = repo_op("kernels/ops/softmax.json");
    kg_plan *plan = NULL;
    kg_instance *inst = NULL;
    kg_tuning t;
    kg_constants constants = {.arch = arch, .max_shared = 232448, .num_sms = 132};
    snprintf(source, sizeof(source),
             "/* kgen\n{\"format\": 1, \"op\": \"softmax\", \"target\": \"cuda\", \"launches\": "
             "[{\"kernel\": \"k\", \"grid\": [%s], \"args\": [\"input\", \"output\", {\"i32\": "
             "\"M\"}], %s}]}\n*/\n",
             grid, more);
    CHECK_OK(kg_plan_from_source(source, strlen(source), "t.cu", op, &plan, &err), err);
    kg_tuning_default(plan, &t);
    kg_call c = rows_call(m, 2);
    int rc = kg_plan_bind(plan, op, &t, &constants, &c, &inst, &err);
    if (says == NULL)
        CHECK_OK(rc, err);
    else
        CHECK(rc != KG_OK);
    if (says != NULL)
        CHECK_HAS(err.msg, says);
    kg_instance_free(inst);
    kg_plan_free(plan);
    kg_op_free(op);
}

TEST(cuda_numbers_over_the_limits_are_named) {
    bind("\"M\"", "\"block\": [256]", 8, 80, NULL);
    bind("\"M * 1024 * 1024 * 1024\"", "\"block\": [256]", 8, 80, "launches[0].grid must be in");
    bind("1, \"M\"", "\"block\": [256]", 70000, 80, "launches[0].grid must be in [0, 65535]");
    bind("1", "\"block\": [\"M * 1024 * 1024 * 1024\"]", 8, 80, "launches[0].block must be in");
    bind("1", "\"block\": [64, 64]", 8, 80, "4096 threads; 1024 is the limit");
    bind("1", "\"block\": [64], \"shared\": \"232449\"", 8, 80, "launches[0].shared must be in");
    bind("\"M\"", "\"block\": [64], \"cluster\": [2]", 8, 80,
         "clusters need sm_90, this device is");
    bind("\"M\"", "\"block\": [64], \"cluster\": [16, 2]", 64, 90, "32 blocks; 16 is the limit");
    bind("\"M\"", "\"block\": [64], \"cluster\": [3]", 8, 90, "no multiple of the cluster's 3");
    bind("\"min(M, 8)\"", "\"block\": [64]", INT64_C(3) << 30, 80, "does not fit an i32");
}

/* ---- a Program that the Kernel was not judged on ---- */

#define ATTENTION                                                                                  \
    "/* kgen\n{\"format\": 1, \"op\": \"attention\", \"target\": \"cuda\", \"holes\": "            \
    "[\"SCORE\", \"MASK\"], \"launches\": [{\"kernel\": \"attend\", \"grid\": [\"B * HQ\"], "      \
    "\"block\": [32], \"args\": [\"query\", \"key\", \"value\", \"output\", \"lse\", "             \
    "\"programs\"]}]}\n*/\n"                                                                       \
    "extern \"C\" __global__ void attend(const KG_T_query *q, const KG_T_key *k, const "           \
    "KG_T_value *v, KG_T_output *o, KG_T_lse *l, KG_PROGRAMS p) {\n"                               \
    "  struct kg_mask_row r = kg_mask_row(p, 0, 0, 1);\n"                                          \
    "  struct kg_score_row s = kg_score_row(p, 0, 0, 1);\n"                                        \
    "  o[0] = kg_score(p, s, q[0], 0, 0, 1, 2) + kg_mask(p, r, 0, 0, 1, 2) + k[0] + v[0]; }\n"

enum { HEADS = 2, LENGTH = 40, WIDTH = 4 };
static bool forget_mask;

/* Causal attention with a bias looked up by head, as the Program below says. */
static void attend(const fake_launch *l, void *ctx) {
    const float *q = (const float *)FAKE_ARG(uintptr_t, l, 0), *bias = ctx;
    const float *k = (const float *)FAKE_ARG(uintptr_t, l, 1);
    const float *v = (const float *)FAKE_ARG(uintptr_t, l, 2);
    float *out = (float *)FAKE_ARG(uintptr_t, l, 3), *lse = (float *)FAKE_ARG(uintptr_t, l, 4);
    for (int r = 0; r < HEADS * LENGTH; r++) {
        int h = r / LENGTH, i = r % LENGTH;
        double w[LENGTH], sum = 0, dot, o;
        for (int j = 0; j < LENGTH; j++) {
            dot = 0;
            for (int d = 0; d < WIDTH; d++)
                dot += (double)q[r * WIDTH + d] * (double)k[(h * LENGTH + j) * WIDTH + d];
            w[j] = j <= i || forget_mask ? exp(dot / sqrt(WIDTH) + (double)bias[h]) : 0;
            sum += w[j];
        }
        for (int d = 0; d < WIDTH; d++) {
            o = 0;
            for (int j = 0; j < LENGTH; j++)
                o += w[j] / sum * (double)v[(h * LENGTH + j) * WIDTH + d];
            out[r * WIDTH + d] = (float)o;
        }
        lse[r] = (float)log(sum);
    }
}

static int serve_attention(float *bias) {
    static const char text[] =
        "program 1\ntensor t0 float32 1\nscore\n%0 = load float32 t0 h\n%1 = add float32 score "
        "%0\nreturn %1\nmask\n%0 = ge bool q kv\nreturn %0\n";
    fixture f;
    void *handles[KG_MAX_OUTPUTS] = {NULL};
    kg_value x = TENSOR(KG_F32, 1, HEADS, LENGTH, WIDTH);
    kg_call c = attention_call(x, x, x, false);
    c.device = KG_CUDA;
    c.captured[0] = TENSOR(KG_F32, HEADS).u.t;
    c.ncaptured = 1;
    c.args[5].present = true;
    CHECK_OK(kg_rt_program(text, strlen(text), &c.program, &err), err);
    start(&f, "", ATTENTION, "kernels/ops/attention.json", &c);
    fake->on_launch("attend", attend, bias);
    for (int i = 0; i < 3; i++) {
        float *data = make_input(HEADS * LENGTH * WIDTH);
        for (int k = 0; k < HEADS * LENGTH * WIDTH; k++)
            data[k] = (float)((k * 7 + i * 3) % 11) / 5.0F - 1;
        c.args[i].u.t.data = data;
    }
    c.captured[0].data = bias;
    int rc = kg_rt_run(f.rt, &c, handles, &err);
    if (rc == KG_OK) {
        CHECK_UINT(fake->launch(0)->size[5], 24); /* pointer, stride, size */
        CHECK_UINT(
            *(const uintptr_t *)(const void *)(fake->launch(0)->bytes + fake->launch(0)->offset[5]),
            (uintptr_t)bias);
        host_release(handles[0]);
        host_release(handles[1]);
    }
    size_t copies = fake->calls("cuMemcpyDtoH_v2");
    if (copies == 0)
        FAIL("%s %s %s", kg_status_name(rc), err.msg, said);
    CHECK_INT(kg_rt_run(f.rt, &c, handles, &err), rc == KG_OK ? KG_OK : KG_ENOTFOUND);
    CHECK_UINT(fake->calls("cuMemcpyDtoH_v2"), copies); /* compared once */
    for (int i = 0; i < 2 && rc == KG_OK; i++)
        host_release(handles[i]);
    CHECK_INT(allocated, released);
    for (int i = 0; i < 3; i++)
        free(c.args[i].u.t.data);
    finish(&f);
    return rc;
}

TEST_WITHIN(serve_cuda_compares_an_unjudged_program_on_copied_rows, 120) {
    static float bias[HEADS] = {0.25F, -0.5F};
    CHECK_OK(serve_attention(bias), err);
}

TEST_WITHIN(serve_cuda_refuses_an_unjudged_program_that_is_wrong, 120) {
    static float bias[HEADS] = {0.25F, -0.5F};
    forget_mask = true;
    CHECK_INT(serve_attention(bias), KG_EUNSUPPORTED);
    CHECK_HAS(said, "attention/v1 is wrong on a Program that it was not judged on");
}
