/* Expressions: values, edges of 64 bits, what is never evaluated, and the words of each refusal. */
#include <inttypes.h>

#include "base/buf.h"
#include "base/expr.h"
#include "test.h"

/* M = 7, N = 1000; x has sizes 2, 3, 5; p = {1, -2}; every call is counted. */
typedef struct world {
    int calls;
    bool fail_silently;
} world;

static int resolve_method(const kg_ref *r, int64_t *out, kg_error *err) {
    static const int64_t sizes[] = {2, 3, 5};
    if (strcmp(r->name, "size") == 0 && r->nargs == 1 && r->args[0] >= 0 && r->args[0] < 3) {
        *out = sizes[r->args[0]];
        return KG_OK;
    }
    if (strcmp(r->name, "prod") == 0 && r->nargs == 2) {
        *out = 1;
        for (int64_t i = r->args[0]; i < r->args[1]; i++)
            *out *= sizes[i];
        return KG_OK;
    }
    if (strcmp(r->name, "zero") == 0 && r->nargs == 0 && !r->args) {
        *out = 0;
        return KG_OK;
    }
    return kg_fail(err, KG_EINVAL, "x.%s with %zu arguments: out of range", r->name, r->nargs);
}

static int resolve(void *ctx, const kg_ref *r, int64_t *out, kg_error *err) {
    world *w = ctx;
    w->calls++;
    if (w->fail_silently)
        return KG_EIO;
    if (r->kind == KG_REF_METHOD)
        return resolve_method(r, out, err);
    if (r->kind == KG_REF_INDEX && strcmp(r->name, "p") == 0 && !r->object) {
        *out = r->args[0] == 0 ? 1 : -2;
        return KG_OK;
    }
    if (r->kind == KG_REF_FIELD && strcmp(r->object, "x") == 0)
        *out = strcmp(r->name, "ndim") == 0 ? 3 : 6;
    else if (r->kind == KG_REF_CALL)
        *out = strcmp(r->name, "align") == 0 ? 64 : strcmp(r->name, "len") == 0 ? 2 : 1;
    else if (r->kind == KG_REF_NAME && strcmp(r->name, "M") == 0 && !r->object)
        *out = 7;
    else if (r->kind == KG_REF_NAME && strcmp(r->name, "N") == 0)
        *out = 1000;
    else
        return kg_fail(err, KG_ENOTFOUND, "'%s' is no dim", r->name);
    return KG_OK;
}

static int eval_with(world *w, const char *text, int64_t *out, kg_error *err) {
    kg_expr *e = NULL;
    int status = kg_expr_parse(text, &e, err);
    if (status == KG_OK)
        status = kg_expr_eval(e, resolve, w, out, err);
    kg_expr_free(e);
    return status;
}

static int64_t eval(const char *text) {
    world w = {0};
    kg_error err = {0};
    int64_t v = -99;
    int status = eval_with(&w, text, &v, &err);
    if (status < 0)
        FAIL("%s: %s", text, err.msg);
    return v;
}

typedef struct value_of {
    const char *text;
    int64_t value;
} value_of;

static void check_all(const value_of *cases, size_t n) {
    for (size_t i = 0; i < n; i++) {
        int64_t got = eval(cases[i].text);
        if (got != cases[i].value)
            FAIL("%s is %" PRId64 ", not %" PRId64, cases[i].text, got, cases[i].value);
    }
}

#define CHECK_ALL(cases) check_all((cases), sizeof(cases) / sizeof *(cases))

TEST(expr_precedence_and_association) {
    static const value_of cases[] = {
        {"128", 128},
        {"0", 0},
        {" 1\t+\n2\r", 3},
        {"2 + 3 * 4", 14},
        {"(2 + 3) * 4", 20},
        {"20 - 5 - 3", 12},
        {"100 / 5 / 2", 10},
        {"100 / 5 * 2", 40},
        {"17 % 10 % 4", 3},
        {"2 * 7 % 4", 2},
        {"-2 * -3", 6},
        {"- - 5", 5},
        {"2 - -3", 5},
        {"!0 + !5", 1},
        {"!!7", 1},
        {"-M * 2", -14},
        {"1 + 2 < 4", 1},
        {"1 < 2 == 3 > 2", 1},
        {"1 == 1 && 2 == 3 || 1", 1},
        {"1 || 1 && 0", 1},
        {"(1 || 1) && 0", 0},
        {"0 == 1 < 2", 0},
        {"(M != 7) + (M >= 7) * 2 + (M <= 6) * 4 + (M > 6) * 8", 10},
    };
    CHECK_ALL(cases);
}

TEST(expr_division_floors_as_python) {
    static const value_of cases[] = {
        {"7 / 2", 3},
        {"-7 / 2", -4},
        {"7 / -2", -4},
        {"-7 / -2", 3},
        {"7 % 3", 1},
        {"-7 % 3", 2},
        {"7 % -3", -2},
        {"-7 % -3", -1},
        {"-6 / 3", -2},
        {"-6 % 3", 0},
        {"6 % -3", 0},
        {"0 / -5", 0},
        {"(0-9223372036854775807-1) % -1", 0},
    };
    CHECK_ALL(cases);
}

TEST(expr_functions) {
    static const value_of cases[] = {
        {"min(3, 1, 2)", 1},
        {"max(3, 1, 2, 9, 4)", 9},
        {"min(1, max(2, 3)) + max(min(4, 5), 6)", 7},
        {"ceil_div(7, 2)", 4},
        {"ceil_div(8, 2)", 4},
        {"ceil_div(-7, 2)", -3},
        {"ceil_div(7, -2)", -3},
        {"ceil_div(-7, -2)", 4},
        {"ceil_div(0, 5)", 0},
        {"align_up(1, 16)", 16},
        {"align_up(32, 16)", 32},
        {"align_up(0, 16)", 0},
        {"align_up(-5, 4)", -4},
        {"align_up(10, 7)", 14},
        {"log2_ceil(1)", 0},
        {"log2_ceil(2)", 1},
        {"log2_ceil(3)", 2},
        {"log2_ceil(1024)", 10},
        {"log2_ceil(1025)", 11},
        {"log2_ceil(4611686018427387904)", 62},
        {"log2_ceil(4611686018427387905)", 63},
        {"log2_ceil(9223372036854775807)", 63},
        {"abs(-5) * abs(5)", 25},
    };
    CHECK_ALL(cases);
}

TEST(expr_references) {
    static const value_of cases[] = {
        {"x.ndim", 3},
        {"x . dtype", 6},
        {"x.size(1)", 3},
        {"x.size(x.size(0))", 5},
        {"x.prod(0, 3)", 30},
        {"x.prod(1, 1)", 1},
        {"x.zero()", 0},
        {"p[0] * 10 + p[1]", 8},
        {"p[M - 7]", 1},
        {"len(p)", 2},
        {"align(x) >= 16 && present(x) && numel(x)", 1},
        {"(N + 2 * p[0] - M) / x.size(0) + 1", 498},
    };
    CHECK_ALL(cases);
}

TEST(expr_ternary) {
    static const value_of cases[] = {
        {"1 ? 2 : 3", 2},
        {"0 ? 2 : 3", 3},
        {"0 ? 1 : 0 ? 2 : 3", 3},
        {"0 ? 1 : 5 ? 2 : 3", 2},
        {"1 ? 0 ? 10 : 20 : 30", 20},
        {"1 ? 2 : 3 + 100", 2},
        {"(1 ? 2 : 3) + 100", 102},
        {"0 || 1 ? M : N", 7},
        {"min(1 ? 5 : 6, 0 ? 7 : 8)", 5},
        {"-1 ? 1 : 0", 1},
    };
    CHECK_ALL(cases);
}

TEST(expr_evaluates_only_what_it_must) {
    static const struct {
        const char *text;
        int64_t value;
        int calls;
    } cases[] = {
        {"0 && nobody", 0, 0},    {"M == 8 && nobody", 0, 1},
        {"3 || nobody", 1, 0},    {"0 && 1 / 0 || M", 1, 1},
        {"1 ? M : nobody", 7, 1}, {"0 ? nobody : N", 1000, 1},
        {"1 ? 5 : 1 / 0", 5, 0},  {"0 && nobody && nobody", 0, 0},
        {"5 && 6", 1, 0},         {"0 || 0 || 7", 1, 0},
        {"!(1 || nobody)", 0, 0}, {"0 ? nobody : 0 ? nobody : 4", 4, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        world w = {0};
        kg_error err = {0};
        int64_t v = -99;
        CHECK_OK(eval_with(&w, cases[i].text, &v, &err), err);
        if (v != cases[i].value || w.calls != cases[i].calls)
            FAIL("%s is %" PRId64 " after %d calls, not %" PRId64 " after %d", cases[i].text, v,
                 w.calls, cases[i].value, cases[i].calls);
    }
}

typedef struct refusal {
    const char *text;
    int code;
    size_t column;
    const char *part;
} refusal;

static void check_refusals(const refusal *cases, size_t n) {
    for (size_t i = 0; i < n; i++) {
        world w = {0};
        kg_error err = {0};
        int64_t v = -99;
        int status = eval_with(&w, cases[i].text, &v, &err);
        char want[200];
        snprintf(want, sizeof want, "expression \"%s\", column %zu: ", cases[i].text,
                 cases[i].column);
        if (status != cases[i].code || strncmp(err.msg, want, strlen(want)) != 0 ||
            !strstr(err.msg, cases[i].part))
            FAIL("%s gave %s: %s\nwanted %s: %s... %s", cases[i].text, kg_status_name(status),
                 err.msg, kg_status_name(cases[i].code), want, cases[i].part);
        CHECK_INT(v, -99);
        CHECK_INT(err.code, status);
    }
}

#define CHECK_REFUSALS(cases) check_refusals((cases), sizeof(cases) / sizeof *(cases))

TEST(expr_overflow_at_the_edges) {
    static const value_of fits[] = {
        {"9223372036854775807", INT64_MAX},
        {"-9223372036854775808", INT64_MIN},
        {"- 9223372036854775808", INT64_MIN},
        {"9223372036854775806 + 1", INT64_MAX},
        {"-9223372036854775807 - 1", INT64_MIN},
        {"4611686018427387904 * -2", INT64_MIN},
        {"-9223372036854775808 / 1", INT64_MIN},
        {"abs(-9223372036854775807)", INT64_MAX},
        {"align_up(9223372036854775806, 2)", INT64_MAX - 1},
        {"align_up(-9223372036854775808, 4096)", INT64_MIN},
        {"ceil_div(9223372036854775807, 2)", INT64_C(4611686018427387904)},
        {"-9223372036854775808 < 9223372036854775807", 1},
    };
    CHECK_ALL(fits);
    static const refusal cases[] = {
        {"9223372036854775808", KG_EOVERFLOW, 1, "does not fit 64 bits"},
        {"-9223372036854775809", KG_EOVERFLOW, 2, "does not fit"},
        {"99999999999999999999999", KG_EOVERFLOW, 1, "does not fit"},
        {"(-9223372036854775808) * -1", KG_EOVERFLOW, 24, "* -1 does not fit"},
        {"9223372036854775807 + 1", KG_EOVERFLOW, 21, "9223372036854775807 + 1 does not fit"},
        {"-9223372036854775808 - 1", KG_EOVERFLOW, 22, "does not fit"},
        {"0 - -9223372036854775808", KG_EOVERFLOW, 3, "does not fit"},
        {"--9223372036854775808", KG_EOVERFLOW, 1, "does not fit"},
        {"3037000500 * 3037000500", KG_EOVERFLOW, 12, "3037000500 * 3037000500"},
        {"-9223372036854775808 / -1", KG_EOVERFLOW, 22, "does not fit"},
        {"abs(-9223372036854775808)", KG_EOVERFLOW, 1, "does not fit"},
        {"ceil_div(-9223372036854775808, -1)", KG_EOVERFLOW, 1, "does not fit"},
        {"align_up(9223372036854775807, 2)", KG_EOVERFLOW, 1, "does not fit"},
    };
    CHECK_REFUSALS(cases);
}

TEST(expr_values_that_are_refused) {
    static const refusal cases[] = {
        {"M / 0", KG_EINVAL, 3, "division by zero"},
        {"M % (7 - M)", KG_EINVAL, 3, "remainder of a division by zero"},
        {"ceil_div(1, 0)", KG_EINVAL, 1, "division by zero"},
        {"1 + align_up(1, 0)", KG_EINVAL, 5, "must be positive"},
        {"align_up(1, -4)", KG_EINVAL, 1, "must be positive"},
        {"log2_ceil(0)", KG_EINVAL, 1, "at least 1"},
        {"log2_ceil(-8)", KG_EINVAL, 1, "at least 1"},
        {"2 * Q", KG_ENOTFOUND, 5, "'Q' is no dim"},
        {"1 + x.size(7)", KG_EINVAL, 5, "x.size with 1 arguments: out of range"},
        {"1 && Q", KG_ENOTFOUND, 6, "'Q' is no dim"},
    };
    CHECK_REFUSALS(cases);
}

TEST(expr_texts_that_are_refused) {
    static const refusal cases[] = {
        {"", KG_EFORMAT, 1, "it is empty"},
        {"   ", KG_EFORMAT, 1, "it is empty"},
        {"M // 4", KG_EFORMAT, 4, "there is no operator '//'"},
        {"M ** 2", KG_EFORMAT, 4, "there is no operator '**'"},
        {"M << 2", KG_EFORMAT, 4, "there is no operator '<<'"},
        {"M >> 2", KG_EFORMAT, 4, "there is no operator '>>'"},
        {"M = 4", KG_EFORMAT, 3, "write '=='"},
        {"M & 4", KG_EFORMAT, 3, "write '&&'"},
        {"M | 4", KG_EFORMAT, 3, "write '||'"},
        {"M ^ 4", KG_EFORMAT, 3, "'^' is no part"},
        {"M and N", KG_EFORMAT, 3, "expected an operator, found 'and'"},
        {"1 +", KG_EFORMAT, 4, "but the expression ends"},
        {"* 2", KG_EFORMAT, 1, "expected a number, a name or '(', found '*'"},
        {"(1 + 2", KG_EFORMAT, 7, "expected an operator or ')'"},
        {"1 + 2)", KG_EFORMAT, 6, "expected an operator, found ')'"},
        {"1 ? 2", KG_EFORMAT, 6, "':' of '?'"},
        {"1 : 2", KG_EFORMAT, 3, "found ':'"},
        {"12abc", KG_EFORMAT, 1, "'12abc' is no decimal integer"},
        {"0x10", KG_EFORMAT, 1, "'0x10' is no decimal integer"},
        {"007", KG_EFORMAT, 1, "'007' is no decimal integer"},
        {"1.5", KG_EFORMAT, 1, "'1.5' is no decimal integer"},
        {"1e3", KG_EFORMAT, 1, "'1e3' is no decimal integer"},
        {"1 < 2 < 3", KG_EFORMAT, 7, "comparisons do not chain"},
        {"1 == 1 == 1", KG_EFORMAT, 8, "comparisons do not chain"},
        {"floor(2)", KG_EFORMAT, 1, "unknown function 'floor'"},
        {"min(1)", KG_EFORMAT, 1, "at least 2 arguments, not 1"},
        {"min()", KG_EFORMAT, 1, "at least 2 arguments, not 0"},
        {"abs(1, 2)", KG_EFORMAT, 1, "abs takes 1 argument, not 2"},
        {"ceil_div(1)", KG_EFORMAT, 1, "ceil_div takes 2 arguments, not 1"},
        {"min(1, )", KG_EFORMAT, 8, "expected a number"},
        {"min(1 2)", KG_EFORMAT, 7, "',' or ')'"},
        {"align(M + 1)", KG_EFORMAT, 9, "nothing more"},
        {"align(3)", KG_EFORMAT, 7, "takes the name of one argument"},
        {"x.", KG_EFORMAT, 3, "a field such as ndim"},
        {"x.1", KG_EFORMAT, 3, "a field such as ndim"},
        {"x.a.b", KG_EFORMAT, 4, "found '.'"},
        {"p[0][1]", KG_EFORMAT, 5, "found '['"},
        {"p[", KG_EFORMAT, 3, "expected a number"},
        {"p[1", KG_EFORMAT, 4, "']'"},
        {"3[0]", KG_EFORMAT, 2, "found '['"},
        {"x.f(1,2,3,4,5,6,7,8,9)", KG_EFORMAT, 3, "f takes at most 8 arguments"},
        {"M @ 1", KG_EFORMAT, 3, "'@' is no part of an expression"},
        {"M \xC3\xA9", KG_EFORMAT, 3, "byte 0xc3 is no part"},
    };
    CHECK_REFUSALS(cases);
}

/* depth copies of open, "1", depth copies of close. */
static int nested(const char *open, const char *close, size_t depth, int64_t *out, kg_error *err) {
    kg_buf b;
    world w = {0};
    kg_buf_init(&b, 0);
    for (size_t i = 0; i < depth; i++)
        kg_buf_puts(&b, open);
    kg_buf_puts(&b, "1");
    for (size_t i = 0; i < depth; i++)
        kg_buf_puts(&b, close);
    int status = eval_with(&w, b.data, out, err);
    kg_buf_free(&b);
    return status;
}

TEST(expr_depth_is_bounded) {
    kg_error err = {0};
    int64_t v = 0;
    CHECK_OK(nested("(", ")", 63, &v, &err), err);
    CHECK_ERR(nested("(", ")", 64, &v, &err), err, KG_EFORMAT, "nested deeper than 64");
    CHECK_OK(nested("!", "", 63, &v, &err), err);
    CHECK_ERR(nested("!", "", 64, &v, &err), err, KG_EFORMAT, "nested deeper than 64");
    CHECK_ERR(nested("abs(", ")", 500, &v, &err), err, KG_EFORMAT, "nested deeper than 64");
    CHECK_ERR(nested("p[", "]", 1000, &v, &err), err, KG_EFORMAT, "nested deeper than 64");
    CHECK_ERR(nested("1?", ":0", 800, &v, &err), err, KG_EFORMAT, "nested deeper than 64");
    CHECK_OK(nested("0 ? 5 : ", "", 500, &v, &err), err);
    CHECK_INT(v, 1);
    CHECK_OK(nested("1 + ", "", 1000, &v, &err), err);
    CHECK_INT(v, 1001);
}

TEST(expr_pending_operands_are_bounded) {
    kg_error err = {0};
    int64_t v = 0;
    CHECK_OK(nested("0 == 1 < 1 + 1 * (", ")", 63, &v, &err), err);
    CHECK_ERR(nested("x.f(1,2,3,4,5,6,7,1==1<1+1*", ")", 60, &v, &err), err, KG_EFORMAT,
              "too many operands wait");
}

TEST(expr_length_is_bounded) {
    char text[4098];
    kg_error err = {0};
    world w = {0};
    int64_t v;
    memset(text, ' ', sizeof text);
    text[0] = '7';
    text[4096] = '\0';
    CHECK_OK(eval_with(&w, text, &v, &err), err);
    CHECK_INT(v, 7);
    text[4096] = ' ';
    text[4097] = '\0';
    CHECK_ERR(eval_with(&w, text, &v, &err), err, KG_EFORMAT, "4097 bytes: the limit is 4096");
    memset(text, 'a', 4096);
    text[4096] = '\0';
    CHECK_ERR(eval_with(&w, text, &v, &err), err, KG_ENOTFOUND, "column 1");
}

TEST(expr_long_texts_show_the_place) {
    char text[1001];
    kg_error err = {0};
    world w = {0};
    int64_t v;
    for (size_t i = 0; i < 1000; i += 4)
        memcpy(text + i, "M + ", 4);
    text[1000] = '\0';
    memcpy(text + 500, "Q", 1);
    CHECK_ERR(eval_with(&w, text, &v, &err), err, KG_EFORMAT, "column 1001");
    memcpy(text + 996, "M   ", 4);
    CHECK_ERR(eval_with(&w, text, &v, &err), err, KG_ENOTFOUND, "M + Q + M");
    CHECK_HAS(err.msg, "expression \"...");
    CHECK_HAS(err.msg, "...\", column 501: 'Q' is no dim");
}

TEST(expr_resolver_may_fail_without_words) {
    kg_error err = {0};
    world w = {.fail_silently = true};
    int64_t v = -99;
    CHECK_ERR(eval_with(&w, "1 + M", &v, &err), err, KG_EIO, "column 5: 'M': input or output");
    kg_expr *e;
    CHECK_OK(kg_expr_parse("M", &e, &err), err);
    CHECK_ERR(kg_expr_eval(e, NULL, NULL, &v, &err), err, KG_ENOTFOUND, "'M' is unknown here");
    CHECK_INT(kg_expr_eval(e, resolve, &w, &v, NULL), KG_EIO);
    CHECK_INT(v, -99);
    kg_expr_free(e);
    kg_expr_free(NULL);
    CHECK_INT(kg_expr_parse("1 +", &e, NULL), KG_EFORMAT);
}

static int list(void *ctx, const kg_ref *r, kg_error *err) {
    static const char *const kinds[] = {"name", "field", "method", "index", "call"};
    if (strcmp(r->name, "stop") == 0)
        return kg_fail(err, KG_ENOTFOUND, "told to stop");
    CHECK(r->args == NULL);
    kg_buf_printf(ctx, "%s %s%s%s/%zu ", kinds[r->kind], r->object ? r->object : "",
                  r->object ? "." : "", r->name, r->nargs);
    return KG_OK;
}

TEST(expr_visits_in_the_order_of_the_text) {
    kg_error err = {0};
    kg_expr *e;
    kg_buf seen;
    kg_buf_init(&seen, 0);
    const char *text = "0 && A ? x.size(B + p[C]) : align(y) * z.ndim + min(D, x.f())";
    CHECK_OK(kg_expr_parse(text, &e, &err), err);
    CHECK_STR(kg_expr_text(e), text);
    CHECK_OK(kg_expr_visit(e, list, &seen, &err), err);
    CHECK_STR(seen.data, "name A/0 method x.size/1 name B/0 index p/1 name C/0 call y.align/0 "
                         "field z.ndim/0 name D/0 method x.f/0 ");
    kg_expr_free(e);
    CHECK_OK(kg_expr_parse("A + stop", &e, &err), err);
    CHECK_ERR(kg_expr_visit(e, list, &seen, &err), err, KG_ENOTFOUND, "column 5: told to stop");
    kg_expr_free(e);
    kg_buf_free(&seen);
}

/* Random formulas against an evaluation of the same tree by C on 128 bits, so that overflow is
 * known. */
__extension__ typedef __int128 wide;

typedef struct grown {
    wide value;
    bool defined;
} grown;

static uint64_t seed = 88172645463325252u;

static unsigned roll(unsigned n) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (unsigned)(seed % n);
}

static wide floor_of(wide a, wide b) {
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

static grown grow(kg_buf *b, int depth) {
    static const int64_t leaves[] = {0, 1, 2, 3, 7, 100, INT64_MAX, INT64_C(3037000499), 1 << 20};
    if (depth == 0 || roll(5) == 0) {
        int64_t v = leaves[roll(sizeof leaves / sizeof *leaves)];
        kg_buf_printf(b, "%" PRId64, v);
        return (grown){v, true};
    }
    static const char *const ops[] = {"+", "-", "*", "/", "%", "<", "==", "&&", "||", "?"};
    unsigned op = roll(10);
    kg_buf_puts(b, "(");
    grown x = grow(b, depth - 1), z = {0};
    kg_buf_printf(b, " %s ", ops[op]);
    grown y = grow(b, depth - 1);
    if (op == 9) {
        kg_buf_puts(b, " : ");
        z = grow(b, depth - 1);
    }
    kg_buf_puts(b, ")");
    if (!x.defined)
        return x;
    if (op == 7 || op == 8)
        return (x.value != 0) == (op == 8) ? (grown){op == 8, true}
                                           : (grown){y.value != 0, y.defined};
    if (op == 9)
        return x.value ? y : z;
    if (!y.defined || ((op == 3 || op == 4) && y.value == 0))
        return (grown){0, false};
    wide q = op == 3 || op == 4 ? floor_of(x.value, y.value) : 0;
    wide v = op == 0   ? x.value + y.value
             : op == 1 ? x.value - y.value
             : op == 2 ? x.value * y.value
             : op == 3 ? q
             : op == 4 ? x.value - q * y.value
             : op == 5 ? x.value < y.value
                       : x.value == y.value;
    return (grown){v, v >= INT64_MIN && v <= INT64_MAX};
}

TEST(expr_agrees_with_wider_arithmetic) {
    int defined = 0;
    for (int i = 0; i < 5000; i++) {
        kg_buf b;
        kg_buf_init(&b, 0);
        grown want = grow(&b, 5);
        world w = {0};
        kg_error err = {0};
        int64_t v = 0;
        int status = b.len > 4096 ? KG_EFORMAT : eval_with(&w, b.data, &v, &err);
        if (b.len <= 4096 &&
            (want.defined != (status == KG_OK) || (want.defined && v != (int64_t)want.value)))
            FAIL("%s is %" PRId64 " (%s), not %" PRId64 " (%s)", b.data, v, kg_status_name(status),
                 (int64_t)want.value, want.defined ? "defined" : "undefined");
        defined += want.defined;
        kg_buf_free(&b);
    }
    CHECK(defined > 500 && defined < 4900);
}

/* Any bytes: an answer or an error, never a fault. */
TEST(expr_survives_any_text) {
    static const char *const parts[] = {"M",    "x",
                                        ".",    "(",
                                        ")",    "[",
                                        "]",    ",",
                                        "?",    ":",
                                        "-",    "!",
                                        "+",    "*",
                                        "/",    "%",
                                        "<",    "=",
                                        "==",   "&&",
                                        "||",   "min",
                                        "1",    "align",
                                        " ",    "9223372036854775808",
                                        "\x80", "\x01"};
    for (int i = 0; i < 20000; i++) {
        char text[400] = "";
        size_t n = 0, tokens = roll(24);
        for (size_t k = 0; k < tokens; k++) {
            const char *part = parts[roll(sizeof parts / sizeof *parts)];
            n += (size_t)snprintf(text + n, sizeof text - n, "%s", part);
        }
        world w = {0};
        kg_error err = {0};
        int64_t v;
        int status = eval_with(&w, text, &v, &err);
        CHECK(status == KG_OK || (status == err.code && strncmp(err.msg, "expression", 10) == 0));
    }
}
