/* Cases, keys and pins: what a Case comes to, which pin serves which call, and that names of pins
 * do not change from one version of kgen to the next. */
#include "contract_util.h"

static kg_case *repo_case(const char *path, const kg_op *op) {
    kg_error err = {0};
    kg_case *c = NULL;
    char *text = repo_text(path);
    CHECK_OK(kg_case_from_json(text, strlen(text), path, op, &c, &err), err);
    free(text);
    return c;
}

TEST(contract_case_of_attention) {
    kg_op *op = repo_op("kernels/ops/attention.json");
    kg_case *c = repo_case("tests/golden/case/attention.json", op);
    CHECK_INT(c->count, 12);
    CHECK_INT(c->align[0], 64);
    CHECK_INT(c->call.align[2], 256);
    CHECK(c->call.args[0].u.t.data == NULL);
    CHECK_INT(c->call.args[0].u.t.stride[1], 64);
    CHECK_NEAR(c->call.args[6].u.f, 0.125, 0);
    CHECK(c->call.args[7].u.b);
    CHECK_INT(c->fill[1].kind, KG_FILL_UNIFORM);
    CHECK_NEAR(c->fill[2].a, 1000, 0);
    CHECK_STR(c->captured_fill[0].file, "captured0.bin");
    CHECK_UINT(c->call.ncaptured, 1);
    CHECK_UINT(c->call.nscalars, 1);
    CHECK(c->call.program == c->program);
    CHECK_INT(c->key.program, KG_PROGRAM_HASH);
    CHECK_INT(c->key.layout[0], 'i');
    CHECK_INT(c->key.layout[1], 'c');
    CHECK(kg_key_exact(&c->key));
    CHECK_UINT(c->key.nattrs, 0);
    CHECK_UINT(c->key.ndims, 7);
    kg_case_free(c);
    kg_op_free(op);
}

/* The golden Case but without the log-sum-exp. */
TEST(contract_case_leaves_an_output_out) {
    kg_op *op = repo_op("kernels/ops/attention.json");
    kg_case *all = repo_case("tests/golden/case/attention.json", op), *less = NULL;
    char *text = repo_text("tests/golden/case/attention.json"), why[256];
    char *changed = replaced(text, "\"count\": 12", "\"count\": 12, \"skip\": [\"lse\"]");
    kg_error err = {0};
    CHECK_OK(kg_case_from_json(changed, strlen(changed), "case", op, &less, &err), err);
    CHECK_UINT(all->call.skip_outputs, 0);
    CHECK_UINT(less->call.skip_outputs, 2);
    CHECK_INT(less->key.skip, 2);
    CHECK(strcmp(less->hash, all->hash) != 0);
    CHECK(!kg_key_equal(&less->key, &all->key));
    CHECK(kg_key_match(op, &all->key, &less->key, why));
    CHECK(!kg_key_match(op, &less->key, &all->key, why));
    CHECK_STR(why, "lse is wanted, the pin leaves it out");
    less->call.skip_outputs |= KG_TORCH_IS_FAST;
    kg_key of_call;
    CHECK_OK(kg_key_of_call(op, &less->call, &less->dims, &of_call, &err), err);
    CHECK(kg_key_equal(&of_call, &less->key));
    free(text);
    free(changed);
    kg_case_free(all);
    kg_case_free(less);
    kg_op_free(op);
}

TEST(contract_case_of_convolution) {
    kg_op *op = repo_op("tests/golden/op/conv2d.json");
    kg_case *c = repo_case("tests/golden/case/conv2d.json", op);
    CHECK(!c->call.args[2].present);
    CHECK_INT(c->call.args[3].u.list.v[0], 2);
    CHECK_INT(c->key.layout[2], '-');
    CHECK_UINT(c->key.nattrs, 2);
    CHECK_INT(c->key.precision, KG_PREC_TF32);
    CHECK_INT(c->dims.value[kg_op_dim_index(op, "OH")], 15);
    CHECK_INT(c->dims.value[kg_op_dim_index(op, "OW")], 29);
    kg_case_free(c);
    kg_op_free(op);
}

static void refused(const char *from, const char *to, int code, const char *message) {
    kg_op *op = repo_op("kernels/ops/attention.json");
    char *text = repo_text("tests/golden/case/attention.json"), *changed = replaced(text, from, to);
    kg_case *c = NULL;
    kg_error err = {0};
    CHECK_ERR(kg_case_from_json(changed, strlen(changed), "cases/0.json", op, &c, &err), err, code,
              message);
    CHECK_HAS(err.msg, "cases/0.json: ");
    free(text);
    free(changed);
    kg_op_free(op);
}

TEST(contract_case_refuses) {
    refused("\"format\": 1", "\"format\": 3", KG_EVERSION, "format 3 is newer");
    refused("\"op\": \"attention\"", "\"op\": \"gelu\"", KG_EFORMAT, "op is \"gelu\"");
    refused("\"count\": 12", "\"count\": 0", KG_EFORMAT, "count is 0");
    refused("\"count\": 12", "\"counts\": 12", KG_EFORMAT, "unknown key \"counts\"");
    refused("\"count\": 12", "\"count\": 12, \"skip\": [\"output\"]", KG_EFORMAT,
            "skip[0] is \"output\"; it must be an optional output of attention");
    refused("\"count\": 12", "\"count\": 12, \"skip\": [\"lse\", \"lse\"]", KG_EFORMAT,
            "skip[1] is \"lse\" once more");
    refused("\"count\": 12", "\"count\": 12, \"skip\": []", KG_EFORMAT, "skip has 0 elements");
    refused("\"cpu\"", "\"gpu\"", KG_EFORMAT, "device is \"gpu\"; it may be cpu, cuda");
    refused("\"native\"", "\"fp32\"", KG_EFORMAT, "it may be native, tf32, bf16");
    refused("\"scale\": 0.125", "\"scale\": true", KG_EFORMAT, "args.scale: expected a number");
    refused("\"scale\": 0.125,", "", KG_EFORMAT,
            "args.scale is missing; an absent optional is null");
    refused("\"scale\": 0.125", "\"program\": \"\"", KG_EFORMAT, "unknown key \"program\"");
    refused("\"align\": 64", "\"align\": 48", KG_EFORMAT, "args.query.align is 48");
    refused("[524288, 64, 512, 1]", "[524288, 64, 512]", KG_EFORMAT,
            "args.query.stride has 3 elements; it must have 4");
    refused("[524288, 64, 512, 1]", "[524288, 64, 512, -1]", KG_EFORMAT, "must not be negative");
    refused("[524288, 64, 512, 1]", "[524288, 64, 9007199254740992, 1]", KG_EOVERFLOW,
            "args.query spans more bytes");
    refused("\"std\": 1\n", "\"std\": -1\n", KG_EFORMAT, "args.query.fill.std is -1");
    refused("\"kind\": \"normal\"", "\"kind\": \"gauss\"", KG_EFORMAT,
            "it may be normal, uniform, integers, values");
    refused("\"low\": -1.5", "\"low\": 2", KG_EFORMAT, "low 2 is above high 1.5");
    refused("captured0.bin", "../captured0.bin", KG_EFORMAT, "the name of a file beside the Case");
    refused("1000, 32]", "1001, 32]", KG_EINVAL, "attention: value has size 1001 in dim 2 (SK)");
    refused("program 1\\n", "program 2\\n", KG_EVERSION, "program.text");
    refused("\"scalars\": [20.5]", "\"scalars\": []", KG_EINVAL, "program: ");
}

static kg_key key_of(const kg_op *op, const kg_call *c) {
    kg_error err = {0};
    kg_dims d;
    kg_key k;
    CHECK_OK(kg_op_dims(op, c, &d, &err), err);
    CHECK_OK(kg_key_of_call(op, c, &d, &k, &err), err);
    return k;
}

TEST(contract_key_layout_classes) {
    kg_op *op = repo_op("kernels/ops/softmax.json");
    kg_call c = softmax_call(TENSOR(KG_F32, 4, 6, 8), 1);
    kg_key plain = key_of(op, &c), inner, strided;
    char why[256];
    CHECK_INT(plain.layout[0], 'c');
    c.args[0].u.t.stride[0] = 64;
    inner = key_of(op, &c);
    CHECK_INT(inner.layout[0], 'i');
    c.args[0].u.t.stride[2] = 2;
    strided = key_of(op, &c);
    CHECK_INT(strided.layout[0], 's');
    CHECK(kg_key_match(op, &inner, &plain, why));
    CHECK(kg_key_match(op, &strided, &plain, why));
    CHECK(kg_key_match(op, &strided, &inner, why));
    CHECK(!kg_key_match(op, &plain, &inner, why));
    CHECK_STR(why, "layout of input is i, the pin has c");
    CHECK(!kg_key_match(op, &inner, &strided, NULL));
    CHECK(!kg_key_equal(&plain, &inner));
    kg_op_free(op);
}

TEST(contract_key_says_what_differs) {
    kg_op *op = repo_op("kernels/ops/softmax.json");
    kg_call c = softmax_call(TENSOR(KG_F32, 4, 8192), -1);
    kg_key call = key_of(op, &c), pin = call;
    char why[256];
    pin.min[1] = 1;
    pin.max[1] = 4096;
    CHECK(!kg_key_exact(&pin));
    CHECK(!kg_key_match(op, &pin, &call, why));
    CHECK_STR(why, "dims.N is 8192, the pin has 1..4096");
    pin = call;
    pin.min[0] = pin.max[0] = 5;
    CHECK(!kg_key_match(op, &pin, &call, why));
    CHECK_STR(why, "dims.M is 4, the pin has 5");
    pin = call;
    pin.dtype[0] = KG_F16;
    CHECK(!kg_key_match(op, &pin, &call, why));
    CHECK_STR(why, "dtype of input is float32, the pin has float16");
    pin = call;
    pin.precision = KG_PREC_TF32;
    CHECK(!kg_key_match(op, &pin, &call, why));
    CHECK_STR(why, "precision is native, the pin has tf32");
    CHECK(kg_key_match(op, &call, &pin, why));
    pin = call;
    pin.program = KG_PROGRAM_ANY;
    CHECK(!kg_key_match(op, &pin, &call, why));
    CHECK_HAS(why, "the pin serves calls that have one");
    call.program = KG_PROGRAM_HASH;
    CHECK(kg_key_match(op, &pin, &call, why));
    pin.program = KG_PROGRAM_HASH;
    pin.program_hash.lo = 1;
    CHECK(!kg_key_match(op, &pin, &call, why));
    CHECK_HAS(why, "program is 000000000000, the pin has 000000000000");
    pin.device = KG_CUDA;
    CHECK(!kg_key_match(op, &pin, &call, why));
    CHECK_STR(why, "device is cpu, the pin has cuda");
    kg_op_free(op);
}

TEST(contract_key_attributes) {
    kg_op *op = repo_op("tests/golden/op/conv2d.json");
    kg_call c = conv2d_call(TENSOR(KG_F32, 2, 3, 32, 31), TENSOR(KG_F32, 8, 3, 5, 3),
                            pair_value(1, 1), pair_value(1, 0));
    kg_key a = key_of(op, &c), b;
    char why[256];
    c.args[4] = pair_value(0, 1);
    c.args[0].u.t.size[2] = 34;
    c.args[0].u.t.size[3] = 29;
    kg_tensor_set_contiguous(&c.args[0].u.t);
    b = key_of(op, &c);
    CHECK(!kg_key_match(op, &a, &b, why));
    CHECK_STR(why, "attrs.padding is 0 1, the pin has 1 0");
    CHECK(!kg_key_equal(&a, &b));
    kg_op_free(op);
}

TEST(contract_key_distance) {
    kg_op *op = repo_op("kernels/ops/softmax.json");
    kg_call c = softmax_call(TENSOR(KG_F32, 1, 1024), -1);
    kg_key call = key_of(op, &c), near_pin = call, far_pin = call;
    near_pin.min[1] = 256;
    near_pin.max[1] = 4096;
    far_pin.min[1] = 1;
    far_pin.max[1] = 1 << 20;
    far_pin.max[0] = 16;
    CHECK_NEAR(kg_key_distance(&near_pin, &call), 0, 1e-12);
    CHECK_NEAR(kg_key_distance(&far_pin, &call), 2, 1e-12);
    CHECK_NEAR(kg_key_distance(&call, &call), 0, 0);
    kg_op_free(op);
}

TEST(contract_key_flat_round_trip) {
    kg_op *op = repo_op("tests/golden/op/conv2d.json");
    kg_case *c = repo_case("tests/golden/case/conv2d.json", op);
    kg_error err = {0};
    kg_key back;
    kg_reader r;
    kg_buf b;
    kg_buf_init(&b, 0);
    CHECK_INT(kg_key_write(&c->key, &b), KG_OK);
    kg_reader_init(&r, b.data, b.len);
    CHECK_OK(kg_key_read(&r, &back, &err), err);
    CHECK_UINT(r.pos, b.len);
    CHECK(kg_key_equal(&back, &c->key));
    for (size_t n = 0; n < b.len; n++) {
        kg_reader_init(&r, b.data, n);
        CHECK(kg_key_read(&r, &back, &err) < 0);
    }
    for (size_t at = 0; at < b.len; at++) {
        char old = b.data[at];
        b.data[at] = (char)(old ^ 0xff);
        kg_reader_init(&r, b.data, b.len);
        kg_key_read(&r, &back, &err);
        b.data[at] = old;
    }
    kg_buf_free(&b);
    kg_case_free(c);
    kg_op_free(op);
}

static void key_refused(const char *path, const char *contract, const char *from, const char *to,
                        const char *message) {
    kg_op *op = repo_op(contract);
    char *text = repo_text(path), *changed = replaced(text, from, to);
    kg_json *root = NULL;
    kg_key k;
    kg_error err = {0};
    CHECK_OK(kg_json_parse(changed, strlen(changed), "pin", &root, &err), err);
    CHECK_ERR(kg_key_from_json(op, kg_json_get(root, "key"), "pin", &k, &err), err, KG_EFORMAT,
              message);
    kg_json_free(root);
    free(text);
    free(changed);
    kg_op_free(op);
}

#define PIN "tests/golden/pin/conv2d.json", "tests/golden/op/conv2d.json"
#define ATTENTION_PIN "tests/golden/pin/attention.json", "kernels/ops/attention.json"

TEST(contract_key_refuses) {
    key_refused(PIN, "\"-\"", "\"c\"",
                "pin: key: dtypes[2] must be null exactly where layout is -");
    key_refused(PIN, "\"-\"", "\"x\"", "layout[2] is \"x\"; it may be c, i, s, -");
    key_refused(PIN, "\"N\": 2", "\"Z\": 2", "dims.N is missing");
    key_refused(PIN, "\"N\": 2", "\"N\": 2, \"Z\": 2", "dims: unknown key \"Z\"");
    key_refused(PIN, "\"O\": 8", "\"O\": {\"min\": 1, \"max\": 8}",
                "dims.O is a range, but the contract does not list O as dynamic");
    key_refused(PIN, "\"N\": 2", "\"N\": {\"min\": 3, \"max\": 3}", "min 3 must be below max 3");
    key_refused(PIN, "[2, 1]", "2", "attrs.stride must be an array");
    key_refused(PIN, "\"program\": null", "\"program\": \"abc\"", "32 lower-case hex digits");
    key_refused(ATTENTION_PIN, "\"attrs\": {}", "\"attrs\": {}, \"skip\": [\"output\"]",
                "skip[0] is \"output\"");
    key_refused(ATTENTION_PIN, "\"attrs\": {}", "\"attrs\": {\"scale\": 1}", "attrs: unknown key");
}

static void pin_name(const char *contract, const char *path, const char *want) {
    kg_op *op = repo_op(contract);
    char *text = repo_text(path), hash[33];
    kg_json *root = NULL, *again = NULL;
    kg_key k, back;
    kg_error err = {0};
    kg_buf a, b;
    kg_buf_init(&a, 0);
    kg_buf_init(&b, 0);
    CHECK_OK(kg_json_parse(text, strlen(text), path, &root, &err), err);
    CHECK_OK(kg_key_from_json(op, kg_json_get(root, "key"), path, &k, &err), err);
    again = kg_key_to_json(op, &k);
    kg_json_canonical(kg_json_get(root, "key"), &a);
    kg_json_canonical(again, &b);
    CHECK_STR(b.data, a.data);
    CHECK_OK(kg_key_from_json(op, again, path, &back, &err), err);
    CHECK(kg_key_equal(&k, &back));
    CHECK_OK(kg_key_hash(op, &k, hash, &err), err);
    CHECK_STR(hash, want);
    kg_json_free(root);
    kg_json_free(again);
    kg_buf_free(&a);
    kg_buf_free(&b);
    free(text);
    kg_op_free(op);
}

TEST(contract_golden_pin_names) {
    pin_name("kernels/ops/softmax.json", "tests/golden/pin/softmax.json",
             "bb5daee99b1d3c4be845677023b4d39c");
    pin_name("kernels/ops/attention.json", "tests/golden/pin/attention.json",
             "3c97e3becf9039b443a8400734482209");
    pin_name("kernels/ops/attention.json", "tests/golden/pin/attention_output.json",
             "d48e4c639d55a54d28466c202350635c");
    pin_name("tests/golden/op/conv2d.json", "tests/golden/pin/conv2d.json",
             "bef7471609e03ca57eaede455a95b058");
}

/* What is on disk is what kgen would write: read, written and compared. */
static void unchanged(const char *path) {
    char *text = repo_text(path);
    kg_json *root = NULL, *again = NULL;
    kg_error err = {0};
    kg_buf pretty, one, two;
    kg_buf_init(&pretty, 0);
    kg_buf_init(&one, 0);
    kg_buf_init(&two, 0);
    CHECK_OK(kg_json_parse(text, strlen(text), path, &root, &err), err);
    CHECK_OK(kg_json_format(root, path, 1, &err), err);
    kg_json_pretty(root, &pretty);
    CHECK_STR(pretty.data, text);
    kg_json_canonical(root, &one);
    CHECK_OK(kg_json_parse(one.data, one.len, path, &again, &err), err);
    kg_json_canonical(again, &two);
    CHECK_STR(two.data, one.data);
    kg_json_free(root);
    kg_json_free(again);
    kg_buf_free(&pretty);
    kg_buf_free(&one);
    kg_buf_free(&two);
    free(text);
}

TEST(contract_golden_files_are_what_is_written) {
    static const char *const paths[] = {
        "op/conv2d.json",     "case/attention.json",      "case/softmax.json",
        "case/conv2d.json",   "pin/softmax.json",         "pin/attention.json",
        "pin/conv2d.json",    "record/pass.json",         "pin/attention_output.json",
        "task/no_graph.json", "record/wrong_values.json", "task/task.json"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        char path[128];
        snprintf(path, sizeof path, "tests/golden/%s", paths[i]);
        unchanged(path);
    }
}

TEST(contract_golden_cases) {
    kg_op *softmax = repo_op("kernels/ops/softmax.json");
    kg_op *attention = repo_op("kernels/ops/attention.json");
    kg_case *a = repo_case("tests/golden/case/softmax.json", softmax);
    kg_case *b = repo_case("tests/golden/case/attention.json", attention);
    CHECK_STR(a->hash, "6aad5d4dda23bd86a0a9c5cb14f60d6a");
    CHECK_STR(b->hash, "d58f6c3a5f0bc38201c9009ba1ddb5a2");
    CHECK_HAS(a->text, "{\"args\":{\"dim\":-1,\"input\":{\"align\":64,");
    kg_case_free(a);
    kg_case_free(b);
    kg_op_free(softmax);
    kg_op_free(attention);
}
