/* What the launcher hands to the driver, what a capture may do, and what threads do to each other.
 */
#include "serve_cuda_util.h"

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

/* ---- plain rows ---- */

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

static kg_cu_stream other_stream;
static pthread_barrier_t barrier;

static void *capture_elsewhere(void *arg) {
    kg_cuda_scope scope;
    kg_error e;
    kg_cu_graph graph;
    (void)arg;
    CHECK_OK(kg_cuda_enter(0, &scope, &e), e);
    CHECK_OK(kg_cuda_capture_begin(other_stream, &e), e);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    CHECK_OK(kg_cuda_capture_end(other_stream, &graph, &e), e);
    kg_cuda_graph_destroy(graph);
    kg_cuda_leave(&scope);
    return NULL;
}

/* A first call in one thread neither fails by another thread's capture nor ends it. */
TEST_WITHIN(serve_cuda_loads_while_another_thread_captures, 120) {
    fixture f;
    void *out;
    float *x = make_input(4 * 64);
    pthread_t thread;
    kg_cuda_scope scope;
    start_rows(&f, "", PLAIN);
    CHECK_OK(kg_cuda_enter(0, &scope, &err), err);
    CHECK_OK(kg_cuda_stream_create(&other_stream, &err), err);
    pthread_barrier_init(&barrier, NULL, 2);
    CHECK_INT(pthread_create(&thread, NULL, capture_elsewhere, NULL), 0);
    pthread_barrier_wait(&barrier);
    from_pool = true;
    kg_call c = rows_call(4, 64);
    int rc = serve(&f, &c, x, &out);
    if (rc != KG_OK)
        FAIL("%s %s", err.msg, said);
    pthread_barrier_wait(&barrier);
    pthread_join(thread, NULL);
    kg_cuda_stream_destroy(other_stream);
    kg_cuda_leave(&scope);
    free(x);
    finish(&f);
}

/* Waiting is for an image's first run alone, not for each new shape. */
TEST_WITHIN(serve_cuda_waits_once_an_image, 120) {
    fixture f;
    void *out;
    float *x = make_input(64 * 64);
    start_rows(&f, "", PLAIN);
    for (int64_t m = 1; m < 20; m++) {
        kg_call c = rows_call(m, 64);
        CHECK_OK(serve(&f, &c, x, &out), err);
        host_release(out);
    }
    CHECK_UINT(fake->calls("cuStreamSynchronize"), 2); /* before and after it */
    free(x);
    finish(&f);
}

static const fixture *shared;
static void *serve_many(void *arg) {
    thread_stream = (int)(intptr_t)arg % 2;
    float *x = make_input(4 * 64);
    for (int i = 0; i < 100; i++) {
        kg_error e = {.msg = ""};
        void *handles[KG_MAX_OUTPUTS];
        kg_call c = rows_call(2 + i % 3, 64);
        c.args[0].u.t.data = x;
        if (kg_rt_run(shared->rt, &c, handles, &e) != KG_OK)
            FAIL("%s", e.msg);
        host_release(handles[0]);
    }
    free(x);
    return NULL;
}

/* Each thread on a stream of its own choice, all through one image and its encoded maps. */
TEST_WITHIN(serve_cuda_eight_threads_on_two_streams, 120) {
    fixture f;
    pthread_t threads[8];
    size_t on[2] = {0, 0};
    start_rows(&f, "arch=90", EVERYTHING);
    shared = &f;
    kg_cuda_scope scope;
    CHECK_OK(kg_cuda_enter(0, &scope, &err), err);
    CHECK_OK(kg_cuda_stream_create(&streams[1], &err), err);
    kg_cuda_leave(&scope);
    for (intptr_t i = 0; i < 8; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, serve_many, (void *)i), 0);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    CHECK_UINT(fake->nlaunches(), 1600);
    for (size_t i = 0; i < 1600; i++)
        on[fake->launch(i)->stream == (void *)streams[1]]++;
    CHECK_UINT(on[0], 800);
    CHECK_UINT(on[1], 800);
    CHECK_INT(allocated, released);
    CHECK_UINT(fake->live_bytes(), 0);
    CHECK_UINT(fake->calls("cuModuleLoadData"), 1);
    finish(&f);
}
