/* The flat form of contracts and plans, as a damaged index might hand it over: the first byte says
 * which. */
#include <stdlib.h>

#include "runtime/op.h"
#include "runtime/plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0)
        return 0;
    kg_reader in;
    kg_error err;
    kg_reader_init(&in, data + 1, size - 1);
    kg_op *op;
    kg_plan *plan;
    if (data[0] & 1) {
        if (kg_op_read(&in, &op, &err) == KG_OK)
            kg_op_free(op);
    } else if (kg_plan_read(&in, &plan, &err) == KG_OK) {
        kg_plan_free(plan);
    }
    return 0;
}
