/* What the readers of contracts, plans, Cases and pins share: key paths for messages, names,
 * expressions and the check of an expression's names when it is read. Internal to csrc/tune. */
#ifndef KG_TUNE_CONTRACT_READ_H
#define KG_TUNE_CONTRACT_READ_H

#include "base/json.h"
#include "runtime/plan.h"

/* A key path, by value, so that kg_at("args[%zu].%s", i, key).text serves as an argument. */
typedef struct kg_at_text {
    char text[160];
} kg_at_text;
kg_at_text kg_at(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The member; KG_EFORMAT "at.key is missing" when there is none. */
int kg_need(const kg_json *object, const char *at, const char *key, const kg_json **out,
            kg_error *err);
int kg_read_object(const kg_json *j, const char *at, kg_error *err);
/* An array of min to max elements. */
int kg_read_array(const kg_json *j, const char *at, size_t min, size_t max, kg_error *err);
/* The caller's string. */
int kg_read_text(const kg_json *j, const char *at, char **out, kg_error *err);
/* The same, and it must be a name of the formats. */
int kg_read_name(const kg_json *j, const char *at, char **out, kg_error *err);
/* KG_OK when absent, and *out stays. */
int kg_read_flag(const kg_json *object, const char *at, const char *key, bool *out, kg_error *err);
int kg_read_dtype(const kg_json *j, const char *at, int *out, kg_error *err);
/* An expression: a string, or an integer. */
int kg_read_expr(const kg_json *j, const char *at, kg_expr **out, kg_error *err);

/* A number, or "inf", "-inf", "nan". */
int kg_read_float(const kg_json *j, const char *at, double *out, kg_error *err);
/* The value of an attribute; null where the type allows None. */
int kg_read_attr(const kg_op_arg *a, const kg_json *j, const char *at, kg_value *out,
                 kg_error *err);
/* One of the NULL-terminated names; its index. */
int kg_read_choice(const kg_json *j, const char *at, const char *const *names, int *out,
                   kg_error *err);
/* "skip" of a Case or key, which may be absent: bit i for optional output i. */
int kg_read_skip(const kg_op *op, const kg_json *object, uint32_t *out, kg_error *err);
/* "device" and "precision" of a Case or key. */
int kg_read_device(const kg_json *object, int *device, int *precision, kg_error *err);

/* A name that the source sees as a macro, or that expressions use: refused when it is a word of C,
 * of kgen's own macros, or of the expression language. what: "tunable", "dim". */
int kg_check_word(const char *name, const char *what, const char *at, kg_error *err);

/* What an expression may name. */
typedef struct kg_names {
    const kg_op *op;
    uint32_t dims;       /* bit i: dims[i] */
    bool outputs;        /* outputs' sizes are known */
    const kg_plan *plan; /* tunables and device constants; NULL in contracts */
} kg_names;

int kg_check_names(const kg_names *names, const kg_expr *e, const char *at, kg_error *err);
/* kg_read_expr and kg_check_names. */
int kg_read_checked(const kg_names *names, const kg_json *j, const char *at, kg_expr **out,
                    kg_error *err);
/* The dims, attributes and tunables that can be named: "M, N, K, VEC". */
void kg_known_names(const kg_names *names, char *out, size_t n);

/* Checks the schema's text against the args and outputs that were read, and takes numeric defaults.
 */
int kg_check_schema(kg_op *op, kg_error *err);

#endif
