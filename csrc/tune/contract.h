/* JSON into the shared types: contracts, plans, Cases. The runtime never sees JSON; tuning and the
 * index builder come through here. All strings are copied. */
#ifndef KG_TUNE_CONTRACT_H
#define KG_TUNE_CONTRACT_H

#include "base/json.h"
#include "runtime/op.h"
#include "runtime/plan.h"
#include "runtime/program.h"
#include "runtime/signature.h"

/* what ("generated/softmax/op.json") opens every error message. */
int kg_op_from_json(const char *text, size_t n, const char *what, kg_op **out, kg_error *err);

/* Reads the plan in a Candidate's opening comment and checks every name against the contract. */
int kg_plan_from_source(const char *text, size_t n, const char *what, const kg_op *op,
                        kg_plan **out, kg_error *err);
/* The name of the Op alone, before its contract is known. */
int kg_source_op(const char *text, size_t n, const char *what, char op[128], kg_error *err);

/* Defaults: the first value of each. json: {"VEC": 16}; every tunable must be named and the value
 * be one of the plan's. */
void kg_tuning_default(const kg_plan *p, kg_tuning *out);
int kg_tuning_from_json(const kg_plan *p, const kg_json *json, const char *what, kg_tuning *out,
                        kg_error *err);
kg_json *kg_tuning_to_json(const kg_plan *p, const kg_tuning *t); /* NULL: out of memory */
int kg_candidate_id(const char *text, size_t n, const kg_plan *p, const kg_tuning *t, char id[65],
                    kg_error *err);

typedef enum kg_fill_kind {
    KG_FILL_NORMAL,
    KG_FILL_UNIFORM,
    KG_FILL_INTEGERS,
    KG_FILL_VALUES
} kg_fill_kind;

typedef struct kg_fill {
    kg_fill_kind kind;
    double a, b; /* mean and std, low and high */
    char *file;  /* KG_FILL_VALUES */
} kg_fill;

/* One Case. call.args' tensors have data NULL: sizes, strides and dtypes only; align is what the
 * Case saw. */
typedef struct kg_case {
    kg_call call;
    kg_program *program;
    kg_fill fill[KG_MAX_ARGS], captured_fill[KG_MAX_CAPTURED];
    int32_t align[KG_MAX_ARGS];
    int64_t count;
    kg_dims dims;
    kg_key key;    /* exact */
    char hash[33]; /* the name of its exact pin */
    char *text;    /* canonical JSON */
} kg_case;

int kg_case_from_json(const char *text, size_t n, const char *what, const kg_op *op, kg_case **out,
                      kg_error *err);
void kg_case_free(kg_case *c);

/* Keys and pins. */
kg_json *kg_key_to_json(const kg_op *op, const kg_key *key);
int kg_key_from_json(const kg_op *op, const kg_json *json, const char *what, kg_key *out,
                     kg_error *err);
int kg_key_hash(const kg_op *op, const kg_key *key, char hash[33], kg_error *err);

#endif
