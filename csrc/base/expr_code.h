/* The postfix code that expr.c writes and expr_eval.c runs. Private to the two. */
#ifndef KG_BASE_EXPR_CODE_H
#define KG_BASE_EXPR_CODE_H

#include "base/expr.h"

/* Operands pending at once; the deepest nesting of ordinary formulas needs a third of it. The
 * parser refuses code that would need more, so evaluation does not check. */
#define KG_EXPR_STACK_MAX 512

typedef enum kg_expr_op {
    OP_LIT,
    OP_REF,  /* arg: index into refs; takes its nargs operands */
    OP_JUMP, /* arg: target */
    OP_JUMP_IF_ZERO,
    OP_AND, /* zero stays as 0 and jumps, else it is dropped */
    OP_OR,  /* nonzero becomes 1 and jumps, else it is dropped */
    OP_BOOL,
    OP_NOT,
    OP_NEG,
    OP_ABS,
    OP_LOG2_CEIL,
    OP_ADD, /* from here on: two operands */
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_MOD,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_MIN,
    OP_MAX,
    OP_CEIL_DIV,
    OP_ALIGN_UP
} kg_expr_op;

typedef struct kg_expr_ins {
    uint8_t op;
    uint16_t column;
    union {
        int64_t value;
        size_t arg;
    } u;
} kg_expr_ins;

typedef struct kg_expr_ref {
    kg_ref_kind kind;
    uint16_t column;
    const char *object, *name; /* into names */
    size_t nargs;
} kg_expr_ref;

struct kg_expr {
    char *text;
    char *names; /* every name and its NUL, back to back */
    kg_expr_ins *code;
    kg_expr_ref *refs;
    size_t ncode, nrefs;
};

/* Puts `expression "M // 4", column 4: ` before the message of err; of a long text it shows what
 * lies around the column. */
int kg_expr_locate(const char *text, size_t column, int code, kg_error *err);

#endif
