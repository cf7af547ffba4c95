/* The parts of the plan's reader: contract_plan.c the whole, contract_launch.c launches and tensor
 * maps. Internal to csrc/tune. */
#ifndef KG_TUNE_CONTRACT_PLAN_H
#define KG_TUNE_CONTRACT_PLAN_H

#include "tune/contract_read.h"

typedef struct kg_plan_reader {
    const kg_op *op;
    kg_plan *plan;
    const kg_json *root;
    kg_names names;
} kg_plan_reader;

int kg_workspace_index(const kg_plan *p, const char *name); /* -1 when there is none */
/* A member's key that must be a name. */
int kg_check_key(const char *name, const char *at, kg_error *err);
int kg_plan_read_map(kg_plan_reader *r, const kg_json *j, kg_error *err);
int kg_plan_read_launch(kg_plan_reader *r, const kg_json *j, kg_error *err);

#endif
