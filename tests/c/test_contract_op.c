/* Contracts: the canonical ones and a convolution bind to the right dims and outputs; what is
 * wrong, in a contract or in a call, is told by name. */
#include "contract_util.h"

#define SOFTMAX "kernels/ops/softmax.json"
#define ATTENTION "kernels/ops/attention.json"
#define CONV2D "tests/golden/op/conv2d.json"

static int64_t dim(const kg_op *op, const kg_dims *d, const char *name) {
    int i = kg_op_dim_index(op, name);
    if (i < 0)
        FAIL("no dim %s", name);
    return d->value[i];
}

TEST(contract_op_softmax_dims) {
    kg_op *op = repo_op(SOFTMAX);
    kg_error err = {0};
    kg_dims d;
    kg_call c = softmax_call(TENSOR(KG_F32, 2, 3, 5, 7), -2);
    CHECK_OK(kg_op_dims(op, &c, &d, &err), err);
    CHECK_INT(dim(op, &d, "D"), 2);
    CHECK_INT(dim(op, &d, "M"), 6);
    CHECK_INT(dim(op, &d, "N"), 5);
    CHECK_INT(dim(op, &d, "K"), 7);
    c.args[1].u.i = 4;
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL,
              "softmax: D >= 0 && D < max(input.ndim, 1) must hold (D = 4): dim must be one");
    CHECK(strstr(err.msg, "D = 4, D") == NULL);
    c.args[1].u.i = -5;
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL, "(D = -1)");
    kg_op_free(op);
}

TEST(contract_op_softmax_of_a_number) {
    kg_op *op = repo_op(SOFTMAX);
    kg_error err = {0};
    kg_dims d;
    kg_call c = softmax_call((kg_value){.present = true}, -1);
    for (int64_t i = -1; i <= 0; i++) {
        c.args[1].u.i = i;
        CHECK_OK(kg_op_dims(op, &c, &d, &err), err);
        CHECK_INT(dim(op, &d, "M") * 100 + dim(op, &d, "N") * 10 + dim(op, &d, "K"), 111);
    }
    c.args[1].u.i = 1;
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL, "dim must be one of input's");
    kg_op_free(op);
}

TEST(contract_op_softmax_of_nothing) {
    kg_op *op = repo_op(SOFTMAX);
    kg_error err = {0};
    kg_dims d;
    kg_tensor out[KG_MAX_OUTPUTS];
    kg_call c = softmax_call(TENSOR(KG_F32, 4, 0, 3), 1);
    CHECK_OK(kg_op_dims(op, &c, &d, &err), err);
    CHECK_INT(dim(op, &d, "N"), 0);
    CHECK_OK(kg_op_outputs(op, &c, &d, out, &err), err);
    CHECK_INT(out[0].size[1], 0);
    CHECK_INT(kg_tensor_numel(&out[0]), 0);
    kg_op_free(op);
}

TEST(contract_op_output_keeps_memory_order) {
    kg_op *op = repo_op(SOFTMAX);
    kg_error err = {0};
    kg_dims d;
    kg_tensor out[KG_MAX_OUTPUTS];
    kg_call c = softmax_call(TENSOR(KG_F16, 2, 3, 4), 1);
    int64_t channels_last[] = {12, 1, 3}, gaps[] = {24, 8, 2};
    memcpy(c.args[0].u.t.stride, channels_last, sizeof channels_last);
    CHECK_OK(kg_op_dims(op, &c, &d, &err), err);
    CHECK_OK(kg_op_outputs(op, &c, &d, out, &err), err);
    CHECK_MEM(out[0].stride, channels_last, sizeof channels_last);
    CHECK_INT(out[0].dtype, KG_F16);
    memcpy(c.args[0].u.t.stride, gaps, sizeof gaps);
    CHECK_OK(kg_op_outputs(op, &c, &d, out, &err), err);
    CHECK(kg_tensor_contiguous(&out[0]));
    CHECK_INT(out[0].stride[0], 12);
    c.args[0].u.t.stride[0] = 0;
    CHECK_OK(kg_op_outputs(op, &c, &d, out, &err), err);
    CHECK_INT(out[0].stride[0], 12);
    kg_op_free(op);
}

TEST(contract_op_attention) {
    kg_op *op = repo_op(ATTENTION);
    kg_error err = {0};
    kg_dims d;
    kg_tensor out[KG_MAX_OUTPUTS];
    double scale = 0;
    kg_call c = attention_call(TENSOR(KG_BF16, 2, 8, 10, 64), TENSOR(KG_BF16, 2, 2, 20, 64),
                               TENSOR(KG_BF16, 2, 2, 20, 32), true);
    CHECK_OK(kg_op_dims(op, &c, &d, &err), err);
    CHECK_INT(dim(op, &d, "SK"), 20);
    CHECK_INT(dim(op, &d, "DV"), 32);
    CHECK_OK(kg_op_outputs(op, &c, &d, out, &err), err);
    CHECK_INT(out[0].size[3], 32);
    CHECK_INT(out[0].dtype, KG_BF16);
    CHECK_INT(out[1].ndim, 3);
    CHECK_INT(out[1].dtype, KG_F32);
    CHECK_OK(kg_op_float(op, &c, &d, 6, &scale, &err), err);
    CHECK_NEAR(scale, 0.125, 0);
    c.args[6] = (kg_value){.present = true, .u.f = 0.5};
    CHECK_OK(kg_op_float(op, &c, &d, 6, &scale, &err), err);
    CHECK_NEAR(scale, 0.5, 0);
    CHECK_ERR(kg_op_float(op, &c, &d, 7, &scale, &err), err, KG_EINVAL, "enable_gqa has type bool");
    kg_op_free(op);
}

TEST(contract_op_attention_refuses) {
    kg_op *op = repo_op(ATTENTION);
    kg_error err = {0};
    kg_dims d;
    kg_value q = TENSOR(KG_F32, 1, 8, 10, 64), k = TENSOR(KG_F32, 1, 3, 20, 64);
    kg_call c = attention_call(q, k, TENSOR(KG_F32, 1, 3, 20, 64), true);
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL,
              "attention: key has size 3 in dim 1 (HKV), but HKV == 0 || HQ % HKV == 0 must "
              "hold (HQ = 8): each key head");
    k.u.t.size[1] = 2;
    c = attention_call(q, k, TENSOR(KG_F32, 1, 2, 21, 64), true);
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL,
              "attention: value has size 21 in dim 2 (SK), but key has 20 in dim 2");
    c = attention_call(q, k, TENSOR(KG_F32, 1, 2, 20, 64), false);
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL, "enable_gqa=True");
    c = attention_call(q, k, TENSOR(KG_F16, 1, 2, 20, 64), true);
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL,
              "value is float16, but query is float32; they must be the same");
    c = attention_call(TENSOR(KG_I64, 1, 2, 3, 4), k, k, true);
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EUNSUPPORTED,
              "query is int64; it may be float32, float64, float16, bfloat16");
    c = attention_call(TENSOR(KG_F32, 2, 3, 4), k, k, true);
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL,
              "query has 3 dims; it must have 4 (B, HQ, SQ, D)");
    c = attention_call((kg_value){0}, k, k, true);
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL, "query is missing");
    c.nargs = 3;
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL, "3 arguments given; it takes 8");
    c = attention_call(TENSOR(KG_F32, 1, 0, 3, 4), TENSOR(KG_F32, 1, 0, 5, 4),
                       TENSOR(KG_F32, 1, 0, 5, 4), false);
    CHECK_OK(kg_op_dims(op, &c, &d, &err), err);
    kg_op_free(op);
}

TEST(contract_op_convolution) {
    kg_op *op = repo_op(CONV2D);
    kg_error err = {0};
    kg_dims d;
    kg_tensor out[KG_MAX_OUTPUTS];
    kg_call c = conv2d_call(TENSOR(KG_F32, 2, 3, 32, 31), TENSOR(KG_F32, 8, 3, 5, 3),
                            pair_value(2, 1), pair_value(1, 0));
    CHECK_OK(kg_op_dims(op, &c, &d, &err), err);
    CHECK_INT(dim(op, &d, "OH"), 15);
    CHECK_INT(dim(op, &d, "OW"), 29);
    CHECK_OK(kg_op_outputs(op, &c, &d, out, &err), err);
    CHECK_INT(out[0].size[0] * 1000 + out[0].size[1], 2008);
    CHECK_INT(out[0].size[2], 15);
    CHECK_INT(out[0].size[3], 29);
    c.args[0].u.t.size[2] = 2;
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL,
              "conv2d: OH > 0 && OW > 0 must hold (OH = 0, OW = 29): the kernel is larger");
    c.args[0].u.t.size[2] = 32;
    c.args[2] = TENSOR(KG_F32, 7);
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL,
              "bias has size 7 in dim 0 (O), but weight has 8 in dim 0");
    c.args[2].u.t.size[0] = 8;
    c.args[3].u.list.v[0] = 0;
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL, "conv2d: dim OH: expression \"(H + 2");
    CHECK_HAS(err.msg, "division by zero");
    c.args[3].u.list.n = 0;
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL, "stride[0] is out of range");
    kg_op_free(op);
}

TEST(contract_op_flat_round_trip) {
    static const char *const paths[] = {SOFTMAX, ATTENTION, CONV2D};
    for (size_t i = 0; i < 3; i++) {
        kg_op *op = repo_op(paths[i]), *back = NULL;
        kg_error err = {0};
        kg_buf a, b;
        kg_buf_init(&a, 0);
        kg_buf_init(&b, 0);
        CHECK_INT(kg_op_write(op, &a), KG_OK);
        kg_reader r;
        kg_reader_init(&r, a.data, a.len);
        CHECK_OK(kg_op_read(&r, &back, &err), err);
        CHECK_UINT(r.pos, a.len);
        CHECK_INT(kg_op_write(back, &b), KG_OK);
        CHECK_UINT(a.len, b.len);
        CHECK_MEM(a.data, b.data, a.len);
        CHECK_MEM(op->args[0].shape_dim, back->args[0].shape_dim, sizeof op->args[0].shape_dim);
        CHECK_STR(back->hash, op->hash);
        kg_op_free(op);
        kg_op_free(back);
        kg_buf_free(&a);
        kg_buf_free(&b);
    }
}

/* Every cut, and every byte changed to a few values: an error or a contract that can be freed. */
TEST(contract_op_flat_is_not_trusted) {
    kg_op *op = repo_op(CONV2D);
    kg_buf a;
    kg_buf_init(&a, 0);
    kg_op_write(op, &a);
    for (size_t n = 0; n < a.len; n++) {
        kg_op *back = NULL;
        kg_error err = {0};
        kg_reader r;
        kg_reader_init(&r, a.data, n);
        CHECK(kg_op_read(&r, &back, &err) < 0);
    }
    for (size_t at = 0; at < a.len; at++)
        for (int v = 0; v < 3; v++) {
            kg_op *back = NULL;
            kg_error err = {0};
            kg_reader r;
            char old = a.data[at];
            a.data[at] = (char)(v == 0 ? 0xff : v == 1 ? 0 : old ^ 1);
            kg_reader_init(&r, a.data, a.len);
            if (kg_op_read(&r, &back, &err) == KG_OK)
                kg_op_free(back);
            a.data[at] = old;
        }
    kg_op_free(op);
    kg_buf_free(&a);
}

static void refused(const char *path, const char *from, const char *to, int code,
                    const char *message) {
    char *text = repo_text(path), *changed = replaced(text, from, to);
    kg_op *op = NULL;
    kg_error err = {0};
    CHECK_ERR(kg_op_from_json(changed, strlen(changed), "op.json", &op, &err), err, code, message);
    free(text);
    free(changed);
}

TEST(contract_op_refuses_bad_json) {
    refused(CONV2D, "\"format\": 1", "\"format\": 2", KG_EVERSION,
            "op.json: format 2 is newer than this kgen, which reads format 1");
    refused(CONV2D, "\"flops\"", "\"flop\"", KG_EFORMAT, "unknown key \"flop\"");
    refused(CONV2D, "\"holes\": []", "\"kind\": \"graph\"", KG_EUNSUPPORTED, "graph");
    refused(CONV2D, "\"N\", \"C\", \"H\"", "\"N\", \"C * \", \"H\"", KG_EFORMAT,
            "op.json: args[0].shape[1]: expression \"C *\", column 4");
    refused(
        CONV2D, "[\"O\", \"C\", \"KH\"", "[\"O\", \"C / G\", \"KH\"", KG_EFORMAT,
        "args[1].shape[1]: expression \"C / G\", column 5: unknown name G; known are N, C, H, W, "
        "O");
    refused(CONV2D, "padding[0] - KH", "padding[0] - OW", KG_EFORMAT, "unknown name OW");
    refused(CONV2D, "\"shape\": [\"O\"]", "\"shape\": [\"Z\"]", KG_EFORMAT,
            "Z would be bound by bias, which may be absent");
    refused(CONV2D, "\"name\": \"OW\"", "\"name\": \"OH\"", KG_EFORMAT,
            "dims[1].name: OH is the name of a dim already");
    refused(CONV2D, "\"name\": \"OW\"", "\"name\": \"min\"", KG_EFORMAT,
            "a function of expressions");
    refused(CONV2D, "\"dynamic\": [\"N\"", "\"dynamic\": [\"Q\"", KG_EFORMAT,
            "dynamic[0] is \"Q\", which is no dim; known are N, C, H, W, O, KH, KW, OH, OW");
    refused(CONV2D, "Tensor weight", "Tensor weights", KG_EFORMAT,
            "args[1].name is \"weight\", but the schema has weights there");
    refused(CONV2D, "int[] stride=1", "int stride=1", KG_EFORMAT,
            "args[3].type is \"int[]\", but the schema has int stride");
    refused(CONV2D, "-> Tensor", "-> (Tensor, Tensor)", KG_EFORMAT, "returns 2 tensors");
    refused(CONV2D, "\"float32\", \"float16\"", "\"float32\", \"float\"", KG_EFORMAT,
            "args[0].dtypes[1] is \"float\"; dtypes are float32");
    refused(CONV2D, "\"kind\": \"torch\"", "\"kind\": \"magic\"", KG_EFORMAT, "kinds are torch");
    refused(CONV2D, "OH > 0 && OW > 0", "OH > NUM_SMS", KG_EFORMAT,
            "NUM_SMS is known in plans only");
    refused(CONV2D, "OH > 0 && OW > 0", "weight > 0", KG_EFORMAT, "weight is a tensor: ask for");
    refused(CONV2D, "OH > 0 && OW > 0", "output.ndim > 0", KG_EFORMAT, "output is no tensor here");
    refused(CONV2D, "OH > 0 && OW > 0", "input.rank > 0", KG_EFORMAT, "has no field rank");
    refused(CONV2D, "OH > 0 && OW > 0", "input.size(0, 1) > 0", KG_EFORMAT, "there are size(i)");
    refused(CONV2D, "OH > 0 && OW > 0", "padding > 0", KG_EFORMAT, "write padding[0]");
    refused(ATTENTION, "{\"rsqrt\": \"D\"}", "{\"rsqrt\": \"Q\"}", KG_EFORMAT,
            "args[6].none.rsqrt: expression \"Q\", column 1: unknown name Q");
    refused(ATTENTION, "\"optional\": true", "\"optional\": 1", KG_EFORMAT, "outputs[1].optional");
    refused(SOFTMAX, "\"like\": \"input\"", "\"like\": \"dim\"", KG_EFORMAT,
            "outputs[0].like is \"dim\", which is no tensor argument");
    refused(SOFTMAX, "\"like\": \"input\"", "\"like\": \"input\", \"shape\": []", KG_EFORMAT,
            "outputs[0] must have one of like and shape");
}

/* A grouped convolution: a shape asks for an attribute that the schema has after it. */
TEST(contract_op_shape_of_a_later_attribute) {
    static const char text[] =
        "{\"format\": 1, \"op\": \"grouped\", \"schema\": \"grouped(Tensor x, Tensor w, int "
        "groups=1) "
        "-> Tensor\", \"args\": [{\"name\": \"x\", \"type\": \"Tensor\", \"dtypes\": "
        "[\"float32\"], "
        "\"shape\": [\"N\", \"C\"]}, {\"name\": \"w\", \"type\": \"Tensor\", \"dtype_as\": \"x\", "
        "\"shape\": [\"O\", \"C / groups\"]}, {\"name\": \"groups\", \"type\": \"int\"}], "
        "\"outputs\": [{\"name\": \"y\", \"dtype_as\": \"x\", \"shape\": [\"N\", \"O\"]}], "
        "\"reference\": {\"kind\": \"source\", \"file\": \"reference.py\", \"name\": \"Model\"}}";
    kg_op *op = NULL;
    kg_error err = {0};
    kg_dims d;
    CHECK_OK(kg_op_from_json(text, sizeof text - 1, "op.json", &op, &err), err);
    kg_call c = {.nargs = 3};
    c.args[0] = TENSOR(KG_F32, 2, 12);
    c.args[1] = TENSOR(KG_F32, 8, 4);
    c.args[2] = int_value(3);
    CHECK_OK(kg_op_dims(op, &c, &d, &err), err);
    c.args[2] = int_value(2);
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL,
              "grouped: w has size 4 in dim 1; C / groups is 6");
    c.args[2] = (kg_value){0};
    CHECK_ERR(kg_op_dims(op, &c, &d, &err), err, KG_EINVAL, "groups is missing");
    kg_op_free(op);
}

TEST(contract_op_takes_schema_defaults) {
    kg_op *op = repo_op(ATTENTION);
    CHECK(op->args[7].has_default);
    CHECK_NEAR(op->args[7].default_number, 0, 0);
    CHECK(!op->args[6].has_default);
    kg_op_free(op);
}

TEST(contract_types_numel_and_density) {
    kg_tensor t = TENSOR(KG_F32, 3, 0, 5).u.t;
    CHECK_INT(kg_tensor_numel(&t), 0);
    CHECK(kg_tensor_contiguous(&t));
    t = TENSOR(KG_F32, INT64_C(1) << 40, INT64_C(1) << 40).u.t;
    CHECK_INT(kg_tensor_numel(&t), INT64_MAX);
    CHECK_INT(kg_tensor_set_contiguous(&t), KG_EOVERFLOW);
    t = TENSOR(KG_F32, 4, 1, 6).u.t;
    t.stride[1] = 99;
    CHECK(kg_tensor_contiguous(&t));
    t.stride[2] = 2;
    CHECK(!kg_tensor_contiguous(&t));
    CHECK(!kg_tensor_dense(&t));
    char bytes[512];
    t.data = (void *)(((uintptr_t)bytes & ~(uintptr_t)255) + 256 + 48);
    CHECK_INT(kg_tensor_align(&t), 16);
    t.data = NULL;
    CHECK_INT(kg_tensor_align(&t), 256);
}
