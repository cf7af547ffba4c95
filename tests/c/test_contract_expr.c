/* The golden expressions (tests/golden/expr/values.txt), each read and evaluated as a plan or a
 * contract does it: the value, or the whole message. */
#include <inttypes.h>

#include "contract_util.h"
#include "runtime/scope.h"

#define PATH "tests/golden/expr/values.txt"

typedef struct world {
    kg_op *op;
    kg_case *call;
    kg_constants constants;
    char tunables[256]; /* "NAME": [VALUE], ... */
    char *contract;     /* the text of op.json */
    bool in_contract;
    size_t values, errors;
} world;

static int64_t *constant(kg_constants *c, const char *name) {
    static const char *const names[] = {"NUM_THREADS", "NUM_SMS", "MAX_SHARED", "ARCH", "HAS_AMX"};
    int64_t *const places[] = {&c->num_threads, &c->num_sms, &c->max_shared, &c->arch, &c->has_amx};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0)
            return places[i];
    return NULL;
}

/* `let NAME = VALUE`: a dim says what the Case has; a constant of the device and a tunable are set.
 */
static void bind(world *w, const char *line) {
    char name[64];
    long long value;
    if (sscanf(line, "let %63s = %lld", name, &value) != 2)
        FAIL("%s: %s", PATH, line);
    int dim = kg_op_dim_index(w->op, name);
    if (dim >= 0) {
        CHECK_INT(w->call->dims.value[dim], value);
    } else if (constant(&w->constants, name)) {
        *constant(&w->constants, name) = value;
    } else {
        size_t at = strlen(w->tunables);
        snprintf(w->tunables + at, sizeof w->tunables - at, "%s\"%s\": [%lld]", at ? ", " : "",
                 name, value);
    }
}

static void open_world(world *w, const char *op, const char *call) {
    kg_error err = {0};
    w->op = repo_op(op);
    w->contract = repo_text(op);
    char *text = repo_text(call);
    CHECK_OK(kg_case_from_json(text, strlen(text), call, w->op, &w->call, &err), err);
    free(text);
}

/* As `require` of a plan that is read, then evaluated over the Case. */
static int in_plan(const world *w, const char *expression, int64_t *out, kg_error *err) {
    char text[1024];
    kg_plan *plan = NULL;
    kg_tensor outputs[KG_MAX_OUTPUTS] = {0};
    kg_tuning tuning;
    snprintf(text, sizeof text,
             "/* kgen\n{\"format\": 1, \"op\": \"%s\", \"target\": \"cpu\", \"tunables\": {%s}, "
             "\"require\": \"%s\", \"launches\": [{\"kernel\": \"f\", \"range\": 1, \"args\": "
             "[\"input\", \"output\"]}]}\n*/\n",
             w->op->name, w->tunables, expression);
    int rc = kg_plan_from_source(text, strlen(text), "x.c", w->op, &plan, err);
    if (rc != KG_OK)
        return rc;
    kg_tuning_default(plan, &tuning);
    CHECK_OK(kg_op_outputs(w->op, &w->call->call, &w->call->dims, outputs, err), *err);
    kg_scope scope = {.op = w->op,
                      .call = &w->call->call,
                      .dims = w->call->dims,
                      .bound = UINT32_MAX,
                      .outputs = outputs,
                      .plan = plan,
                      .tuning = &tuning,
                      .constants = &w->constants};
    rc = kg_scope_eval(&scope, plan->require, 0, out, err);
    kg_plan_free(plan);
    return rc;
}

/* As a check of the contract. */
static int in_contract(const world *w, const char *expression, int64_t *out, kg_error *err) {
    kg_op *op = NULL;
    char *text = replaced(w->contract, "OH > 0 && OW > 0", expression);
    int rc = kg_op_from_json(text, strlen(text), "op.json", &op, err);
    free(text);
    if (rc != KG_OK)
        return rc;
    kg_scope scope = {.op = op, .call = &w->call->call, .dims = w->call->dims, .bound = UINT32_MAX};
    rc = kg_scope_eval(&scope, op->checks[0].expr, 0, out, err);
    kg_op_free(op);
    return rc;
}

/* `EXPRESSION => VALUE`, or `EXPRESSION => ! MESSAGE`. */
static void check_line(world *w, char *line) {
    char got[600];
    int64_t value = 0;
    kg_error err = {0};
    char *arrow = strstr(line, " => ");
    if (!arrow)
        FAIL("%s: %s", PATH, line);
    *arrow = '\0';
    const char *want = arrow + 4;
    int rc = (w->in_contract ? in_contract : in_plan)(w, line, &value, &err);
    if (rc == KG_OK)
        snprintf(got, sizeof got, "%" PRId64, value);
    else
        snprintf(got, sizeof got, "! %s", err.msg);
    if (strcmp(got, want) != 0)
        FAIL("%s: `%s` gives\n%s\nin place of\n%s", PATH, line, got, want);
    w->values += rc == KG_OK;
    w->errors += rc != KG_OK;
}

TEST(contract_golden_expressions) {
    world w = {0};
    char *text = repo_text(PATH), *next = text;
    open_world(&w, "tests/golden/op/conv2d.json", "tests/golden/case/conv2d.json");
    for (char *line; (line = next) != NULL;) {
        char *end = strchr(line, '\n');
        next = end ? end + 1 : NULL;
        if (end)
            *end = '\0';
        if (*line == '\0' || *line == '#')
            continue;
        if (strncmp(line, "let ", 4) == 0)
            bind(&w, line);
        else if (strcmp(line, "in a contract:") == 0)
            w.in_contract = true;
        else
            check_line(&w, line);
    }
    CHECK(w.values > 40 && w.errors > 20 && w.in_contract);
    free(text);
    free(w.contract);
    kg_case_free(w.call);
    kg_op_free(w.op);
}
