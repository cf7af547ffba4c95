/* Serving without torch: a host of malloc and threads. Which Kernel runs, what it allocates, what
 * many threads and a change of registries do to each other, and the check of an instantiated
 * Program. */
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "contract_util.h"
#include "runtime/runtime.h"
#include "runtime/sample.h"
#include "sys/cc.h"

/* ---- a host ---- */

static _Atomic int allocated, released;

static int host_empty(kg_tensor *t, int32_t device, int32_t index, void **handle, kg_error *err) {
    (void)device;
    (void)index;
    size_t n = (size_t)kg_tensor_numel(t) * kg_dtype_size(t->dtype);
    void *p = aligned_alloc(64, (n + 127) / 64 * 64);
    if (p == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory");
    t->data = p;
    *handle = p;
    allocated++;
    return KG_OK;
}

static void host_release(void *handle) {
    free(handle);
    released++;
}

typedef struct piece {
    int64_t begin, end;
    void (*fn)(int64_t, int64_t, void *);
    void *ctx;
} piece;

static void *run_piece(void *p) {
    piece *w = p;
    w->fn(w->begin, w->end, w->ctx);
    return NULL;
}

static int host_parallel(int64_t n, int64_t grain, void (*fn)(int64_t, int64_t, void *), void *ctx,
                         kg_error *err) {
    (void)grain;
    (void)err;
    pthread_t threads[8];
    piece work[8];
    for (int64_t i = 0; i < n; i++) {
        work[i] = (piece){i, i + 1, fn, ctx};
        CHECK_INT(pthread_create(&threads[i], NULL, run_piece, &work[i]), 0);
    }
    for (int64_t i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    return KG_OK;
}

static int host_threads(void) {
    return 3;
}

static const kg_host host = {host_empty, host_release, host_parallel, host_threads, NULL};

/* ---- a registry ---- */

#define SOURCE(value)                                                                              \
    "/* kgen\n{\"format\": 1, \"op\": \"softmax\", \"target\": \"cpu\", \"specialize\": "          \
    "[\"N\"],\n"                                                                                   \
    "\"require\": \"N % 7 != 0\", \"workspace\": {\"w\": {\"dtype\": \"float32\", \"shape\": "     \
    "[\"M\"], \"zero\": true}},\n"                                                                 \
    "\"launches\": [{\"kernel\": \"rows\", \"range\": \"M\", \"grain\": \"2\", \"args\": "         \
    "[\"input\", \"output\", \"w\", {\"i64\": \"N\"}, {\"f32\": 0.5}]}]}\n*/\n"                    \
    "#include <stdint.h>\n"                                                                        \
    "void rows(int64_t begin, int64_t end, const KG_T_input *x, KG_T_output *y, KG_T_w *w, "       \
    "int64_t n, float half) {\n"                                                                   \
    "    for (int64_t m = begin; m < end; m++) {\n"                                                \
    "        w[m] += half;\n"                                                                      \
    "        for (int64_t i = 0; i < n; i++)\n"                                                    \
    "            y[m * n + i] = x[m * n + i] + w[m] + " value " * KG_EXACT_N;\n"                   \
    "    }\n}\n"

typedef struct fixture {
    char registry[512];
    kg_op *op;
    kg_plan *plan;
    kg_index_kernel kernels[2];
    kg_index_pin pins[2];
} fixture;

static const char *const arch =
#if defined(__x86_64__)
    "x86-64-v1";
#else
    "aarch64";
#endif

static void pin_of(const kg_op *op, int64_t m, int64_t n, bool open, kg_key *key) {
    kg_error err = {0};
    kg_dims dims;
    kg_call call = softmax_call(TENSOR(KG_F32, m, n), 1);
    CHECK_OK(kg_op_dims(op, &call, &dims, &err), err);
    CHECK_OK(kg_key_of_call(op, &call, &dims, key, &err), err);
    for (int i = 0; open && i < 2; i++) { /* M and N; K stays 1 */
        key->min[i] = 1;
        key->max[i] = 1000;
    }
}

/* Kernel v1 adds 0.5 for any size up to 1000; v2 adds 100.5 for (4, 10) exactly. */
static void make_registry(fixture *f) {
    static const char *const texts[2] = {SOURCE("0"), SOURCE("100")};
    static const char *const names[2] = {"softmax/one.c", "softmax/two.c"};
    kg_error err = {0};
    const kg_cc *cc;
    if (kg_cc_find(&cc, &err) != KG_OK)
        test_skip("%s", err.msg);
    memset(f, 0, sizeof(*f));
    setenv("KGEN_CACHE", test_path("cache"), 1);
    snprintf(f->registry, sizeof f->registry, "%s", test_path("registry"));
    CHECK_OK(kg_mkdirs(test_path("registry/softmax"), &err), err);
    f->op = repo_op("kernels/ops/softmax.json");
    CHECK_OK(kg_plan_from_source(texts[0], strlen(texts[0]), "a test", f->op, &f->plan, &err), err);
    for (uint32_t i = 0; i < 2; i++) {
        char path[600];
        snprintf(path, sizeof path, "%s/%s", f->registry, names[i]);
        CHECK_OK(kg_write_atomic(path, texts[i], strlen(texts[i]), &err), err);
        f->kernels[i] = (kg_index_kernel){.id = i == 0 ? "1111" : "2222",
                                          .arch = arch,
                                          .source = names[i],
                                          .version = (int32_t)i + 1,
                                          .source_hash = kg_xxh128(texts[i], strlen(texts[i])),
                                          .env = {"", "", "", "", ""},
                                          .plan = f->plan};
        f->pins[i].kernel = i;
        pin_of(f->op, 4, 10, i == 0, &f->pins[i].key);
    }
}

static void write_index(fixture *f, size_t nkernels) {
    kg_error err = {0};
    kg_index_op block = {.op = f->op,
                         .task = "",
                         .nkernels = nkernels,
                         .npins = nkernels,
                         .kernels = f->kernels,
                         .pins = f->pins};
    char *real = realpath(f->registry, NULL);
    CHECK(real != NULL);
    char *path = kg_index_path(real);
    CHECK_OK(kg_index_write(path, real, kg_registry_fingerprint(real), &block, 1, &err), err);
    free(path);
    free(real);
}

static void start(fixture *f, const kg_rt_op **op) {
    kg_error err = {0};
    make_registry(f);
    write_index(f, 2);
    CHECK_OK(kg_rt_start(&host, "2.13.0+cpu", &err), err);
    CHECK_OK(kg_rt_add_registry(f->registry, true, &err), err);
    CHECK_OK(kg_rt_find_op("softmax", op, &err), err);
}

static void finish(fixture *f) {
    kg_plan_free(f->plan);
    kg_op_free(f->op);
}

/* out - in of the first element, after checking that it is the same for all; NAN for a fallback. */
static double serve(const kg_rt_op *op, int64_t m, int64_t n) {
    kg_error err = {0};
    void *handles[KG_MAX_OUTPUTS];
    kg_call call = softmax_call(TENSOR(KG_F32, m, n), 1);
    /* 256: the alignment is part of a call's class, and no more than that counts. */
    float *x = aligned_alloc(256, (size_t)(m * n * 4 + 255) / 256 * 256);
    for (int64_t i = 0; i < m * n; i++)
        x[i] = (float)i;
    call.args[0].u.t.data = x;
    int rc = kg_rt_run(op, &call, handles, &err);
    double added = (double)NAN;
    if (rc == KG_OK) {
        const float *y = handles[0];
        added = (double)y[0];
        for (int64_t i = 0; i < m * n; i++)
            CHECK_NEAR(y[i] - x[i], added, 1e-2);
        host_release(handles[0]);
    } else {
        CHECK_INT(rc, KG_ENOTFOUND);
    }
    free(x);
    return added;
}

TEST(serve_exact_dynamic_and_none) {
    fixture f;
    const kg_rt_op *op;
    kg_rt_counters c;
    start(&f, &op);
    CHECK_NEAR(serve(op, 5, 10), 0.5, 1e-6);
    CHECK_NEAR(serve(op, 4, 10), 100.5, 1e-6);
    CHECK_NEAR(serve(op, 1, 1), 0.5, 1e-6);
    CHECK(isnan(serve(op, 5, 14)));   /* require */
    CHECK(isnan(serve(op, 5, 1001))); /* the range */
    kg_rt_count(&c);
    CHECK_UINT(c.served, 3);
    CHECK_UINT(c.fallbacks, 2);
    CHECK_UINT(c.classes, 5);
    finish(&f);
}

TEST(serve_allocates_outputs_alone) {
    fixture f;
    const kg_rt_op *op;
    start(&f, &op);
    serve(op, 6, 10);
    int before = allocated;
    for (int i = 0; i < 100; i++)
        serve(op, 6, 10);
    CHECK_INT(allocated - before, 100); /* a small workspace takes none */
    CHECK_INT(allocated, released);
    fixture *unused = &f;
    finish(unused);
}

TEST(serve_resolves_a_class_once) {
    fixture f;
    const kg_rt_op *op;
    kg_rt_counters c;
    start(&f, &op);
    for (int i = 0; i < 50; i++)
        serve(op, 6, 10 + i % 2);
    kg_rt_count(&c);
    CHECK_UINT(c.resolved, 2);
    CHECK_UINT(c.served, 50);
    finish(&f);
}

TEST(serve_takes_a_reloaded_registry) {
    fixture f;
    const kg_rt_op *op;
    kg_error err = {0};
    start(&f, &op);
    CHECK_NEAR(serve(op, 4, 10), 100.5, 1e-6);
    CHECK_OK(kg_mkdirs(test_path("registry/softmax/later"), &err), err);
    write_index(&f, 1); /* without the exact pin */
    CHECK_NEAR(serve(op, 4, 10), 100.5, 1e-6);
    CHECK_OK(kg_rt_reload(&err), err);
    CHECK_NEAR(serve(op, 4, 10), 0.5, 1e-6);
    CHECK_OK(kg_rt_remove_registry(f.registry, &err), err);
    CHECK(isnan(serve(op, 4, 10)));
    CHECK_ERR(kg_rt_remove_registry(f.registry, &err), err, KG_ENOTFOUND, "is not open");
    CHECK_ERR(kg_rt_add_registry(test_path("nowhere"), true, &err), err, KG_ENOTFOUND,
              "there is no such folder");
    finish(&f);
}

static const kg_rt_op *shared_op;
static _Atomic bool done;

static void *keep_serving(void *arg) {
    int64_t which = (int64_t)(intptr_t)arg;
    for (int i = 0; !done || i < 200; i++) {
        double added = serve(shared_op, 4, 8 + (i + which) % 5);
        CHECK(added == 0.5 || added == 100.5 || isnan(added));
        if (i > 100000)
            break;
    }
    return NULL;
}

/* Readers hold no lock: under the sanitizers a snapshot that is freed too early ends the test. */
TEST(serve_while_registries_come_and_go) {
    fixture f;
    kg_error err = {0};
    pthread_t threads[4];
    start(&f, &shared_op);
    for (int64_t n = 8; n < 13; n++)
        serve(shared_op, 4, n);
    for (intptr_t i = 0; i < 4; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, keep_serving, (void *)i), 0);
    for (int i = 0; i < 60; i++) {
        CHECK_OK(kg_rt_remove_registry(f.registry, &err), err);
        CHECK_OK(kg_rt_add_registry(f.registry, false, &err), err);
        CHECK_OK(kg_rt_set_policy(i % 2 ? "arch" : "off", &err), err);
    }
    done = true;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK_INT(allocated, released);
    finish(&f);
}

TEST(serve_names_what_settings_there_are) {
    kg_error err = {0};
    CHECK_OK(kg_rt_start(&host, NULL, &err), err);
    CHECK_ERR(kg_rt_set_policy("lax", &err), err, KG_EINVAL, "it is strict, arch or off");
    CHECK_OK(kg_rt_set_policy("strict", &err), err);
    CHECK_STR(kg_rt_policy(), "strict");
    const kg_rt_op *op;
    CHECK_ERR(kg_rt_find_op("swish", &op, &err), err, KG_ENOTFOUND,
              "no open registry has the Op swish");
    CHECK_INT(kg_rt_set_precision(KG_PREC_TF32), KG_PREC_NATIVE);
    CHECK_INT(kg_rt_precision(), KG_PREC_TF32);
}

TEST(programs_are_interned) {
    static const char text[] = "program 1\nmask\n%0 = ge bool q kv\nreturn %0\n";
    const struct kg_program *a, *b;
    kg_error err = {0};
    CHECK_OK(kg_rt_program(text, strlen(text), &a, &err), err);
    CHECK_OK(kg_rt_program(text, strlen(text), &b, &err), err);
    CHECK(a == b);
    CHECK(kg_rt_program("program 7\n", 10, &b, &err) != KG_OK);
}

/* ---- the check of an instantiated Program ---- */

enum { B = 2, H = 4, KVH = 2, SQ = 70, SK = 33, D = 8, DV = 5 };
static float q[B * H * SQ * D], k[B * KVH * SK * D], v[B * KVH * SK * DV], y[B * H * SQ * DV],
    lse[B * H * SQ];

static float fill(size_t i) {
    return (float)((double)(i * 2654435761U % 1000) / 500.0 - 1.0);
}

/* Causal attention, in double, by the textbook. */
static void reference(void) {
    for (int r = 0; r < B * H * SQ; r++) {
        int b = r / (H * SQ), h = r / SQ % H, i = r % SQ, g = h / (H / KVH);
        double weights[SK], sum = 0;
        for (int j = 0; j < SK; j++) {
            double dot = 0;
            for (int d = 0; d < D; d++)
                dot += (double)q[r * D + d] * (double)k[((b * KVH + g) * SK + j) * D + d];
            weights[j] = j <= i ? exp(dot / sqrt(D)) : 0;
            sum += weights[j];
        }
        lse[r] = (float)log(sum);
        for (int d = 0; d < DV; d++) {
            double out = 0;
            for (int j = 0; j < SK; j++)
                out += weights[j] / sum * (double)v[((b * KVH + g) * SK + j) * DV + d];
            y[r * DV + d] = (float)out;
        }
    }
}

TEST(sample_accepts_right_and_finds_wrong_rows) {
    static const char text[] = "program 1\nmask\n%0 = ge bool q kv\nreturn %0\n";
    kg_error err = {0};
    kg_op *op = repo_op("kernels/ops/attention.json");
    kg_call call = attention_call(TENSOR(KG_F32, B, H, SQ, D), TENSOR(KG_F32, B, KVH, SK, D),
                                  TENSOR(KG_F32, B, KVH, SK, DV), true);
    kg_tensor outs[2] = {TENSOR(KG_F32, B, H, SQ, DV).u.t, TENSOR(KG_F32, B, H, SQ).u.t};
    for (size_t i = 0; i < sizeof q / sizeof *q; i++)
        q[i] = fill(i);
    for (size_t i = 0; i < sizeof k / sizeof *k; i++)
        k[i] = fill(i + 7);
    for (size_t i = 0; i < sizeof v / sizeof *v; i++)
        v[i] = fill(i + 13);
    reference();
    call.args[0].u.t.data = q;
    call.args[1].u.t.data = k;
    call.args[2].u.t.data = v;
    outs[0].data = y;
    outs[1].data = lse;
    CHECK_OK(kg_rt_program(text, strlen(text), &call.program, &err), err);
    CHECK_OK(kg_sample_attention(op, &call, outs, &err), err);
    y[0] += 0.1F; /* the first row is always looked at, and so is the last */
    CHECK_ERR(kg_sample_attention(op, &call, outs, &err), err, KG_EINVAL, "row (0, 0, 0)");
    y[0] -= 0.1F;
    y[B * H * SQ * DV - 1] = NAN;
    CHECK_ERR(kg_sample_attention(op, &call, outs, &err), err, KG_EINVAL, "row (1, 3, 69)");
    reference();
    lse[B * H * SQ - 1] += 1;
    CHECK_ERR(kg_sample_attention(op, &call, outs, &err), err, KG_EINVAL, "lse of row (1, 3, 69)");
    outs[1].data = NULL; /* not wanted by the caller */
    CHECK_OK(kg_sample_attention(op, &call, outs, &err), err);
    call.program = NULL; /* what a Kernel gives that forgot the mask is not what this asks for */
    CHECK_ERR(kg_sample_attention(op, &call, outs, &err), err, KG_EINVAL, "row (0, 0, 0)");
    kg_op_free(op);
}
