/* Serving on CUDA without a GPU, for the tests: the driver is tests/fake's, the compiler is NVRTC
 * itself, the host is this file. One registry of one Kernel, pinned for any size. */
#ifndef KG_TEST_SERVE_CUDA_UTIL_H
#define KG_TEST_SERVE_CUDA_UTIL_H

#include <pthread.h>
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
static _Thread_local int thread_stream; /* added to the device for which stream is current */
static _Atomic int allocated, released;
static kg_error err;

/* Memory that is there before a capture, as torch has for its graphs. */
static _Alignas(256) unsigned char pool[16384];
static size_t pool_used;
static bool from_pool;

static inline bool in_pool(const void *p) {
    return (uintptr_t)p >= (uintptr_t)pool && (uintptr_t)p < (uintptr_t)pool + sizeof(pool);
}

static inline int host_empty(kg_tensor *t, int32_t device, int32_t index, void **handle,
                             kg_error *e) {
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

static inline void host_release(void *handle) {
    kg_cuda_scope scope;
    released++;
    if (in_pool(handle))
        return;
    if (kg_cuda_enter(0, &scope, NULL) == KG_OK)
        kg_cuda_free((kg_cu_ptr)(uintptr_t)handle);
    kg_cuda_leave(&scope);
}

static inline int host_parallel(int64_t n, int64_t grain, void (*fn)(int64_t, int64_t, void *),
                                void *ctx, kg_error *e) {
    (void)grain, (void)e;
    fn(0, n, ctx);
    return KG_OK;
}

static inline int host_threads(void) {
    return 1;
}

static inline int host_stream(int32_t index, kg_cu_stream *out, kg_error *e) {
    (void)e;
    *out = streams[index + thread_stream];
    return KG_OK;
}

static const kg_host host = {.empty = host_empty,
                             .release = host_release,
                             .parallel = host_parallel,
                             .threads = host_threads,
                             .stream = host_stream};

static char said[8192];

static inline void hear(void *ctx, kg_log_level level, const char *message) {
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

static inline void open_pin(const kg_op *op, const kg_call *call, kg_key *key) {
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

static inline void start_process(const char *settings) {
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

static inline void start(fixture *f, const char *settings, const char *source, const char *contract,
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

static inline void finish(fixture *f) {
    kg_plan_free(f->plan);
    kg_op_free(f->op);
}

static inline kg_call rows_call(int64_t m, int64_t n) {
    kg_call c = softmax_call(TENSOR(KG_F32, m, n), 1);
    c.device = KG_CUDA;
    return c;
}

static inline void start_rows(fixture *f, const char *settings, const char *source) {
    kg_call c = rows_call(4, 64);
    start(f, settings, source, "kernels/ops/softmax.json", &c);
}

/* One call with an input of its own; the output's handle, NULL when it was not served. */
static inline int serve(const fixture *f, kg_call *c, float *x, void **out) {
    void *handles[KG_MAX_OUTPUTS] = {NULL};
    c->args[0].u.t.data = x;
    err.msg[0] = '\0';
    int rc = kg_rt_run(f->rt, c, handles, &err);
    *out = rc == KG_OK ? handles[0] : NULL;
    return rc;
}

static inline float *make_input(int64_t n) {
    float *x = aligned_alloc(256, ((size_t)n * 4 + 255) / 256 * 256);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)i;
    return x;
}

/* A kernel that reads one element; its plan takes more keys and other arguments. */
#define PLAIN_PLAN(more, args)                                                                     \
    "/* kgen\n{\"format\": 1, \"op\": \"softmax\", \"target\": \"cuda\"" more                      \
    ", \"launches\": [{\"kernel\": \"plain\", \"grid\": [\"M\"], \"block\": [64], \"args\": "      \
    "[" args "]}]}\n*/\n"
#define PLAIN_BODY                                                                                 \
    "extern \"C\" __global__ void plain(const KG_T_input *x, KG_T_output *y, int32_t n) "          \
    "{ y[0] = x[n]; }\n"
#define PLAIN PLAIN_PLAN("", "\"input\", \"output\", {\"i32\": \"N\"}") PLAIN_BODY

#endif
