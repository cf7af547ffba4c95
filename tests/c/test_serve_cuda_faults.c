/* Failures on CUDA: what falls back, what a lost device costs, which device a Kernel is kept from,
 * and Programs that a Kernel was not judged on. */
#include "serve_cuda_util.h"

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
    const kg_cuda_device *d = NULL;
    CHECK_OK(kg_cuda_device_get(0, &d, &err), err);
    if (kg_nvrtc_supports(d->arch, &err) != KG_OK)
        return; /* an NVRTC from before the device */
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
    kg_call by_torch = c;                               /* its Program stands for is_causal, say */
    by_torch.skip_outputs = KG_TORCH_IS_FAST;
    void *none[KG_MAX_OUTPUTS];
    CHECK_INT(kg_rt_run(f.rt, &by_torch, none, &err), KG_ENOTFOUND);
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
