/* Runs the code of a parsed expression. Allocates nothing and does not recurse; every operation
 * that could leave 64 bits is checked, and what C leaves undefined (INT64_MIN / -1, % of it) is
 * decided here. */
#include "base/expr_code.h"

#include <stdbool.h>

static int floor_div(int64_t a, int64_t b, int64_t *out, kg_error *err) {
    if (b == 0)
        return kg_fail(err, KG_EINVAL, "division by zero");
    if (a == INT64_MIN && b == -1)
        return kg_fail(err, KG_EOVERFLOW, "%lld / -1 does not fit 64 bits", (long long)a);
    *out = a / b - (a % b != 0 && (a < 0) != (b < 0));
    return KG_OK;
}

/* INT64_MIN % -1 traps on x86 though it is 0. */
static int floor_mod(int64_t a, int64_t b, int64_t *out, kg_error *err) {
    if (b == 0)
        return kg_fail(err, KG_EINVAL, "remainder of a division by zero");
    int64_t r = b == -1 ? 0 : a % b;
    *out = r != 0 && (r < 0) != (b < 0) ? r + b : r;
    return KG_OK;
}

static int ceil_div(int64_t a, int64_t b, int64_t *out, kg_error *err) {
    int status = floor_div(a, b, out, err);
    if (status == KG_OK && a % b != 0)
        ++*out;
    return status;
}

static int align_up(int64_t a, int64_t b, int64_t *out, kg_error *err) {
    if (b <= 0)
        return kg_fail(err, KG_EINVAL, "align_up(%lld, %lld): the alignment must be positive",
                       (long long)a, (long long)b);
    int64_t r;
    floor_mod(a, b, &r, NULL);
    if (r != 0 && __builtin_add_overflow(a, b - r, &a))
        return kg_fail(err, KG_EOVERFLOW, "align_up does not fit 64 bits");
    *out = a;
    return KG_OK;
}

static int binary_value(kg_expr_op o, int64_t a, int64_t b, int64_t *out, kg_error *err) {
    static const char signs[] = {'+', '-', '*'};
    bool overflow = false;
    switch (o) {
    case OP_ADD:
        overflow = __builtin_add_overflow(a, b, out);
        break;
    case OP_SUB:
        overflow = __builtin_sub_overflow(a, b, out);
        break;
    case OP_MUL:
        overflow = __builtin_mul_overflow(a, b, out);
        break;
    case OP_DIV:
        return floor_div(a, b, out, err);
    case OP_MOD:
        return floor_mod(a, b, out, err);
    case OP_CEIL_DIV:
        return ceil_div(a, b, out, err);
    case OP_ALIGN_UP:
        return align_up(a, b, out, err);
    default:
        *out = o == OP_EQ    ? a == b
               : o == OP_NE  ? a != b
               : o == OP_LT  ? a < b
               : o == OP_LE  ? a <= b
               : o == OP_GT  ? a > b
               : o == OP_GE  ? a >= b
               : o == OP_MIN ? (a < b ? a : b)
                             : (a > b ? a : b);
    }
    if (overflow)
        return kg_fail(err, KG_EOVERFLOW, "%lld %c %lld does not fit 64 bits", (long long)a,
                       signs[o - OP_ADD], (long long)b);
    return KG_OK;
}

static int unary_value(kg_expr_op o, int64_t a, int64_t *out, kg_error *err) {
    switch (o) {
    case OP_BOOL:
        *out = a != 0;
        return KG_OK;
    case OP_NOT:
        *out = a == 0;
        return KG_OK;
    case OP_LOG2_CEIL:
        if (a < 1)
            return kg_fail(err, KG_EINVAL, "log2_ceil(%lld): the argument must be at least 1",
                           (long long)a);
        *out = a == 1 ? 0 : 64 - __builtin_clzll((unsigned long long)a - 1);
        return KG_OK;
    default: /* OP_NEG, OP_ABS */
        if (a == INT64_MIN)
            return kg_fail(err, KG_EOVERFLOW, "-(%lld) does not fit 64 bits", (long long)a);
        *out = o == OP_ABS && a >= 0 ? a : -a;
        return KG_OK;
    }
}

static int resolve_ref(const kg_expr_ref *r, kg_resolve resolve, void *ctx, const int64_t *args,
                       int64_t *out, kg_error *err) {
    kg_ref asked = {.kind = r->kind,
                    .object = r->object,
                    .name = r->name,
                    .nargs = r->nargs,
                    .args = r->nargs ? args : NULL};
    if (!resolve)
        return kg_fail(err, KG_ENOTFOUND, "'%s' is unknown here", r->object ? r->object : r->name);
    int status = resolve(ctx, &asked, out, err);
    if (status < 0 && err->code == KG_OK)
        kg_fail(err, status, "'%s': %s", r->name, kg_status_text(status));
    return status;
}

/* True when the jump is taken; *top is then the operand that stays, if any. */
static bool jumps(kg_expr_op o, int64_t *stack, size_t *top) {
    int64_t v = o == OP_JUMP ? 0 : stack[*top - 1];
    bool taken = o == OP_JUMP || (o == OP_OR ? v != 0 : v == 0);
    if (o == OP_JUMP_IF_ZERO || (o != OP_JUMP && !taken))
        --*top;
    else if (o != OP_JUMP)
        stack[*top - 1] = v != 0;
    return taken;
}

/* One instruction that computes; the parser has bounded the stack. */
static int step(const kg_expr *e, const kg_expr_ins *i, kg_resolve resolve, void *ctx,
                int64_t *stack, size_t *top, kg_error *err) {
    kg_expr_op o = (kg_expr_op)i->op;
    if (o == OP_LIT) {
        stack[(*top)++] = i->u.value;
        return KG_OK;
    }
    int64_t v = 0;
    size_t eaten = o == OP_REF ? e->refs[i->u.arg].nargs : o >= OP_ADD ? 2 : 1;
    int64_t *args = stack + *top - eaten;
    int status = o == OP_REF   ? resolve_ref(&e->refs[i->u.arg], resolve, ctx, args, &v, err)
                 : o >= OP_ADD ? binary_value(o, args[0], args[1], &v, err)
                               : unary_value(o, args[0], &v, err);
    *top = *top - eaten + 1;
    args[0] = v;
    return status;
}

int kg_expr_eval(const kg_expr *e, kg_resolve resolve, void *ctx, int64_t *out, kg_error *err) {
    int64_t stack[KG_EXPR_STACK_MAX];
    size_t top = 0;
    for (size_t pc = 0; pc < e->ncode;) {
        const kg_expr_ins *i = &e->code[pc++];
        if (i->op >= OP_JUMP && i->op <= OP_OR) {
            if (jumps((kg_expr_op)i->op, stack, &top))
                pc = i->u.arg;
            continue;
        }
        kg_error inner = {0};
        int status = step(e, i, resolve, ctx, stack, &top, &inner);
        if (status < 0) {
            kg_fail(err, status, "%s", inner.msg);
            return kg_expr_locate(e->text, i->column, status, err);
        }
    }
    *out = stack[0];
    return KG_OK;
}
