/* Lowers a Program to the C (or CUDA C++) that a kernel's holes call. Each section becomes two
 * functions: what is the same along a row (fixed b, h and q) is computed once and kept in a struct
 * that travels by value, so that the function over kv holds nothing that a compiler must hoist out
 * of memory that it cannot prove unwritten. Refuses nothing: a parsed Program lowers. */
#include "runtime/program_ir.h"

#include <stdio.h>
#include <string.h>

typedef struct lower {
    const kg_program *p;
    const kg_psection *s;
    kg_buf *out;
    int target;
    bool epilogue;                          /* no h in the functions' parameters */
    bool in_row;                            /* which of the two functions is being written */
    uint8_t varies[KG_PROGRAM_MAX_VALUES];  /* within a row */
    uint8_t kept[KG_PROGRAM_MAX_VALUES];    /* same along the row, and used where it varies */
    uint8_t natural[KG_PROGRAM_MAX_VALUES]; /* int32 that is never negative */
} lower;

typedef char operand[48];

static const char *c_type(int type) {
    return type == KG_PT_F32 ? "float" : "int";
}

/* Written by hand since printf's %a follows the locale. */
void kg_emit_f32(kg_buf *out, float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    uint32_t exponent = bits >> 23 & 255, mantissa = bits & 0x7fffff;
    const char *sign = bits >> 31 ? "-" : "";
    if (exponent == 255)
        kg_buf_printf(out, "kg_as_f32(%s)",
                      mantissa     ? "0x7fc00000"
                      : bits >> 31 ? "-0x800000"
                                   : "0x7f800000");
    else
        kg_buf_printf(out, "(%s0x%d.%06xp%df)", sign, exponent ? 1 : 0, (unsigned)(mantissa << 1),
                      exponent ? (int)exponent - 127 : -126);
}

static void name_literal(const kg_poperand *a, operand name) {
    if (a->type == KG_PT_F32) {
        kg_buf text;
        kg_buf_init(&text, 256);
        kg_emit_f32(&text, a->literal.f);
        snprintf(name, sizeof(operand), "%s", text.data != NULL ? text.data : "");
        kg_buf_free(&text);
    } else if (a->literal.i == INT32_MIN) {
        snprintf(name, sizeof(operand), "(-2147483647 - 1)");
    } else {
        snprintf(name, sizeof(operand), a->literal.i < 0 ? "(%d)" : "%d", (int)a->literal.i);
    }
}

/* On CUDA the arguments lie in constant memory and are operands as they are: a row that kept a copy
 * of its own would take registers, and two rows of a thread would load the same element twice. */
static bool from_arguments(const lower *l) {
    return l->target == KG_CUDA;
}

static void name_operand(const lower *l, const kg_poperand *a, operand name) {
    static const char *const inputs[] = {[KG_PK_SCORE] = "score",
                                         [KG_PK_B] = "b",
                                         [KG_PK_H] = "h",
                                         [KG_PK_Q] = "q",
                                         [KG_PK_KV] = "kv"};
    switch (a->kind) {
    case KG_PK_VALUE:
        snprintf(name, sizeof(operand), !l->in_row && !l->varies[a->index] ? "row.v%u" : "v%u",
                 (unsigned)a->index);
        break;
    case KG_PK_SCALAR:
        snprintf(name, sizeof(operand), l->in_row || from_arguments(l) ? "KG_P(p, s%u)" : "row.s%u",
                 (unsigned)a->index);
        break;
    case KG_PK_LITERAL:
        name_literal(a, name);
        break;
    default:
        snprintf(name, sizeof(operand), "%s", inputs[a->kind]);
    }
}

static bool is_natural(const lower *l, const kg_poperand *a) {
    if (a->kind == KG_PK_VALUE)
        return l->natural[a->index] != 0;
    if (a->kind == KG_PK_LITERAL)
        return a->literal.i >= 0;
    return a->kind == KG_PK_B || a->kind == KG_PK_H || a->kind == KG_PK_Q || a->kind == KG_PK_KV;
}

static bool positive_literal(const kg_poperand *a) {
    return a->kind == KG_PK_LITERAL && a->type == KG_PT_I32 && a->literal.i > 0;
}

static bool instr_natural(const lower *l, const kg_pinstr *in) {
    const kg_poperand *a = in->arg;
    if (in->type != KG_PT_I32)
        return false;
    switch (in->op) {
    case KG_POP_REM:
        return positive_literal(&a[1]);
    case KG_POP_FLOORDIV:
    case KG_POP_TRUNCDIV:
        return positive_literal(&a[1]) && is_natural(l, &a[0]);
    case KG_POP_MIN:
        return is_natural(l, &a[0]) && is_natural(l, &a[1]);
    case KG_POP_MAX:
    case KG_POP_AND:
        return is_natural(l, &a[0]) || is_natural(l, &a[1]);
    case KG_POP_OR:
        return is_natural(l, &a[0]) && is_natural(l, &a[1]);
    case KG_POP_SHR:
        return is_natural(l, &a[0]);
    case KG_POP_WHERE:
        return is_natural(l, &a[1]) && is_natural(l, &a[2]);
    case KG_POP_CAST:
        return a[0].type == KG_PT_BOOL;
    case KG_POP_LOAD:
        return l->p->dtype[in->tensor] == KG_U8;
    default:
        return false;
    }
}

static void begin_section(lower *l, const kg_psection *s) {
    l->s = s;
    kg_program_varying(s, l->varies);
    memset(l->kept, 0, sizeof l->kept);
    for (size_t i = 0; i < s->n; i++) {
        const kg_pinstr *in = &s->value[i];
        l->natural[i] = instr_natural(l, in);
        for (size_t j = 0; j < in->nargs && l->varies[i]; j++)
            if (in->arg[j].kind == KG_PK_VALUE && !l->varies[in->arg[j].index])
                l->kept[in->arg[j].index] = 1;
    }
    if (s->result.kind == KG_PK_VALUE && !l->varies[s->result.index])
        l->kept[s->result.index] = 1;
}

/* Integer division by a positive literal: a multiplication or a shift, which vectorise as they are.
 */
static bool emit_division_by(lower *l, const kg_pinstr *in, operand *a) {
    if (in->op == KG_POP_TRUNCDIV && positive_literal(&in->arg[1])) {
        kg_buf_printf(l->out, "%s / %s", a[0], a[1]);
        return true;
    }
    if ((in->op != KG_POP_FLOORDIV && in->op != KG_POP_REM) || !positive_literal(&in->arg[1]))
        return false;
    uint32_t d = (uint32_t)in->arg[1].literal.i;
    bool quotient = in->op == KG_POP_FLOORDIV;
    if ((d & (d - 1)) == 0 && quotient)
        kg_buf_printf(l->out, "%s >> %d", a[0], __builtin_ctz(d));
    else if ((d & (d - 1)) == 0)
        kg_buf_printf(l->out, "%s & %u", a[0], (unsigned)(d - 1));
    else if (is_natural(l, &in->arg[0]))
        kg_buf_printf(l->out, "(int)((unsigned)%s %s %uu)", a[0], quotient ? "/" : "%",
                      (unsigned)d);
    else
        kg_buf_printf(l->out, "kg_%s_by(%s, %s)", quotient ? "floordiv" : "rem", a[0], a[1]);
    return true;
}

/* "$0", "$1", "$2" stand for the operands. */
static const char *const INT_FORM[KG_POP_COUNT] = {
    [KG_POP_ADD] = "(int)((unsigned)$0 + (unsigned)$1)",
    [KG_POP_SUB] = "(int)((unsigned)$0 - (unsigned)$1)",
    [KG_POP_MUL] = "(int)((unsigned)$0 * (unsigned)$1)",
    [KG_POP_NEG] = "(int)(0u - (unsigned)$0)",
    [KG_POP_ABS] = "$0 < 0 ? (int)(0u - (unsigned)$0) : $0",
    [KG_POP_MIN] = "$0 < $1 ? $0 : $1",
    [KG_POP_MAX] = "$0 > $1 ? $0 : $1",
    [KG_POP_FLOORDIV] = "kg_floordiv($0, $1)",
    [KG_POP_REM] = "kg_rem($0, $1)",
    [KG_POP_TRUNCDIV] = "kg_truncdiv($0, $1)",
    [KG_POP_AND] = "$0 & $1",
    [KG_POP_OR] = "$0 | $1",
    [KG_POP_XOR] = "$0 ^ $1",
    [KG_POP_NOT] = "~$0",
    [KG_POP_SHL] = "kg_shl($0, $1)",
    [KG_POP_SHR] = "kg_shr($0, $1)",
};

static const char *const F32_FORM[KG_POP_COUNT] = {
    [KG_POP_ADD] = "$0 + $1",
    [KG_POP_SUB] = "$0 - $1",
    [KG_POP_MUL] = "$0 * $1",
    [KG_POP_NEG] = "-$0",
    [KG_POP_ABS] = "kg_as_f32(kg_as_i32($0) & 0x7fffffff)",
    [KG_POP_MIN] = "kg_minf($0, $1)",
    [KG_POP_MAX] = "kg_maxf($0, $1)",
    [KG_POP_DIV] = "$0 / $1",
    [KG_POP_FLOORDIV] = "kg_floordivf($0, $1)",
    [KG_POP_REM] = "kg_remf($0, $1)",
    [KG_POP_TANH] = "kg_tanhf($0)",
    [KG_POP_EXP] = "kg_expf($0)",
    [KG_POP_EXP2] = "kg_exp2f($0)",
    [KG_POP_LOG] = "kg_logf($0)",
    [KG_POP_LOG2] = "kg_log2f($0)",
    [KG_POP_SQRT] = "kg_sqrtf($0)",
    [KG_POP_RSQRT] = "kg_rsqrtf($0)",
    [KG_POP_SIN] = "kg_sinf($0)",
    [KG_POP_COS] = "kg_cosf($0)",
    [KG_POP_SIGMOID] = "kg_sigmoidf($0)",
    [KG_POP_ERF] = "kg_erff($0)",
    [KG_POP_FLOOR] = "kg_floorf($0)",
    [KG_POP_CEIL] = "kg_ceilf($0)",
    [KG_POP_POW] = "kg_powf($0, $1)",
};

/* Bool is int, 0 or 1. */
static const char *const BOOL_FORM[KG_POP_COUNT] = {
    [KG_POP_AND] = "$0 & $1",
    [KG_POP_OR] = "$0 | $1",
    [KG_POP_XOR] = "$0 ^ $1",
    [KG_POP_NOT] = "$0 ^ 1",
};

static const char *const ANY_FORM[KG_POP_COUNT] = {
    [KG_POP_EQ] = "$0 == $1",        [KG_POP_NE] = "$0 != $1", [KG_POP_LT] = "$0 < $1",
    [KG_POP_LE] = "$0 <= $1",        [KG_POP_GT] = "$0 > $1",  [KG_POP_GE] = "$0 >= $1",
    [KG_POP_WHERE] = "$0 ? $1 : $2",
};

static const char *cast_form(int from, int to) {
    if (to == KG_PT_BOOL)
        return from == KG_PT_F32 ? "$0 != 0.0f" : "$0 != 0";
    if (to == KG_PT_F32)
        return "(float)$0";
    return from == KG_PT_F32 ? "kg_to_i32($0)" : "$0";
}

static const char *form_of(const kg_pinstr *in) {
    if (in->op == KG_POP_CAST)
        return cast_form(in->arg[0].type, in->type);
    if (ANY_FORM[in->op] != NULL)
        return ANY_FORM[in->op];
    if (in->type == KG_PT_F32)
        return F32_FORM[in->op];
    return in->type == KG_PT_I32 ? INT_FORM[in->op] : BOOL_FORM[in->op];
}

static void emit_form(kg_buf *out, const char *form, const operand *a) {
    for (; *form != '\0'; form++) {
        if (*form == '$')
            kg_buf_puts(out, a[*++form - '0']);
        else
            kg_buf_putc(out, *form);
    }
}

static const char *index_helper(const lower *l, const kg_poperand *a) {
    return is_natural(l, a) ? "kg_index_up" : "kg_index";
}

/* The address of what a load reads, as far as it is the same along the row, in bytes from the
 * start. */
static void emit_table(lower *l, size_t k) {
    const kg_pinstr *in = &l->s->value[k];
    unsigned t = in->tensor;
    int size = (int)kg_dtype_size(l->p->dtype[t]);
    kg_buf_printf(l->out, "kg_table_at((const char *)KG_P(p, t%u)", t);
    for (unsigned d = 0; d < in->nargs; d++) {
        operand name;
        if (kg_operand_varying(&in->arg[d], l->varies))
            continue;
        name_operand(l, &in->arg[d], name);
        kg_buf_printf(l->out, "\n        + %s(%s, KG_P(p, t%u_n%u)) * KG_P(p, t%u_s%u) * %d",
                      index_helper(l, &in->arg[d]), name, t, d, t, d, size);
    }
    kg_buf_printf(l->out, ", %d)", size);
}

/* Whether a look-up starts at the same element in every row. */
static bool starts_alike(const lower *l, const kg_pinstr *in) {
    for (unsigned d = 0; d < in->nargs; d++)
        if (!kg_operand_varying(&in->arg[d], l->varies))
            return false;
    return true;
}

static void emit_load(lower *l, size_t k) {
    const kg_pinstr *in = &l->s->value[k];
    unsigned t = in->tensor;
    bool first = true;
    kg_buf_printf(l->out, "kg_load_%s(", kg_dtype_name(l->p->dtype[t]));
    if (l->in_row) {
        emit_table(l, k);
        kg_buf_puts(l->out, ", 0)");
        return;
    }
    if (from_arguments(l) && starts_alike(l, in))
        emit_table(l, k);
    else
        kg_buf_printf(l->out, "row.l%zu", k);
    kg_buf_puts(l->out, ", ");
    const char *form = from_arguments(l) ? "%s%s(%s, KG_P(p, t%u_n%u)) * (int)KG_P(p, t%u_s%u)"
                                         : "%s%s(%s, row.n%u_%u) * row.s%u_%u";
    for (unsigned d = 0; d < in->nargs; d++) {
        operand name;
        if (!kg_operand_varying(&in->arg[d], l->varies))
            continue;
        name_operand(l, &in->arg[d], name);
        kg_buf_printf(l->out, form, first ? "" : " + ", index_helper(l, &in->arg[d]), name, t, d, t,
                      d);
        first = false;
    }
    kg_buf_puts(l->out, ")");
}

static void emit_value(lower *l, size_t k) {
    const kg_pinstr *in = &l->s->value[k];
    operand a[3];
    kg_buf_printf(l->out, "    const %s v%zu = ", c_type(in->type), k);
    if (in->op == KG_POP_LOAD) {
        emit_load(l, k);
    } else {
        for (size_t j = 0; j < in->nargs; j++)
            name_operand(l, &in->arg[j], a[j]);
        if (in->op == KG_POP_DIV && l->target == KG_CUDA)
            emit_form(l->out, "kg_divf($0, $1)", (const operand *)a);
        else if (!emit_division_by(l, in, a))
            emit_form(l->out, form_of(in), (const operand *)a);
    }
    kg_buf_puts(l->out, ";\n");
}

/* What the row struct holds, each written by `each`: as a member, or as its assignment. */
typedef struct row_member {
    enum { ROW_VALUE, ROW_SCALAR, ROW_TABLE, ROW_SIZE } kind;
    size_t i; /* value, scalar, load or tensor */
    unsigned dim;
} row_member;
typedef void (*row_each)(lower *l, const row_member *m);

static void mark_scalars(const lower *l, bool *used) {
    for (size_t i = 0; i < l->s->n; i++)
        for (size_t j = 0; j < l->s->value[i].nargs && l->varies[i]; j++)
            if (l->s->value[i].arg[j].kind == KG_PK_SCALAR)
                used[l->s->value[i].arg[j].index] = true;
    if (l->s->result.kind == KG_PK_SCALAR)
        used[l->s->result.index] = true;
}

static size_t each_row_member(lower *l, row_each each) {
    bool scalar[KG_MAX_SCALARS] = {false};
    bool size[KG_MAX_CAPTURED][KG_PROGRAM_MAX_RANK] = {{false}};
    size_t n = 0;
    mark_scalars(l, scalar);
    for (size_t i = 0; i < l->s->n; i++) {
        const kg_pinstr *in = &l->s->value[i];
        bool table = l->varies[i] && in->op == KG_POP_LOAD;
        if (l->kept[i])
            each(l, &(row_member){.kind = ROW_VALUE, .i = i}), n++;
        if (table && !(from_arguments(l) && starts_alike(l, in)))
            each(l, &(row_member){.kind = ROW_TABLE, .i = i}), n++;
        for (unsigned d = 0; table && !from_arguments(l) && d < in->nargs; d++)
            if (kg_operand_varying(&in->arg[d], l->varies) && !size[in->tensor][d]) {
                size[in->tensor][d] = true;
                each(l, &(row_member){.kind = ROW_SIZE, .i = in->tensor, .dim = d}), n++;
            }
    }
    for (size_t i = 0; i < l->p->nscalars; i++)
        if (scalar[i] && !from_arguments(l))
            each(l, &(row_member){.kind = ROW_SCALAR, .i = i}), n++;
    return n;
}

static void emit_member(lower *l, const row_member *m) {
    switch (m->kind) {
    case ROW_VALUE:
        kg_buf_printf(l->out, "    %s v%zu;\n", c_type(l->s->value[m->i].type), m->i);
        break;
    case ROW_SCALAR:
        kg_buf_printf(l->out, "    %s s%zu;\n", c_type(l->p->scalar[m->i]), m->i);
        break;
    case ROW_TABLE:
        kg_buf_printf(l->out, "    struct kg_table l%zu;\n", m->i);
        break;
    case ROW_SIZE:
        kg_buf_printf(l->out, "    int n%zu_%u, s%zu_%u;\n", m->i, m->dim, m->i, m->dim);
        break;
    }
}

static void emit_assignment(lower *l, const row_member *m) {
    switch (m->kind) {
    case ROW_VALUE:
        kg_buf_printf(l->out, "    r.v%zu = v%zu;\n", m->i, m->i);
        break;
    case ROW_SCALAR:
        kg_buf_printf(l->out, "    r.s%zu = KG_P(p, s%zu);\n", m->i, m->i);
        break;
    case ROW_TABLE:
        kg_buf_printf(l->out, "    r.l%zu = ", m->i);
        emit_table(l, m->i);
        kg_buf_puts(l->out, ";\n");
        break;
    case ROW_SIZE:
        kg_buf_printf(l->out, "    r.n%zu_%u = KG_P(p, t%zu_n%u);\n", m->i, m->dim, m->i, m->dim);
        kg_buf_printf(l->out, "    r.s%zu_%u = (int)KG_P(p, t%zu_s%u);\n", m->i, m->dim, m->i,
                      m->dim);
        break;
    }
}

static void emit_row(lower *l, const char *name) {
    kg_buf_printf(l->out, "struct kg_%s_row {\n", name);
    if (each_row_member(l, emit_member) == 0)
        kg_buf_puts(l->out, "    int none;\n");
    kg_buf_printf(l->out,
                  "};\nKG_FN struct kg_%s_row kg_%s_row(KG_ARGS p, int b%s, int q) {\n"
                  "    (void)p, (void)b%s, (void)q;\n",
                  name, name, l->epilogue ? "" : ", int h", l->epilogue ? "" : ", (void)h");
    l->in_row = true;
    for (size_t i = 0; i < l->s->n; i++)
        if (!l->varies[i])
            emit_value(l, i);
    kg_buf_printf(l->out, "    struct kg_%s_row r;\n", name);
    if (each_row_member(l, emit_assignment) == 0)
        kg_buf_puts(l->out, "    r.none = 0;\n");
    kg_buf_puts(l->out, "    return r;\n}\n");
    l->in_row = false;
}

static void emit_section(lower *l, const kg_psection *s, const char *name, const char *head) {
    operand result;
    begin_section(l, s);
    emit_row(l, name);
    kg_buf_puts(l->out, head);
    for (size_t i = 0; i < s->n; i++)
        if (l->varies[i])
            emit_value(l, i);
    name_operand(l, &s->result, result);
    kg_buf_printf(l->out, "    return %s;\n}\n", result);
}

static const char SCORE_HEAD[] =
    "KG_FN float kg_score(KG_ARGS p, struct kg_score_row row, float score, int b, int h, int q,"
    " int kv) {\n"
    "    (void)p, (void)row, (void)score, (void)b, (void)h, (void)q, (void)kv;\n";
static const char EPILOGUE_HEAD[] =
    "KG_FN float kg_epilogue(KG_ARGS p, struct kg_epilogue_row row, float score, int b, int q,"
    " int kv) {\n"
    "    (void)p, (void)row, (void)score, (void)b, (void)q, (void)kv;\n";
static const char MASK_HEAD[] =
    "KG_FN int kg_mask(KG_ARGS p, struct kg_mask_row row, int b, int h, int q, int kv) {\n"
    "    (void)p, (void)row, (void)b, (void)h, (void)q, (void)kv;\n";

/* A factor of the line of operand a, of score or of kv. */
static void put_factor(const lower *l, const kg_pline *line, const kg_poperand *a, char of) {
    const kg_pline_value *v = a->kind == KG_PK_VALUE ? &line->value[a->index] : NULL;
    bool there = v != NULL && l->varies[a->index] && (of == 'm' ? v->scored != 0 : v->sloped);
    if (there)
        kg_buf_printf(l->out, "%c%u", of, (unsigned)a->index);
    else
        kg_buf_puts(l->out, of == 'm' && a->kind == KG_PK_SCORE ? "1.0f" : "0.0f");
}

static void put_factor_of(const lower *l, const kg_pline *line, size_t i, char of) {
    const kg_pinstr *in = &l->s->value[i];
    operand name;
    kg_buf_printf(l->out, "    const float %c%zu = ", of, i);
    if (in->op == KG_POP_CAST) {
        const kg_poperand *a = in->arg;
        int32_t step = a->kind == KG_PK_VALUE ? line->value[a->index].step : 1;
        kg_buf_printf(l->out, "%d.0f;\n", (int)step);
        return;
    }
    if (in->op == KG_POP_WHERE) {
        name_operand(l, &in->arg[0], name);
        kg_buf_printf(l->out, "%s ? ", name);
        put_factor(l, line, &in->arg[1], of);
        kg_buf_puts(l->out, " : ");
        put_factor(l, line, &in->arg[2], of);
    } else if (in->op == KG_POP_MUL || in->op == KG_POP_DIV) {
        size_t fixed = kg_operand_varying(&in->arg[1], l->varies) ? 0 : 1;
        name_operand(l, &in->arg[fixed], name);
        put_factor(l, line, &in->arg[1 - fixed], of);
        kg_buf_printf(l->out, " %c %s", in->op == KG_POP_MUL ? '*' : '/', name);
    } else if (in->op == KG_POP_NEG) {
        kg_buf_puts(l->out, "-");
        put_factor(l, line, &in->arg[0], of);
    } else {
        put_factor(l, line, &in->arg[0], of);
        kg_buf_puts(l->out, in->op == KG_POP_ADD ? " + " : " - ");
        put_factor(l, line, &in->arg[1], of);
    }
    kg_buf_puts(l->out, ";\n");
}

/* The score section as a line, where it is one. begin_section has been called for it. */
static void emit_line(lower *l) {
    kg_pline line;
    bool is = kg_program_line(l->s, l->varies, &line);
    kg_buf_printf(l->out, "#define KG_SCORE_LINE %d\n#define KG_SCORE_UNIT %d\n", is,
                  is && line.scored == KG_PL_UNIT);
    if (!is)
        return;
    kg_buf_puts(l->out, "struct kg_line { float mul, slope; };\n"
                        "KG_FN struct kg_line kg_score_line(KG_ARGS p, int b, int h, int q) {\n"
                        "    (void)p, (void)b, (void)h, (void)q;\n");
    l->in_row = true;
    for (size_t i = 0; i < l->s->n; i++) {
        if (!l->varies[i])
            emit_value(l, i);
        else if (line.value[i].scored != KG_PL_NONE)
            put_factor_of(l, &line, i, 'm');
        if (l->varies[i] && line.value[i].sloped)
            put_factor_of(l, &line, i, 'k');
    }
    kg_buf_puts(l->out, "    const struct kg_line r = {");
    put_factor(l, &line, &l->s->result, 'm');
    kg_buf_puts(l->out, ", ");
    put_factor(l, &line, &l->s->result, 'k');
    kg_buf_puts(l->out, "};\n    return r;\n}\n");
    l->in_row = false;
}

/* Whether some value of a section reads an input. */
static int reads(const kg_psection *s, int kind) {
    for (size_t i = 0; i < s->n; i++)
        for (size_t j = 0; j < s->value[i].nargs; j++)
            if (s->value[i].arg[j].kind == kind)
                return 1;
    return 0;
}

static void section_uses(const kg_program *p, const kg_psection *s, kg_puses *uses) {
    for (size_t i = 0; i < s->n; i++) {
        const kg_pinstr *in = &s->value[i];
        if (in->op == KG_POP_LOAD)
            uses->loads |= 1u << p->dtype[in->tensor];
        else if (in->op == KG_POP_CAST && in->type == KG_PT_I32 && in->arg[0].type == KG_PT_F32)
            uses->cast_f32_i32 = true;
        else if (in->type == KG_PT_F32)
            uses->f32 |= 1ull << in->op;
        else if (in->type == KG_PT_I32)
            uses->i32 |= 1ull << in->op;
    }
}

/* Of both sections; p may be NULL. */
static kg_puses uses_of(const kg_program *p) {
    kg_puses uses = {0};
    if (p != NULL) {
        section_uses(p, &p->score, &uses);
        section_uses(p, &p->mask, &uses);
    }
    return uses;
}

/* Bytes before, in and after the three groups of `struct kg_programs`: pointers, strides, then
 * int32 and float. */
static size_t dims_before(const kg_program *p, size_t tensor) {
    size_t n = 0;
    for (size_t i = 0; i < tensor; i++)
        n += (size_t)p->rank[i];
    return n;
}

size_t kg_program_offset_pointer(const kg_program *p, size_t tensor) {
    (void)p;
    return 8 * tensor;
}

size_t kg_program_offset_stride(const kg_program *p, size_t tensor, size_t dim) {
    return 8 * (p->ntensors + dims_before(p, tensor) + dim);
}

size_t kg_program_offset_size(const kg_program *p, size_t tensor, size_t dim) {
    return 8 * (p->ntensors + dims_before(p, p->ntensors)) + 4 * (dims_before(p, tensor) + dim);
}

size_t kg_program_offset_scalar(const kg_program *p, size_t scalar) {
    return kg_program_offset_size(p, p->ntensors, 0) + 4 * scalar;
}

size_t kg_program_args_size(const kg_program *p) {
    size_t n = p != NULL ? kg_program_offset_scalar(p, p->nscalars) : 0;
    return n == 0 ? 8 : (n + 7) / 8 * 8;
}

static void emit_args(const kg_program *p, kg_buf *out) {
    size_t used = p != NULL ? kg_program_offset_scalar(p, p->nscalars) : 0;
    kg_buf_puts(out, "struct kg_programs {\n");
    for (size_t i = 0; p != NULL && i < p->ntensors; i++)
        kg_buf_printf(out, "    const void *t%zu;\n", i);
    for (size_t i = 0; p != NULL && i < p->ntensors; i++)
        for (int d = 0; d < p->rank[i]; d++)
            kg_buf_printf(out, "    long long t%zu_s%d;\n", i, d);
    for (size_t i = 0; p != NULL && i < p->ntensors; i++)
        for (int d = 0; d < p->rank[i]; d++)
            kg_buf_printf(out, "    int t%zu_n%d;\n", i, d);
    for (size_t i = 0; p != NULL && i < p->nscalars; i++)
        kg_buf_printf(out, "    %s s%zu;\n", c_type(p->scalar[i]), i);
    if (used == 0)
        kg_buf_puts(out, "    long long none;\n");
    else if (used % 8 != 0)
        kg_buf_puts(out, "    int pad;\n");
    kg_buf_puts(out, "};\n");
}

static void emit_prelude(const kg_program *p, int target, kg_buf *out) {
    kg_puses uses = uses_of(p);
    kg_program_math(&uses, target, out);
    emit_args(p, out);
    kg_buf_puts(out, target == KG_CUDA ? "#define KG_PROGRAMS const struct kg_programs\n"
                                         "#define KG_ARGS const struct kg_programs &\n"
                                         "#define KG_P(p, field) ((p).field)\n"
                                       : "#define KG_PROGRAMS const struct kg_programs *\n"
                                         "#define KG_ARGS KG_PROGRAMS\n"
                                         "#define KG_P(p, field) ((p)->field)\n");
}

static const kg_psection IDENTITY = {.result = {.kind = KG_PK_SCORE, .type = KG_PT_F32}};
static const kg_psection ALWAYS = {
    .result = {.kind = KG_PK_LITERAL, .type = KG_PT_BOOL, .literal.i = 1}};

bool kg_program_uses_tanh(const kg_program *p) {
    kg_puses uses = uses_of(p);
    return (uses.f32 >> KG_POP_TANH & 1) != 0;
}

int kg_program_lower(const kg_program *p, int target, kg_buf *out, kg_error *err) {
    if (target != KG_CPU && target != KG_CUDA)
        return kg_fail(err, KG_EINVAL, "lowering a Program: %d is no target", target);
    static const kg_program none;
    lower l = {.p = p != NULL ? p : &none, .out = out, .target = target};
    kg_buf_printf(out, "/* Program %s */\n", p != NULL ? p->hash : "none");
    emit_prelude(p, target, out);
    kg_buf_printf(out, "#define KG_HAS_SCORE %d\n#define KG_HAS_MASK %d\n",
                  kg_program_has(p, "SCORE"), kg_program_has(p, "MASK"));
    const kg_psection *mask = kg_program_has(p, "MASK") ? &p->mask : &ALWAYS;
    emit_section(&l, kg_program_has(p, "SCORE") ? &p->score : &IDENTITY, "score", SCORE_HEAD);
    if (target == KG_CUDA) {
        emit_line(&l);
        kg_buf_printf(out, "#define KG_MASK_OF_B %d\n#define KG_MASK_OF_H %d\n",
                      reads(mask, KG_PK_B), reads(mask, KG_PK_H));
    }
    emit_section(&l, mask, "mask", MASK_HEAD);
    kg_program_range(p, out);
    return kg_buf_check(out, "a lowered Program", err);
}

int kg_program_lower_epilogue(const kg_program *p, int target, kg_buf *out, kg_error *err) {
    if (target != KG_CPU && target != KG_CUDA)
        return kg_fail(err, KG_EINVAL, "lowering a Program: %d is no target", target);
    static const kg_program none;
    bool has = kg_program_has(p, "EPILOGUE");
    lower l = {.p = has ? p : &none, .out = out, .target = target, .epilogue = true};
    kg_buf_printf(out, "/* Program %s */\n", has ? p->hash : "none");
    emit_prelude(has ? p : NULL, target, out);
    kg_buf_printf(out, "#define KG_HAS_EPILOGUE %d\n", has);
    emit_section(&l, has ? &p->score : &IDENTITY, "epilogue", EPILOGUE_HEAD);
    return kg_buf_check(out, "a lowered Program", err);
}
