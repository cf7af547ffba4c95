/* Contracts and plans: text that opens with a comment is a Candidate of the Op below, other text an
 * op.json. What reads must survive the index's flat form: written, read and written again it is the
 * same bytes. */
#include <stdlib.h>
#include <string.h>

#include "tune/contract.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char OP[] =
    "{\"format\": 1, \"op\": \"softmax\", \"schema\": \"softmax(Tensor input, int dim) -> Tensor\","
    "\"args\": [{\"name\": \"input\", \"type\": \"Tensor\", \"dtypes\": [\"float32\"]},"
    "{\"name\": \"dim\", \"type\": \"int\", \"key\": false}],"
    "\"dims\": [{\"name\": \"N\", \"expr\": \"input.size(dim)\"}],"
    "\"outputs\": [{\"name\": \"output\", \"dtype_as\": \"input\", \"like\": \"input\"}],"
    "\"reference\": {\"kind\": \"torch\", \"call\": \"torch.softmax\"}}";

static void same(const kg_buf *a, const kg_buf *b) {
    if (a->status != KG_OK || b->status != KG_OK || a->len != b->len ||
        memcmp(a->data, b->data, a->len) != 0)
        __builtin_trap();
}

static void op_survives(const kg_op *op) {
    kg_buf a, b;
    kg_reader in;
    kg_op *again;
    kg_buf_init(&a, 0);
    kg_buf_init(&b, 0);
    kg_op_write(op, &a);
    kg_reader_init(&in, a.data, a.len);
    if (kg_op_read(&in, &again, NULL) != KG_OK)
        __builtin_trap();
    kg_op_write(again, &b);
    same(&a, &b);
    kg_op_free(again);
    kg_buf_free(&a);
    kg_buf_free(&b);
}

static void plan_survives(const kg_plan *plan) {
    kg_buf a, b;
    kg_reader in;
    kg_plan *again;
    kg_buf_init(&a, 0);
    kg_buf_init(&b, 0);
    kg_plan_write(plan, &a);
    kg_reader_init(&in, a.data, a.len);
    if (kg_plan_read(&in, &again, NULL) != KG_OK)
        __builtin_trap();
    kg_plan_write(again, &b);
    same(&a, &b);
    kg_plan_free(again);
    kg_buf_free(&a);
    kg_buf_free(&b);
}

static void fuzz_op(const char *text, size_t n) {
    kg_op *op;
    if (kg_op_from_json(text, n, "op.json", &op, NULL) != KG_OK)
        return;
    op_survives(op);
    kg_op_free(op);
}

static void fuzz_plan(const char *text, size_t n) {
    static kg_op *op;
    kg_error err;
    if (!op && kg_op_from_json(OP, sizeof OP - 1, "op.json", &op, &err) != KG_OK)
        __builtin_trap();
    kg_plan *plan;
    if (kg_plan_from_source(text, n, "candidate", op, &plan, &err) != KG_OK)
        return;
    plan_survives(plan);
    kg_plan_free(plan);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size >= 2 && data[0] == '/' && data[1] == '*')
        fuzz_plan((const char *)data, size);
    else
        fuzz_op((const char *)data, size);
    return 0;
}
