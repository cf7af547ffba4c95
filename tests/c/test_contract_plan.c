/* Plans: what the reader refuses and how it says so, what a plan comes to for a call, and the
 * source that is compiled for it. */
#include "contract_util.h"

#define ROWS "tests/golden/plan/rows.c"
#define TMA "tests/golden/plan/tma.cu"

static const kg_constants machine = {.num_threads = 2, .arch = 4};
static const kg_constants hopper = {.num_sms = 132, .max_shared = 232448, .arch = 90};

static kg_plan *plan_of(const char *text, const kg_op *op) {
    kg_error err = {0};
    kg_plan *p = NULL;
    CHECK_OK(kg_plan_from_source(text, strlen(text), "x.c", op, &p, &err), err);
    return p;
}

typedef struct fixture {
    char *text;
    kg_op *op;
    kg_plan *plan;
    kg_tuning tuning;
} fixture;

static fixture open_plan(const char *path, const char *contract) {
    fixture f = {.text = repo_text(path), .op = repo_op(contract)};
    f.plan = plan_of(f.text, f.op);
    kg_tuning_default(f.plan, &f.tuning);
    return f;
}

static void close_plan(fixture *f) {
    free(f->text);
    kg_plan_free(f->plan);
    kg_op_free(f->op);
}

static fixture rows(void) {
    return open_plan(ROWS, "kernels/ops/softmax.json");
}
static fixture tma(void) {
    return open_plan(TMA, "kernels/ops/attention.json");
}

TEST(contract_plan_reads_everything) {
    fixture f = rows();
    const kg_plan *p = f.plan;
    CHECK_STR(p->op, "softmax");
    CHECK_STR(p->min_arch, "x86-64-v2");
    CHECK_UINT(p->ntunables, 2);
    CHECK_INT(p->tunables[1].values[2], -1);
    CHECK_INT(f.tuning.value[0], 16);
    CHECK_STR(p->specialize[1], "K");
    CHECK_INT(p->workspace[0].dtype, KG_F32);
    CHECK(p->workspace[0].zero);
    CHECK_UINT(p->zero_outputs, 1);
    CHECK_UINT(p->flags, KG_FLAG_NO_CONTRACT);
    CHECK_UINT(p->launches[1].nargs, 7);
    CHECK_INT(p->launches[1].args[2].kind, KG_PA_WORKSPACE);
    CHECK_INT(p->launches[1].args[4].dtype, KG_I32);
    CHECK_NEAR(p->launches[1].args[6].literal, -2, 0);
    close_plan(&f);
}

TEST(contract_plan_names_its_op) {
    kg_error err = {0};
    char op[128];
    const char *text =
        "\xef\xbb\xbf\n/* kgen {\"format\": 1, \"op\": \"gelu\", \"z\": 1} */ int x;";
    CHECK_OK(kg_source_op(text, strlen(text), "x.c", op, &err), err);
    CHECK_STR(op, "gelu");
    text = "int x; /* kgen {} */";
    CHECK_ERR(kg_source_op(text, strlen(text), "x.c", op, &err), err, KG_EFORMAT,
              "x.c: a Candidate must open with its plan");
    text = "/* kgenius */";
    CHECK_ERR(kg_source_op(text, strlen(text), "x.c", op, &err), err, KG_EFORMAT, "must open");
    text = "/* kgen {\"format\": 1}";
    CHECK_ERR(kg_source_op(text, strlen(text), "x.c", op, &err), err, KG_EFORMAT, "*/ is missing");
    text = "/* kgen\n{ \"format\": 1,\n  \"op\" 3 } */";
    CHECK_ERR(kg_source_op(text, strlen(text), "x.c", op, &err), err, KG_EFORMAT,
              "plan of x.c: line 3, column 8");
    text = "/* kgen {\"format\": 2} */";
    CHECK_ERR(kg_source_op(text, strlen(text), "softmax.c", op, &err), err, KG_EVERSION,
              "plan of softmax.c: format 2 is newer than this kgen, which reads format 1");
    text = "/* kgen {\"format\": 1, \"op\": \"../x\"} */";
    CHECK_ERR(kg_source_op(text, strlen(text), "x.c", op, &err), err, KG_EFORMAT, "no name");
}

static void refused(fixture *f, const char *from, const char *to, int code, const char *message) {
    char *changed = replaced(f->text, from, to);
    kg_plan *p = NULL;
    kg_error err = {0};
    CHECK_ERR(kg_plan_from_source(changed, strlen(changed), "x.c", f->op, &p, &err), err, code,
              message);
    CHECK_HAS(err.msg, "plan of x.c: ");
    free(changed);
}

TEST(contract_plan_refuses) {
    fixture f = rows();
    refused(&f, "\"require\"", "\"requires\"", KG_EFORMAT, "unknown key \"requires\"");
    refused(&f, "\"format\": 1, ", "\"format\": 1, \"prepare\": {}, ", KG_EUNSUPPORTED,
            "prepare is reserved");
    refused(&f, "\"op\": \"softmax\"", "\"op\": \"gelu\"", KG_EFORMAT,
            "op is \"gelu\", but the contract is that of softmax");
    refused(&f, "\"target\": \"cpu\"", "\"target\": \"tpu\"", KG_EFORMAT, "it must be cpu or cuda");
    refused(&f, "x86-64-v2", "x86-64-v5", KG_EFORMAT, "min_arch is \"x86-64-v5\"; known are");
    refused(&f, "x86-64-v2", "sm_80", KG_EFORMAT, "min_arch is sm_80, but target is cpu");
    refused(&f, "[16, 8]", "[]", KG_EFORMAT, "tunables.VEC has 0 elements; it may have 1 to 32");
    refused(&f, "[16, 8]", "[16, 16]", KG_EFORMAT, "tunables.VEC has 16 twice");
    refused(&f, "[16, 8]", "[16, 8.5]", KG_EFORMAT, "tunables.VEC[1]: expected an integer");
    refused(&f, "\"VEC\": [", "\"N\": [", KG_EFORMAT,
            "tunables.N: N is the name of a dim of the Op");
    refused(&f, "\"VEC\": [", "\"int\": [", KG_EFORMAT, "it is a word of C");
    refused(&f, "\"VEC\": [", "\"KG_X\": [", KG_EFORMAT, "kgen's own");
    refused(&f, "\"VEC\": [", "\"ARCH\": [", KG_EFORMAT, "it is a device constant");
    refused(&f, "\"VEC\": [", "\"a-b\": [", KG_EFORMAT, "tunables.a-b: the key is no name");
    refused(&f, "[\"N\", \"K\"]", "[\"Z\"]", KG_EFORMAT,
            "specialize[0] is \"Z\", which is no dim of softmax; known are D, M, N, K");
    refused(&f, "[\"N\", \"K\"]", "[\"N\", \"N\"]", KG_EFORMAT, "specialize[1] names N twice");
    refused(
        &f, "N % VEC == 0", "N % VECS == 0", KG_EFORMAT,
        "require: expression \"N % VECS == 0 && input.contiguous && (K == 1 || K > 4)\", column "
        "5: unknown name VECS; known are D, M, N, K, dim, VEC, ROWS");
    refused(&f, "\"partial\": {", "\"input\": {", KG_EFORMAT, "is the name of an argument");
    refused(&f, "\"float32\", \"shape\"", "\"float33\", \"shape\"", KG_EFORMAT,
            "workspace.partial.dtype is \"float33\"");
    refused(&f, "[\"output\"]", "[\"input\"]", KG_EFORMAT,
            "zero names \"input\", which is no output");
    refused(&f, "\"range\": \"M\"", "\"range\": 0", KG_EFORMAT,
            "launches[0].range is 0; it must be at least 1");
    refused(&f, "\"range\": \"M\"", "\"range\": \"M * Q\"", KG_EFORMAT,
            "launches[0].range: expression \"M * Q\", column 5: unknown name Q; known are D, M, N, "
            "K, dim, VEC, ROWS");
    refused(&f, "\"range\": \"M\"", "\"range\": \"M M\"", KG_EFORMAT,
            "launches[0].range: expression \"M M\", column 3: expected an operator");
    refused(&f, "\"range\": \"M\", \"grain\": ", "\"grain\": ", KG_EFORMAT,
            "launches[0].range is missing");
    refused(&f, "\"range\": \"M\"", "\"grid\": [\"M\"]", KG_EFORMAT,
            "launches[0].grid is for target cuda; this plan's is cpu");
    refused(&f, "\"range\": \"M\"", "\"rnage\": \"M\"", KG_EFORMAT, "unknown key \"rnage\"");
    refused(&f, "\"max(1, 65536 / max(N, 1))\"", "-4", KG_EFORMAT, "launches[0].grain is -4");
    refused(&f, "\"kernel\": \"rows\"", "\"kernel\": \"VEC\"", KG_EFORMAT,
            "name of a tunable or dim");
    refused(&f, "\"kernel\": \"rows\"", "\"kernel\": \"while\"", KG_EFORMAT, "a word of C");
    refused(&f, "[\"input\", \"output\", \"partial\"", "[\"input\", \"outptu\", \"partial\"",
            KG_EFORMAT,
            "launches[1].args[1] is \"outptu\", which is no tensor, output or workspace; known are "
            "input, output, partial, programs");
    refused(&f, "[\"input\", \"output\", \"partial\"", "[\"input\", \"output\", \"N\"", KG_EFORMAT,
            "N is a number: pass {\"i64\": \"N\"}");
    refused(&f, "[\"input\", \"output\", \"partial\"", "[\"input\", \"output\", \"dim\"",
            KG_EFORMAT, "dim has type int: pass {\"i64\": \"dim\"}");
    refused(&f, "[\"input\", \"output\", \"partial\"", "[\"input\", \"output\", 3", KG_EFORMAT,
            "launches[1].args[2] must be a name, or an object of one of i32");
    refused(&f, "[\"input\", \"output\", \"partial\"", "[\"input\", \"programs\", \"partial\"",
            KG_EFORMAT, "a launch takes \"programs\", but holes is empty");
    refused(&f, "{\"i32\": \"M", "{\"i16\": \"M", KG_EFORMAT, "launches[1].args[4] must be a name");
    refused(&f, "{\"f32\": 0.5}", "{\"f32\": \"scale\"}", KG_EFORMAT,
            "launches[1].args[5].f32 is \"scale\"; it must be a number or a float attribute "
            "(softmax has none)");
    refused(&f, "no_contract", "fast", KG_EFORMAT, "known are fast_math, no_contract");
    refused(&f, "\"zero\":  ", "\"tensor_maps\": {}, \"zero\":  ", KG_EFORMAT,
            "is for target cuda");
    refused(&f, "\"zero\":  ", "\"holes\": [\"SCORE\"], \"zero\":  ", KG_EFORMAT,
            "holes[0] is \"SCORE\", which is no hole of softmax");
    close_plan(&f);
}

TEST(contract_plan_refuses_for_cuda) {
    fixture f = tma();
    refused(&f, "\"sm_90\"", "\"sm_90a\"", KG_EFORMAT, "say sm_90");
    refused(&f, "\"block\": [128]", "\"block\": [2048]", KG_EFORMAT,
            "launches[0].block[0] is 2048; it must be at most 1024");
    refused(&f, "\"block\": [128]", "\"block\": []", KG_EFORMAT,
            "launches[0].block has 0 elements");
    refused(&f, "\"block\": [128]", "\"range\": 1", KG_EFORMAT, "range is for target cpu");
    refused(&f, "\"pdl\": true", "\"pdl\": 1", KG_EFORMAT,
            "launches[0].pdl: expected true or false");
    refused(&f, "\"swizzle\": 128", "\"swizzle\": 48", KG_EFORMAT,
            "tensor_maps.q_map.swizzle is 48; it may be 0, 32, 64, 128");
    refused(&f, "\"BLOCK_M\", 1, 1]", "\"BLOCK_M\", 1]", KG_EFORMAT,
            "tensor_maps.q_map.box has 3 elements; it must have 4");
    refused(&f, "\"tensor\": \"query\"", "\"tensor\": \"scale\"", KG_EFORMAT,
            "tensor_maps.q_map.tensor is \"scale\", which is no tensor");
    refused(&f, "{\"map\": \"q_map\"}", "{\"map\": \"k_map\"}", KG_EFORMAT, "not in tensor_maps");
    refused(&f, "{\"f32\": \"scale\"}", "{\"f32\": \"sacle\"}", KG_EFORMAT,
            "(attention has scale)");
    refused(&f, "\"lse\", \"programs\"", "\"lse\"", KG_EFORMAT, "no launch takes \"programs\"");
    refused(&f, "\"key\", \"value\"", "\"key\", \"captured\"", KG_EFORMAT, "no tensor, output");
    close_plan(&f);
}

TEST(contract_plan_binds) {
    fixture f = rows();
    kg_error err = {0};
    kg_instance *inst = NULL;
    kg_call c = softmax_call(TENSOR(KG_F32, 3, 5, 8192), -1);
    CHECK_OK(kg_plan_bind(f.plan, f.op, &f.tuning, &machine, &c, &inst, &err), err);
    CHECK_UINT(inst->nlaunches, 2);
    CHECK_INT(inst->launches[0].range, 15);
    CHECK_INT(inst->launches[0].grain, 8);
    CHECK_INT(inst->launches[1].grain, 1);
    CHECK_INT(inst->workspace_bytes[0], 15 * 2 * 4);
    CHECK_INT(inst->launches[1].args[3].u.i64, 8192);
    CHECK_INT(inst->launches[1].args[4].u.i32, 19);
    CHECK_NEAR(inst->launches[1].args[5].u.f32, 0.5, 0);
    CHECK_NEAR(inst->launches[1].args[6].u.f64, -2, 0);
    kg_instance_free(inst);
    c = softmax_call(TENSOR(KG_F32, 3, 5, 64), 2);
    CHECK_OK(kg_plan_bind(f.plan, f.op, &f.tuning, &machine, &c, &inst, &err), err);
    CHECK_UINT(inst->nlaunches, 1);
    CHECK_INT(inst->launches[0].plan_launch, 1);
    kg_instance_free(inst);
    close_plan(&f);
}

TEST(contract_plan_says_what_require_lacks) {
    fixture f = rows();
    kg_error err = {0};
    kg_instance *inst = NULL;
    kg_call c = softmax_call(TENSOR(KG_F32, 7, 1000), -1);
    CHECK_ERR(kg_plan_bind(f.plan, f.op, &f.tuning, &machine, &c, &inst, &err), err, KG_ENOTFOUND,
              "require: N % VEC == 0: N = 1000, VEC = 16");
    c = softmax_call(TENSOR(KG_F32, 7, 64), -1);
    c.args[0].u.t.stride[0] = 128;
    CHECK_ERR(kg_plan_bind(f.plan, f.op, &f.tuning, &machine, &c, &inst, &err), err, KG_ENOTFOUND,
              "require: input.contiguous: input.contiguous = 0");
    c = softmax_call(TENSOR(KG_F32, 7, 64, 3), 1);
    CHECK_ERR(kg_plan_bind(f.plan, f.op, &f.tuning, &machine, &c, &inst, &err), err, KG_ENOTFOUND,
              "require: K == 1 || K > 4: K = 3");
    const kg_constants old = {.num_threads = 2, .arch = 1};
    CHECK_ERR(kg_plan_bind(f.plan, f.op, &f.tuning, &old, &c, &inst, &err), err, KG_ENOTFOUND,
              "min_arch is x86-64-v2, this machine is x86-64-v1");
    c.device = KG_CUDA;
    CHECK_ERR(kg_plan_bind(f.plan, f.op, &f.tuning, &machine, &c, &inst, &err), err, KG_ENOTFOUND,
              "the plan's target is cpu");
    CHECK_INT(kg_plan_bind(f.plan, f.op, &f.tuning, &machine, &c, &inst, NULL), KG_ENOTFOUND);
    close_plan(&f);
}

TEST(contract_plan_explains_tensors) {
    fixture f = tma();
    kg_error err = {0};
    kg_instance *inst = NULL;
    kg_value q = TENSOR(KG_F16, 1, 4, 128, 64);
    kg_call c = attention_call(q, q, q, false);
    c.device = KG_CUDA;
    CHECK_ERR(kg_plan_bind(f.plan, f.op, &f.tuning, &hopper, &c, &inst, &err), err, KG_ENOTFOUND,
              "require: query.dtype == bfloat16: query.dtype = float16");
    q = TENSOR(KG_BF16, 1, 4, 128, 64);
    c = attention_call(q, q, q, false);
    c.device = KG_CUDA;
    c.args[0].u.t.stride[3] = 2;
    CHECK_ERR(kg_plan_bind(f.plan, f.op, &f.tuning, &hopper, &c, &inst, &err), err, KG_ENOTFOUND,
              "require: query.stride(3) == 1: query.stride(3) = 2");
    close_plan(&f);
}

static void bind_fails(fixture *f, const char *from, const char *to, kg_call *c, int code,
                       const char *message) {
    char *changed = replaced(f->text, from, to);
    kg_plan *p = plan_of(changed, f->op);
    kg_instance *inst = NULL;
    kg_error err = {0};
    kg_tuning t;
    kg_tuning_default(p, &t);
    CHECK_ERR(kg_plan_bind(p, f->op, &t, c->device == KG_CUDA ? &hopper : &machine, c, &inst, &err),
              err, code, message);
    CHECK(inst == NULL);
    kg_plan_free(p);
    free(changed);
}

TEST(contract_plan_bind_refuses) {
    fixture f = rows();
    kg_call c = softmax_call(TENSOR(KG_F32, 7, 64), -1);
    bind_fails(&f, "\"range\": \"M * K\"", "\"range\": \"M / 8\"", &c, KG_EINVAL,
               "launches[1].range is 0 though an output is not empty (\"when\" skips): M / 8 is 0 "
               "(M = 7)");
    bind_fails(&f, "\"range\": \"M * K\"", "\"range\": \"M - 9\"", &c, KG_EINVAL,
               "launches[1].range must be in [0, 9223372036854775807]: M - 9 is -2 (M = 7)");
    bind_fails(&f, "\"range\": \"M * K\"", "\"range\": \"M / (K - 1)\"", &c, KG_EINVAL,
               "launches[1].range: expression \"M / (K - 1)\", column 3: division by zero");
    bind_fails(&f, "\"range\": \"M * K\"", "\"range\": \"M\", \"grain\": \"M / 8\"", &c, KG_EINVAL,
               "launches[1].grain must be in [1, ");
    bind_fails(&f, "{\"i32\": \"M + ROWS\"}", "{\"i32\": \"M * 1000000000\"}", &c, KG_EOVERFLOW,
               "launches[1].args[4]: M * 1000000000 is 7000000000, which does not fit an i32");
    bind_fails(&f, "[\"M\", \"ceil_div(N, 4096)\"]", "[\"M - 8\"]", &c, KG_EINVAL,
               "workspace.partial.shape[0]: M - 8 is -1");
    bind_fails(&f, "[\"M\", \"ceil_div(N, 4096)\"]", "[\"M * 4611686018427387904 / 7\"]", &c,
               KG_EOVERFLOW, "workspace.partial.shape[0]: expression");
    bind_fails(&f, "[\"M\", \"ceil_div(N, 4096)\"]", "[\"1152921504606846976\", 4]", &c,
               KG_EOVERFLOW, "workspace.partial has more bytes than 64 bits can count");
    close_plan(&f);
}

TEST(contract_plan_needs_a_launch) {
    fixture f = rows();
    kg_error err = {0};
    char *no_zero = replaced(f.text, "\"zero\":       [\"output\"],", "");
    char *changed =
        replaced(no_zero, "\"range\": \"M * K\"", "\"range\": \"M\", \"when\": \"N < 0\"");
    kg_plan *p = plan_of(changed, f.op);
    kg_instance *inst = NULL;
    kg_call c = softmax_call(TENSOR(KG_F32, 7, 64), -1);
    CHECK_ERR(kg_plan_bind(p, f.op, &f.tuning, &machine, &c, &inst, &err), err, KG_EINVAL,
              "\"when\" skips all of them, and output output is not empty");
    c = softmax_call(TENSOR(KG_F32, 0, 64), -1);
    CHECK_OK(kg_plan_bind(p, f.op, &f.tuning, &machine, &c, &inst, &err), err);
    CHECK_UINT(inst->nlaunches, 0);
    kg_instance_free(inst);
    kg_plan_free(p);
    free(no_zero);
    free(changed);
    close_plan(&f);
}

TEST(contract_plan_of_nothing_launches_nothing) {
    fixture f = rows();
    kg_error err = {0};
    kg_instance *inst = NULL;
    kg_call c = softmax_call(TENSOR(KG_F32, 0, 64), -1);
    CHECK_OK(kg_plan_bind(f.plan, f.op, &f.tuning, &machine, &c, &inst, &err), err);
    CHECK_UINT(inst->nlaunches, 0);
    CHECK_INT(inst->workspace_bytes[0], 0);
    kg_instance_free(inst);
    close_plan(&f);
}

TEST(contract_plan_binds_cuda) {
    fixture f = tma();
    kg_error err = {0};
    kg_instance *inst = NULL;
    kg_value q = TENSOR(KG_BF16, 2, 8, 1000, 64), k = TENSOR(KG_BF16, 2, 8, 700, 64);
    kg_call c = attention_call(q, k, k, false);
    c.device = KG_CUDA;
    CHECK_OK(kg_plan_bind(f.plan, f.op, &f.tuning, &hopper, &c, &inst, &err), err);
    const kg_launch *l = &inst->launches[0];
    CHECK_INT(l->grid[0], 8);
    CHECK_INT(l->grid[1] * 100 + l->grid[2], 802);
    CHECK_INT(l->block[0] * l->block[1] * l->block[2], 128);
    CHECK_INT(l->shared, 65536);
    CHECK_NEAR(l->args[7].u.f32, 0.125, 0);
    CHECK_UINT(inst->nmaps, 1);
    CHECK_INT(inst->maps[0].dtype, KG_BF16);
    CHECK_INT(inst->maps[0].dims[1], 1000);
    CHECK_INT(inst->maps[0].strides[0], 128);
    CHECK_INT(inst->maps[0].strides[2], 2 * 8 * 1000 * 64);
    CHECK_INT(inst->maps[0].box[1], 128);
    kg_instance_free(inst);
    f.tuning.value[2] = 3;
    inst = NULL;
    bind_fails(
        &f, "\"STAGES\": [2, 3]", "\"STAGES\": [8]", &c, KG_EINVAL,
        "launches[0].shared must be in [0, 232448]: STAGES * BLOCK_N * D * 4 is 262144 (STAGES "
        "= 8, BLOCK_N = 128, D = 64)");
    bind_fails(&f, "\"block\": [128]", "\"block\": [\"BLOCK_M\", 16]", &c, KG_EINVAL,
               "launches[0].block: 2048 threads; 1024 is the limit");
    bind_fails(&f, "\"cluster\": [1]", "\"cluster\": [3]", &c, KG_EINVAL,
               "launches[0].grid[0] is 8, no multiple of the cluster's 3");
    bind_fails(&f, "\"min(D, 64)\"", "\"min(D, 4)\"", &c, KG_EINVAL,
               "tensor_maps.q_map.box[0] is 8 bytes");
    bind_fails(&f, "\"2 * query.stride(2)\"", "\"2 * query.stride(2) + 8\"", &c, KG_EINVAL,
               "tensor_maps.q_map.strides[0] is 136 bytes, no multiple of 16");
    close_plan(&f);
}

TEST(contract_plan_alignment) {
    fixture f = rows();
    char *changed =
        replaced(f.text, "N % VEC == 0 &&", "align(input) >= 32 && align(output) == 64 &&");
    kg_plan *p = plan_of(changed, f.op);
    kg_instance *inst = NULL;
    kg_error err = {0};
    kg_call c = softmax_call(TENSOR(KG_F32, 7, 64), -1);
    CHECK_OK(kg_plan_bind(p, f.op, &f.tuning, &machine, &c, &inst, &err), err);
    kg_instance_free(inst);
    c.align[0] = 16;
    CHECK_ERR(kg_plan_bind(p, f.op, &f.tuning, &machine, &c, &inst, &err), err, KG_ENOTFOUND,
              "align(input) >= 32: align(input) = 16");
    c.args[0].u.t.data = (void *)(uintptr_t)4096;
    CHECK_OK(kg_plan_bind(p, f.op, &f.tuning, &machine, &c, &inst, &err), err);
    kg_instance_free(inst);
    kg_plan_free(p);
    free(changed);
    close_plan(&f);
}

static void round_trip(fixture f) {
    kg_error err = {0};
    kg_buf a, b;
    kg_buf_init(&a, 0);
    kg_buf_init(&b, 0);
    CHECK_INT(kg_plan_write(f.plan, &a), KG_OK);
    kg_plan *back = NULL;
    kg_reader r;
    kg_reader_init(&r, a.data, a.len);
    CHECK_OK(kg_plan_read(&r, &back, &err), err);
    CHECK_UINT(r.pos, a.len);
    CHECK_INT(kg_plan_write(back, &b), KG_OK);
    CHECK_UINT(a.len, b.len);
    CHECK_MEM(a.data, b.data, a.len);
    kg_plan_free(back);
    for (size_t n = 0; n < a.len; n++) {
        kg_reader_init(&r, a.data, n);
        CHECK(kg_plan_read(&r, &back, &err) < 0);
    }
    for (size_t at = 0; at < a.len; at++) {
        char old = a.data[at];
        a.data[at] = (char)(old ^ (at % 2 ? 0xff : 1));
        kg_reader_init(&r, a.data, a.len);
        if (kg_plan_read(&r, &back, &err) == KG_OK)
            kg_plan_free(back);
        a.data[at] = old;
    }
    kg_buf_free(&a);
    kg_buf_free(&b);
    close_plan(&f);
}

TEST(contract_plan_flat_round_trip) {
    round_trip(rows());
    round_trip(tma());
}

/* A plan whose indices lie outside another contract: binding and building refuse, nothing is read.
 */
TEST(contract_plan_of_another_contract) {
    fixture f = rows();
    kg_error err = {0};
    kg_instance *inst = NULL;
    kg_buf out;
    kg_buf_init(&out, 0);
    kg_call c = softmax_call(TENSOR(KG_F32, 7, 64), -1);
    f.plan->launches[1].args[0].index = 20;
    CHECK_ERR(kg_plan_bind(f.plan, f.op, &f.tuning, &machine, &c, &inst, &err), err, KG_EFORMAT,
              "does not belong to the contract of softmax");
    CHECK_ERR(kg_source_build(f.plan, f.op, &f.tuning, &c, NULL, "", 0, "x.c", &out, &err), err,
              KG_EFORMAT, "does not belong");
    kg_buf_free(&out);
    close_plan(&f);
}

TEST(contract_plan_tunings) {
    fixture f = rows();
    kg_error err = {0};
    kg_tuning t = {0};
    kg_json *j = kg_tuning_to_json(f.plan, &f.tuning);
    CHECK_OK(kg_tuning_from_json(f.plan, j, "record.json", &t, &err), err);
    CHECK_MEM(&t, &f.tuning, sizeof t);
    kg_json_set_int(j, "VEC", 7);
    CHECK_ERR(kg_tuning_from_json(f.plan, j, "record.json", &t, &err), err, KG_EFORMAT,
              "record.json: tunables.VEC is 7; the plan has 16, 8");
    kg_json_set_int(j, "VEC", 8);
    kg_json_set_int(j, "Z", 8);
    CHECK_ERR(kg_tuning_from_json(f.plan, j, "record.json", &t, &err), err, KG_EFORMAT,
              "unknown key \"Z\"");
    kg_json_free(j);
    j = kg_json_new_object();
    CHECK_ERR(kg_tuning_from_json(f.plan, j, "record.json", &t, &err), err, KG_EFORMAT,
              "tunables.VEC is missing");
    kg_json_free(j);
    char a[65], b[65];
    CHECK_OK(kg_candidate_id(f.text, strlen(f.text), f.plan, &f.tuning, a, &err), err);
    f.tuning.value[1] = 1;
    CHECK_OK(kg_candidate_id(f.text, strlen(f.text), f.plan, &f.tuning, b, &err), err);
    CHECK(strcmp(a, b) != 0);
    CHECK_UINT(strlen(a), 64);
    close_plan(&f);
}

/* Every house kernel fits its contract, and its plan survives the index. */
TEST(contract_plan_house_kernels) {
    static const char *const ops[] = {"softmax", "attention"};
    size_t read = 0;
    for (size_t o = 0; o < 2; o++) {
        char path[512], **names = NULL;
        size_t n = 0;
        kg_error err = {0};
        snprintf(path, sizeof path, "kernels/ops/%s.json", ops[o]);
        kg_op *op = repo_op(path);
        snprintf(path, sizeof path, "%s/kernels/%s", KGEN_SOURCE_DIR, ops[o]);
        CHECK_OK(kg_list_dir(path, &names, &n, &err), err);
        for (size_t i = 0; i < n; i++) {
            size_t len = strlen(names[i]);
            if (len < 3 || strcmp(names[i] + len - 2, ".c") != 0)
                continue;
            snprintf(path, sizeof path, "kernels/%s/%s", ops[o], names[i]);
            char *text = repo_text(path);
            kg_plan *p = NULL;
            CHECK_OK(kg_plan_from_source(text, strlen(text), path, op, &p, &err), err);
            kg_plan_free(p);
            free(text);
            read++;
        }
        kg_free_names(names, n);
        kg_op_free(op);
    }
    CHECK(read >= 3);
}

/* A damaged plan is no plan that is merely not for this call. */
TEST(contract_plan_with_unknown_names_is_malformed) {
    fixture f = rows();
    kg_error err = {0};
    kg_instance *inst = NULL;
    kg_call c = softmax_call(TENSOR(KG_F32, 7, 64), -1);
    kg_expr_free(f.plan->require);
    f.plan->require = NULL;
    CHECK_OK(kg_expr_parse("M > 0 && nowhere", &f.plan->require, &err), err);
    CHECK_ERR(kg_plan_bind(f.plan, f.op, &f.tuning, &machine, &c, &inst, &err), err, KG_EFORMAT,
              "require: expression \"M > 0 && nowhere\", column 10: unknown name nowhere");
    close_plan(&f);
}
