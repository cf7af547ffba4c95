/* Every module that parses or builds, with every one of its allocations failing once: it says that
 * memory is out, gives nothing half-made, and leaves nothing behind (the leak check looks). */
#include "base/fs.h"
#include "faults.h"
#include "test.h"
#include "tune/contract.h"

static char *file_text(const char *name) {
    kg_error err = {0};
    kg_buf b;
    char path[512];
    snprintf(path, sizeof path, "%s/%s", KGEN_SOURCE_DIR, name);
    kg_buf_init(&b, 0);
    CHECK_OK(kg_read_file(path, 1 << 20, &b, &err), err);
    return kg_buf_take(&b);
}

/* The work, once: a status. Everything that it makes is freed by it. */
typedef int (*work)(const void *with, kg_error *err);

static void at_every_allocation(const char *name, work run, const void *with, unsigned stride) {
    bool met = true;
    unsigned n = 1;
    for (; met; n += stride) {
        kg_error err = {0};
        fault_arm(FAULT_MALLOC, n, FAULT_ONCE);
        int rc = run(with, &err);
        met = fault_disarm();
        if (rc != KG_OK && rc != KG_ENOMEM)
            FAIL("%s, allocation %u: %s: %s", name, n, kg_status_name(rc), err.msg);
        if (rc == KG_ENOMEM && err.msg[0] == '\0')
            FAIL("%s, allocation %u: no message", name, n);
        if (!met && rc != KG_OK)
            FAIL("%s without a fault: %s", name, err.msg);
    }
    CHECK(n > 2);
}

static int json_work(const void *with, kg_error *err) {
    kg_json *made = NULL, *copy = NULL;
    kg_buf text;
    kg_buf_init(&text, 0);
    int rc = kg_json_parse(with, strlen(with), "a file", &made, err);
    if (rc == KG_OK && !(copy = kg_json_copy(made)))
        rc = kg_fail(err, KG_ENOMEM, "copy");
    if (rc == KG_OK) {
        kg_json_canonical(copy, &text);
        kg_json_pretty(copy, &text);
        rc = kg_buf_check(&text, "text", err);
    }
    kg_buf_free(&text);
    kg_json_free(copy);
    kg_json_free(made);
    return rc;
}

TEST_WITHIN(json_without_memory, 300) {
    char *text = file_text("tests/golden/run/result.json");
    at_every_allocation("json", json_work, text, fault_stride(3));
    free(text);
}

static int op_work(const void *with, kg_error *err) {
    kg_op *op = NULL;
    int rc = kg_op_from_json(with, strlen(with), "op.json", &op, err);
    kg_op_free(op);
    return rc;
}

TEST_WITHIN(contract_without_memory, 300) {
    char *text = file_text("kernels/ops/softmax.json");
    at_every_allocation("op.json", op_work, text, fault_stride(2));
    free(text);
}

typedef struct plan_input {
    kg_op *op;
    char *source;
} plan_input;

static int plan_work(const void *with, kg_error *err) {
    const plan_input *in = with;
    kg_plan *plan = NULL;
    kg_tuning t;
    char id[65];
    int rc = kg_plan_from_source(in->source, strlen(in->source), "rows.c", in->op, &plan, err);
    if (rc == KG_OK) {
        kg_tuning_default(plan, &t);
        rc = kg_candidate_id(in->source, strlen(in->source), plan, &t, id, err);
    }
    kg_plan_free(plan);
    return rc;
}

TEST_WITHIN(plan_without_memory, 300) {
    kg_error err = {0};
    char *op = file_text("kernels/ops/softmax.json");
    plan_input in = {.source = file_text("kernels/softmax/rows.c")};
    CHECK_OK(kg_op_from_json(op, strlen(op), "op.json", &in.op, &err), err);
    at_every_allocation("plan", plan_work, &in, fault_stride(3));
    kg_op_free(in.op);
    free(in.source);
    free(op);
}
