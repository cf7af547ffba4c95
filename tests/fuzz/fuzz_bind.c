/* A contract or plan as a damaged index might hand it over, used for a call: bound, keyed, its
 * source built. Also Cases. The first byte says which. Only the sanitizers judge. */
#include <stdlib.h>
#include <string.h>

#include "tune/contract.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char OP[] =
    "{\"format\": 1, \"op\": \"conv\", \"schema\": \"conv(Tensor input, Tensor? bias, int[] pad, "
    "float? "
    "scale, bool flip, int n) -> (Tensor, Tensor)\", \"args\": [{\"name\": \"input\", \"type\": "
    "\"Tensor\", \"dtypes\": [\"float32\", \"float16\"], \"shape\": [\"N\", \"C\", \"N * n\"]},"
    "{\"name\": \"bias\", \"type\": \"Tensor?\", \"dtype_as\": \"input\", \"shape\": [\"C\"]},"
    "{\"name\": \"pad\", \"type\": \"int[]\"},"
    "{\"name\": \"scale\", \"type\": \"float?\", \"none\": {\"rsqrt\": \"C\"}},"
    "{\"name\": \"flip\", \"type\": \"bool\"}, {\"name\": \"n\", \"type\": \"int\"}],"
    "\"dims\": [{\"name\": \"L\", \"expr\": \"C + 2 * pad[0]\"}], \"dynamic\": [\"N\"],"
    "\"outputs\": [{\"name\": \"output\", \"like\": \"input\"},"
    "{\"name\": \"sums\", \"dtype\": \"float32\", \"shape\": [\"N\", \"L\"], \"optional\": true}],"
    "\"reference\": {\"kind\": \"torch\", \"call\": \"f\"}}";

/* A call of whatever the contract has become: values of its own types. */
static kg_call some_call(const kg_op *op) {
    kg_call c = {.nargs = op->nargs};
    for (size_t i = 0; i < op->nargs; i++) {
        kg_value *v = &c.args[i];
        kg_arg_type type = op->args[i].type;
        v->present = type != KG_ARG_TENSOR_OPT && type != KG_ARG_FLOAT_OPT;
        if (kg_arg_is_tensor(type))
            v->u.t = (kg_tensor){.ndim = 3, .size = {2, 3, 4}, .stride = {12, 4, 1}};
        else if (type == KG_ARG_INT_LIST)
            v->u.list.n = 1;
        else if (type == KG_ARG_INT || type == KG_ARG_INT_OPT)
            v->u.i = 2;
    }
    return c;
}

static void use_plan(const kg_op *op, const kg_plan *p) {
    kg_call call = some_call(op);
    kg_constants machine = {.num_threads = 2, .arch = 90, .max_shared = 232448};
    kg_tuning tuning;
    kg_instance *inst = NULL;
    kg_error err;
    kg_buf text;
    kg_buf_init(&text, 0);
    kg_tuning_default(p, &tuning);
    call.device = p->target;
    if (kg_plan_bind(p, op, &tuning, &machine, &call, &inst, &err) == KG_OK)
        kg_instance_free(inst);
    kg_source_build(p, op, &tuning, &call, NULL, "", 0, "x.c", &text, &err);
    kg_buf_free(&text);
}

static void use_op(const kg_op *op) {
    kg_call call = some_call(op);
    kg_dims dims;
    kg_tensor outputs[KG_MAX_OUTPUTS];
    kg_key key;
    kg_error err;
    char hash[33];
    if (kg_op_dims(op, &call, &dims, &err) < 0)
        return;
    kg_op_outputs(op, &call, &dims, outputs, &err);
    if (kg_key_of_call(op, &call, &dims, &key, &err) == KG_OK)
        kg_key_hash(op, &key, hash, &err);
}

static void use_key(const kg_op *op, kg_reader *in) {
    kg_key key, call;
    kg_error err;
    char hash[33], why[256];
    memset(&call, 0, sizeof call);
    if (kg_key_read(in, &key, &err) < 0)
        return;
    kg_key_hash(op, &key, hash, &err);
    kg_key_match(op, &key, &key, why);
    kg_key_match(op, &key, &call, why);
    kg_key_distance(&key, &key);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static kg_op *op;
    kg_op *other = NULL;
    kg_plan *plan = NULL;
    kg_case *c = NULL;
    kg_reader in;
    kg_error err;
    if (op == NULL && kg_op_from_json(OP, sizeof OP - 1, "op.json", &op, &err) < 0)
        __builtin_trap();
    if (size == 0)
        return 0;
    kg_reader_init(&in, data + 1, size - 1);
    if (data[0] % 4 == 0 && kg_plan_read(&in, &plan, &err) == KG_OK)
        use_plan(op, plan);
    if (data[0] % 4 == 1 && kg_op_read(&in, &other, &err) == KG_OK)
        use_op(other);
    if (data[0] % 4 == 2)
        use_key(op, &in);
    if (data[0] % 4 == 3)
        kg_case_from_json((const char *)data + 1, size - 1, "case", op, &c, &err);
    kg_case_free(c);
    kg_plan_free(plan);
    kg_op_free(other);
    return 0;
}
