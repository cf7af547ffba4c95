/* The inside of a Program, for the files that parse, lower and evaluate it. Others use program.h.
 */
#ifndef KG_RUNTIME_PROGRAM_IR_H
#define KG_RUNTIME_PROGRAM_IR_H

#include "runtime/program.h"

#define KG_PROGRAM_MAX_VALUES 512
#define KG_PROGRAM_MAX_TEXT 65536
#define KG_PROGRAM_MAX_RANK 6

typedef enum kg_ptype { KG_PT_F32, KG_PT_I32, KG_PT_BOOL } kg_ptype;

/* Sets of kg_ptype: what an operation takes. */
enum { KG_PS_F = 1 << KG_PT_F32, KG_PS_I = 1 << KG_PT_I32, KG_PS_B = 1 << KG_PT_BOOL };

/* How the result's type follows: from the operands (SAME), always bool (COMPARE), or by its own
 * rule. */
typedef enum kg_pclass { KG_PC_SAME, KG_PC_COMPARE, KG_PC_WHERE, KG_PC_CAST, KG_PC_LOAD } kg_pclass;

/* X(NAME, text, class, operands, types that it takes) */
#define KG_POPS(X)                                                                                 \
    X(ADD, "add", SAME, 2, KG_PS_F | KG_PS_I)                                                      \
    X(SUB, "sub", SAME, 2, KG_PS_F | KG_PS_I)                                                      \
    X(MUL, "mul", SAME, 2, KG_PS_F | KG_PS_I)                                                      \
    X(NEG, "neg", SAME, 1, KG_PS_F | KG_PS_I)                                                      \
    X(ABS, "abs", SAME, 1, KG_PS_F | KG_PS_I)                                                      \
    X(MIN, "min", SAME, 2, KG_PS_F | KG_PS_I)                                                      \
    X(MAX, "max", SAME, 2, KG_PS_F | KG_PS_I)                                                      \
    X(DIV, "div", SAME, 2, KG_PS_F)                                                                \
    X(FLOORDIV, "floordiv", SAME, 2, KG_PS_F | KG_PS_I)                                            \
    X(REM, "rem", SAME, 2, KG_PS_F | KG_PS_I)                                                      \
    X(TRUNCDIV, "truncdiv", SAME, 2, KG_PS_I)                                                      \
    X(TANH, "tanh", SAME, 1, KG_PS_F)                                                              \
    X(EXP, "exp", SAME, 1, KG_PS_F)                                                                \
    X(EXP2, "exp2", SAME, 1, KG_PS_F)                                                              \
    X(LOG, "log", SAME, 1, KG_PS_F)                                                                \
    X(LOG2, "log2", SAME, 1, KG_PS_F)                                                              \
    X(SQRT, "sqrt", SAME, 1, KG_PS_F)                                                              \
    X(RSQRT, "rsqrt", SAME, 1, KG_PS_F)                                                            \
    X(SIN, "sin", SAME, 1, KG_PS_F)                                                                \
    X(COS, "cos", SAME, 1, KG_PS_F)                                                                \
    X(SIGMOID, "sigmoid", SAME, 1, KG_PS_F)                                                        \
    X(FLOOR, "floor", SAME, 1, KG_PS_F)                                                            \
    X(CEIL, "ceil", SAME, 1, KG_PS_F)                                                              \
    X(POW, "pow", SAME, 2, KG_PS_F)                                                                \
    X(ERF, "erf", SAME, 1, KG_PS_F)                                                                \
    X(EQ, "eq", COMPARE, 2, KG_PS_F | KG_PS_I | KG_PS_B)                                           \
    X(NE, "ne", COMPARE, 2, KG_PS_F | KG_PS_I | KG_PS_B)                                           \
    X(LT, "lt", COMPARE, 2, KG_PS_F | KG_PS_I)                                                     \
    X(LE, "le", COMPARE, 2, KG_PS_F | KG_PS_I)                                                     \
    X(GT, "gt", COMPARE, 2, KG_PS_F | KG_PS_I)                                                     \
    X(GE, "ge", COMPARE, 2, KG_PS_F | KG_PS_I)                                                     \
    X(AND, "and", SAME, 2, KG_PS_B | KG_PS_I)                                                      \
    X(OR, "or", SAME, 2, KG_PS_B | KG_PS_I)                                                        \
    X(XOR, "xor", SAME, 2, KG_PS_B | KG_PS_I)                                                      \
    X(NOT, "not", SAME, 1, KG_PS_B | KG_PS_I)                                                      \
    X(SHL, "shl", SAME, 2, KG_PS_I)                                                                \
    X(SHR, "shr", SAME, 2, KG_PS_I)                                                                \
    X(WHERE, "where", WHERE, 3, KG_PS_F | KG_PS_I | KG_PS_B)                                       \
    X(CAST, "cast", CAST, 1, KG_PS_F | KG_PS_I | KG_PS_B)                                          \
    X(LOAD, "load", LOAD, 0, KG_PS_F | KG_PS_I | KG_PS_B)

typedef enum kg_pop {
#define KG_X(NAME, text, cls, n, types) KG_POP_##NAME,
    KG_POPS(KG_X)
#undef KG_X
        KG_POP_COUNT
} kg_pop;

typedef enum kg_pkind {
    KG_PK_VALUE, /* index: the value's number in its section */
    KG_PK_SCORE,
    KG_PK_B,
    KG_PK_H,
    KG_PK_Q,
    KG_PK_KV,
    KG_PK_SCALAR, /* index: of the Program's scalars */
    KG_PK_LITERAL
} kg_pkind;

typedef struct kg_poperand {
    uint8_t kind; /* kg_pkind */
    uint8_t type; /* kg_ptype */
    uint16_t index;
    union {
        float f;
        int32_t i; /* int32; bool as 0 or 1 */
    } literal;
} kg_poperand;

typedef struct kg_pinstr {
    uint8_t op;     /* kg_pop */
    uint8_t type;   /* kg_ptype of the result */
    uint8_t nargs;  /* of a load: its indices */
    uint8_t tensor; /* of a load */
    kg_poperand arg[KG_PROGRAM_MAX_RANK];
} kg_pinstr;

typedef struct kg_psection {
    bool present;
    size_t n;
    kg_pinstr *value;
    kg_poperand result;
} kg_psection;

struct kg_program {
    char *text;
    char hash[33];
    size_t ntensors, nscalars;
    int32_t dtype[KG_MAX_CAPTURED], rank[KG_MAX_CAPTURED];
    uint8_t scalar[KG_MAX_SCALARS];  /* kg_ptype */
    uint8_t spread[KG_MAX_CAPTURED]; /* bit d: some look-up's index in dim d differs within a row */
    bool
        epilogue; /* `score` is an epilogue: its KG_PK_SCORE is acc, Q its row m, KV its column n */
    kg_psection score, mask;
};

const char *kg_ptype_name(int type);  /* "float32" */
const char *kg_pop_name(int op);      /* "add" */
kg_ptype kg_ptype_of_load(int dtype); /* what a load from a tensor of this dtype gives */

/* Where `struct kg_programs` keeps what it needs of one captured tensor; the lowering writes the
 * struct in this order: pointers, strides, sizes, scalars. Offsets in bytes. */
size_t kg_program_offset_pointer(const kg_program *p, size_t tensor);
size_t kg_program_offset_stride(const kg_program *p, size_t tensor, size_t dim);
size_t kg_program_offset_size(const kg_program *p, size_t tensor, size_t dim);
size_t kg_program_offset_scalar(const kg_program *p, size_t scalar);

/* dep[i] is 1 when value i of the section depends on kv or on score: it differs within a row. */
void kg_program_varying(const kg_psection *s, uint8_t *dep);
/* Whether an operand varies, given dep of its section. */
bool kg_operand_varying(const kg_poperand *a, const uint8_t *dep);

/* A score section as a straight line, mul * score + a term of the row + slope * kv. */
enum { KG_PL_NONE, KG_PL_UNIT, KG_PL_SOME }; /* a coefficient of score: 0, 1, of the row */
typedef struct kg_pline_value {
    int32_t step;   /* of kv, for int32 */
    uint8_t scored; /* for float32 */
    bool sloped;    /* float32 that has a coefficient of kv */
} kg_pline_value;
typedef struct kg_pline {
    kg_pline_value value[KG_PROGRAM_MAX_VALUES]; /* of those that vary within a row */
    uint8_t scored;                              /* of the result: UNIT or SOME */
} kg_pline;
/* dep: of kg_program_varying. False when the section is no line, as far as can be told. */
bool kg_program_line(const kg_psection *s, const uint8_t *dep, kg_pline *out);

/* Which helpers a lowered Program calls; sets have bit kg_pop. */
typedef struct kg_puses {
    uint64_t f32, i32; /* operations whose result is float32, int32 */
    uint32_t loads;    /* bit kg_dtype: of the tensors loaded from */
    bool cast_f32_i32;
} kg_puses;

/* Each appends text; out's sticky status says whether it went well. */
int kg_program_math(const kg_puses *uses, int target, kg_buf *out);
int kg_program_range(const kg_program *p, kg_buf *out); /* kg_mask_range; p may be NULL */
void kg_emit_f32(kg_buf *out, float v);                 /* a float constant in C */

#endif
