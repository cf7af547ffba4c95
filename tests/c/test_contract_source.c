/* The translation unit of a Candidate: compiled, loaded and called through its entries; a prototype
 * that differs from the plan does not compile; calls that need the same code have the same text. */
#include <dlfcn.h>

#include "contract_util.h"
#include "sys/cc.h"

static const char source[] =
    "/* kgen\n"
    "{ \"format\": 1, \"op\": \"softmax\", \"target\": \"cpu\",\n"
    "  \"tunables\": {\"VEC\": [16, 8], \"BIAS\": [-3]}, \"specialize\": [\"N\"],\n"
    "  \"workspace\": {\"work\": {\"dtype\": \"float64\", \"shape\": [\"M\"]}},\n"
    "  \"launches\": [{\"kernel\": \"sums\", \"range\": \"M\", \"args\": [\"input\", \"work\", "
    "{\"i64\": \"input.size(1)\"}, {\"f64\": 0.25}]},\n"
    "    {\"kernel\": \"spread\", \"range\": \"M\", \"args\": [\"output\", \"work\", {\"i32\": "
    "\"K\"}, "
    "{\"f32\": 2}]}] }\n"
    "*/\n"
    "void sums(int64_t begin, int64_t end, const KG_T_input *input, KG_T_work *work, int64_t n,\n"
    "          double add) {\n"
    "    for (int64_t r = begin; r < end; r++) {\n"
    "        work[r] = add;\n"
    "        for (int64_t i = 0; i < n; i++)\n"
    "            work[r] += input[r * n + i];\n"
    "    }\n"
    "}\n"
    "#if !KG_EXACT_N || KG_DTYPE_input != KG_F32 || KG_DTYPE_work != KG_F64\n"
    "#error wrong macros\n"
    "#endif\n"
    "void spread(int64_t begin, int64_t end, KG_T_output *output, KG_T_work *work, int32_t k,\n"
    "            float by) {\n"
    "    for (int64_t r = begin; r < end; r++)\n"
    "        for (int64_t i = 0; i < N; i++)\n"
    "            output[r * N + i] = (float)work[r] * by + (float)(k * VEC + BIAS);\n"
    "}\n";

typedef void (*entry)(int64_t begin, int64_t end, void *const *args);

typedef struct built {
    kg_op *op;
    kg_plan *plan;
    kg_tuning tuning;
    kg_call call;
    kg_dims dims;
    kg_buf text;
} built;

static built build(const char *text, int dtype, bool exact) {
    built b = {.op = repo_op("kernels/ops/softmax.json")};
    kg_error err = {0};
    CHECK_OK(kg_plan_from_source(text, strlen(text), "x.c", b.op, &b.plan, &err), err);
    kg_tuning_default(b.plan, &b.tuning);
    b.call = softmax_call(TENSOR(dtype, 4, 3), -1);
    CHECK_OK(kg_op_dims(b.op, &b.call, &b.dims, &err), err);
    kg_buf_init(&b.text, 0);
    CHECK_OK(kg_source_build(b.plan, b.op, &b.tuning, &b.call, exact ? &b.dims : NULL, text,
                             strlen(text), "x.c", &b.text, &err),
             err);
    return b;
}

static void close_built(built *b) {
    kg_plan_free(b->plan);
    kg_op_free(b->op);
    kg_buf_free(&b->text);
}

static void compile_fails(const char *from, const char *to, const char *message) {
    char *changed = replaced(source, from, to);
    built b = build(changed, KG_F32, true);
    kg_buf object, messages;
    kg_error err = {0};
    kg_buf_init(&object, 0);
    kg_buf_init(&messages, 0);
    CHECK_INT(kg_cc_object(b.text.data, b.text.len, "x.c", NULL, "x86-64-v2", 0, &object, &messages,
                           &err),
              KG_ECOMPILE);
    CHECK_HAS(messages.data, message);
    kg_buf_free(&object);
    kg_buf_free(&messages);
    close_built(&b);
    free(changed);
}

TEST(contract_source_runs) {
    built b = build(source, KG_F32, true);
    kg_buf object, shared, messages;
    kg_error err = {0};
    kg_buf_init(&object, 0);
    kg_buf_init(&shared, 0);
    kg_buf_init(&messages, 0);
    int rc = kg_cc_object(b.text.data, b.text.len, "x.c", NULL, "x86-64-v2", 0, &object, &messages,
                          &err);
    if (rc < 0)
        FAIL("%s\n%s", err.msg, messages.data != NULL ? messages.data : "");
    CHECK_OK(kg_cc_link(object.data, object.len, &shared, &err), err);
    const char *path = test_path("x.so");
    CHECK_OK(kg_write_atomic(path, shared.data, shared.len, &err), err);
    void *image = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (image == NULL)
        FAIL("%s", dlerror());
    entry first = NULL, second = NULL;
    void *found = dlsym(image, "kg_entry_0");
    memcpy(&first, &found, sizeof first);
    found = dlsym(image, "kg_entry_1");
    memcpy(&second, &found, sizeof second);
    CHECK(first != NULL && second != NULL);
    float input[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, output[12] = {0}, by = 2;
    double work[4] = {0}, add = 0.25;
    int64_t n = 3;
    int32_t k = 1;
    first(0, 2, (void *[]){input, work, &n, &add});
    first(2, 4, (void *[]){input, work, &n, &add});
    second(1, 4, (void *[]){output, work, &k, &by});
    CHECK_NEAR(work[3], 33.25, 0);
    CHECK_NEAR(output[2], 0, 0);
    CHECK_NEAR(output[3], 15.25 * 2 + 13, 0);
    CHECK_NEAR(output[11], 33.25 * 2 + 13, 0);
    dlclose(image);
    kg_buf_free(&object);
    kg_buf_free(&shared);
    kg_buf_free(&messages);
    close_built(&b);
}

TEST(contract_source_checks_prototypes) {
    compile_fails("KG_T_work *work, int64_t n", "KG_T_work *work, int32_t n",
                  "launches[0] of the plan wants: void sums(int64_t begin, int64_t end, const "
                  "KG_T_input *input, KG_T_work *work, int64_t a2, double a3)");
    compile_fails("const KG_T_input *input", "KG_T_input *input", "launches[0] of the plan wants");
    compile_fails(", {\"f32\": 2}]", "]",
                  "launches[1] of the plan wants: void spread(int64_t begin, int64_t end, "
                  "KG_T_output *output, KG_T_work *work, int32_t K)");
    compile_fails("float by) {", "float by) { by = undeclared;", "x.c:20");
    compile_fails("void spread", "void spread2", "spread");
}

static bool same_text(const built *a, const built *b) {
    return a->text.len == b->text.len && memcmp(a->text.data, b->text.data, a->text.len) == 0;
}

TEST(contract_source_is_the_same_for_the_same_code) {
    built exact = build(source, KG_F32, true), open = build(source, KG_F32, false);
    built half = build(source, KG_F16, false), again = build(source, KG_F32, false);
    kg_error err = {0};
    CHECK(!same_text(&exact, &open));
    CHECK(!same_text(&half, &open));
    CHECK(same_text(&again, &open));
    CHECK_HAS(exact.text.data, "#define KG_EXACT_N 1\n#define N 3\n");
    CHECK_HAS(open.text.data, "#define KG_EXACT_N 0\n#line 1 \"x.c\"\n");
    CHECK_HAS(open.text.data, "#define VEC 16\n#define BIAS (-3)\n");
    CHECK_HAS(half.text.data, "#define KG_T_input _Float16\n#define KG_DTYPE_input 2\n");
    /* Another size, alignment and address: no new image. */
    kg_buf_clear(&again.text);
    again.call = softmax_call(TENSOR(KG_F32, 40, 300), 0);
    again.call.align[0] = 4;
    again.call.args[0].u.t.data = (void *)(uintptr_t)4096;
    CHECK_OK(kg_source_build(again.plan, again.op, &again.tuning, &again.call, NULL, source,
                             strlen(source), "x.c", &again.text, &err),
             err);
    CHECK(same_text(&again, &open));
    close_built(&exact);
    close_built(&open);
    close_built(&half);
    close_built(&again);
}

TEST(contract_source_escapes_its_name) {
    built b = build(source, KG_F32, false);
    kg_error err = {0};
    kg_buf_clear(&b.text);
    CHECK_OK(kg_source_build(b.plan, b.op, &b.tuning, &b.call, NULL, "int x;", 6, "a\"b\\c\nd.c",
                             &b.text, &err),
             err);
    CHECK_HAS(b.text.data, "#line 1 \"a\\\"b\\\\c d.c\"\nint x;\n");
    close_built(&b);
}

static const char SOFTCAP[] = "program 1\nscore\n%0 = tanh float32 score\nreturn %0\n";
static const char SHIFTED[] = "program 1\nscore\n%0 = add float32 score 1.0\nreturn %0\n";

/* KG_ROUGH in what CUDA gets for a Program over tensors of a dtype; 0 when there is none. */
static int roughness_of(const char *program, int dtype, uint32_t skip) {
    kg_op *op = repo_op("kernels/ops/attention.json");
    char *text = repo_text("tests/golden/plan/tma.cu");
    kg_program *program_read = NULL;
    kg_plan *p = NULL;
    kg_tuning t;
    kg_error err = {0};
    kg_buf out;
    kg_value q = TENSOR(dtype, 1, 4, 16, 64);
    kg_call c = attention_call(q, q, q, false);
    int level = 0;
    c.device = KG_CUDA;
    c.skip_outputs = skip;
    kg_buf_init(&out, 0);
    CHECK_OK(kg_program_parse(program, strlen(program), &program_read, &err), err);
    c.program = program_read;
    CHECK_OK(kg_plan_from_source(text, strlen(text), "x.cu", op, &p, &err), err);
    kg_tuning_default(p, &t);
    CHECK_OK(kg_source_build(p, op, &t, &c, NULL, text, strlen(text), "x.cu", &out, &err), err);
    const char *at = strstr(out.data, "#define KG_ROUGH ");
    if (at)
        level = at[strlen("#define KG_ROUGH ")] - '0';
    kg_buf_free(&out);
    kg_plan_free(p);
    kg_program_free(program_read);
    kg_op_free(op);
    free(text);
    return level;
}

/* A rough tanh shows in a log-sum-exp: only without one. What takes none is one text either way. */
TEST(contract_source_is_as_rough_as_its_outputs_bear) {
    CHECK_INT(roughness_of(SOFTCAP, KG_BF16, 0), 1);
    CHECK_INT(roughness_of(SOFTCAP, KG_BF16, 2), 2);
    CHECK_INT(roughness_of(SOFTCAP, KG_F16, 2), 2);
    CHECK_INT(roughness_of(SOFTCAP, KG_F32, 2), 0);
    CHECK_INT(roughness_of(SHIFTED, KG_BF16, 2), 1);
}

/* What CUDA gets: macros, Programs and the text; no entries, whose place the kernel's own
 * parameters take. */
TEST(contract_source_for_cuda) {
    kg_op *op = repo_op("kernels/ops/attention.json");
    char *text = repo_text("tests/golden/plan/tma.cu");
    kg_plan *p = NULL;
    kg_tuning t;
    kg_error err = {0};
    kg_dims dims;
    kg_buf out;
    kg_value q = TENSOR(KG_F16, 1, 4, 16, 64);
    kg_call c = attention_call(q, q, q, false);
    c.device = KG_CUDA;
    kg_buf_init(&out, 0);
    CHECK_OK(kg_plan_from_source(text, strlen(text), "x.cu", op, &p, &err), err);
    kg_tuning_default(p, &t);
    CHECK_OK(kg_op_dims(op, &c, &dims, &err), err);
    CHECK_OK(kg_source_build(p, op, &t, &c, &dims, text, strlen(text), "x.cu", &out, &err), err);
    CHECK_HAS(out.data, "#define KG_ARCH (__CUDA_ARCH__ / 10)\n");
    CHECK_HAS(out.data, "#define KG_T_query unsigned short\n#define KG_DTYPE_query 2\n");
    CHECK_HAS(out.data, "#define KG_T_lse float\n");
    CHECK_HAS(out.data, "#define KG_EXACT_DV 1\n#define DV 64\n");
    CHECK_HAS(out.data, "KG_HAS_SCORE");
    CHECK(strstr(out.data, "kg_entry_") == NULL);
    kg_buf_free(&out);
    kg_plan_free(p);
    kg_op_free(op);
    free(text);
}
