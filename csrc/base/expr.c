/* Parses the expressions of plans and contracts into postfix code that is never written again, so
 * that evaluation allocates nothing, does not recurse and may run in any thread. Refuses to
 * wrap, to guess at operators of other languages, and texts that could exhaust the stack. */
#include "base/expr_code.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Contracts are written by people: more is an attack or a mistake. */
#define TEXT_MAX 4096
#define DEPTH_MAX 64
/* Operands pending at once; DEPTH_MAX nested parentheses of ordinary formulas need a third of it.
 */
#define KG_EXPR_STACK_MAX 512
#define METHOD_ARGS_MAX 8

typedef enum token_kind { T_END, T_INT, T_NAME, T_PUNCT } token_kind;

typedef struct token {
    token_kind kind;
    size_t at, len; /* in the text */
    uint64_t value; /* of T_INT; at most 2^63 */
} token;

typedef struct parser {
    kg_expr *e;
    kg_error *err;
    token tok;
    size_t pos, names_len, code_cap, refs_cap;
    size_t depth, stack;
} parser;

#define EXCERPT_MAX 120
#define EXCERPT_SIDE 50

/* Shows the text, or of a long one what lies around the column. */
static void excerpt(const char *text, size_t column, char out[EXCERPT_MAX + 8]) {
    size_t len = strlen(text), from = 0, to = len, n = 0;
    if (len > EXCERPT_MAX) {
        from = column > EXCERPT_SIDE ? column - EXCERPT_SIDE : 0;
        to = from + 2 * EXCERPT_SIDE < len ? from + 2 * EXCERPT_SIDE : len;
    }
    if (from > 0) {
        memcpy(out, "...", 3);
        n = 3;
    }
    for (size_t i = from; i < to; i++) {
        unsigned char c = (unsigned char)text[i];
        out[n++] = c < 0x20 || c == 0x7F ? ' ' : (char)c;
    }
    if (to < len) {
        memcpy(out + n, "...", 3);
        n += 3;
    }
    out[n] = '\0';
}

int kg_expr_locate(const char *text, size_t column, int code, kg_error *err) {
    char shown[EXCERPT_MAX + 8];
    excerpt(text, column, shown);
    return kg_fail_prefix(err, code, "expression \"%s\", column %zu", shown, column);
}

#define FAIL_AT(p, at, code, ...)                                                                  \
    (kg_fail((p)->err, (code), __VA_ARGS__),                                                       \
     kg_expr_locate((p)->e->text, (at) + 1, (code), (p)->err))

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static bool is_name_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || is_digit(c);
}

static int lex_int(parser *p) {
    const char *s = p->e->text + p->pos;
    size_t n = 0;
    while (is_name_char(s[n]) || (s[n] == '.' && is_digit(s[n + 1])))
        n++;
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++) {
        if (!is_digit(s[i]) || (i == 1 && s[0] == '0'))
            return FAIL_AT(p, p->pos, KG_EFORMAT, "'%.*s' is no decimal integer",
                           n > 40 ? 40 : (int)n, s);
        if (__builtin_mul_overflow(v, 10, &v) ||
            __builtin_add_overflow(v, (uint64_t)(s[i] - '0'), &v) || v > (uint64_t)INT64_MAX + 1)
            return FAIL_AT(p, p->pos, KG_EOVERFLOW, "%.*s does not fit 64 bits",
                           n > 40 ? 40 : (int)n, s);
    }
    p->tok = (token){.kind = T_INT, .at = p->pos, .len = n, .value = v};
    p->pos += n;
    return KG_OK;
}

static int lex_punct(parser *p) {
    static const char *const pairs[] = {"&&", "||", "==", "!=", "<=", ">="};
    const char *s = p->e->text + p->pos;
    size_t n = 0;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (strncmp(s, pairs[i], 2) == 0)
            n = 2;
    if (n == 0 && strchr("+-*/%<>!?:()[],.", *s))
        n = 1;
    if (n == 0 && (*s == '=' || *s == '&' || *s == '|'))
        return FAIL_AT(p, p->pos, KG_EFORMAT, "there is no operator '%c': write '%c%c'", *s, *s,
                       *s);
    if (n == 0 && *s > ' ' && *s < 0x7F)
        return FAIL_AT(p, p->pos, KG_EFORMAT, "'%c' is no part of an expression", *s);
    if (n == 0)
        return FAIL_AT(p, p->pos, KG_EFORMAT, "byte 0x%02x is no part of an expression",
                       (unsigned)(unsigned char)*s);
    p->tok = (token){.kind = T_PUNCT, .at = p->pos, .len = n};
    p->pos += n;
    return KG_OK;
}

static int next(parser *p) {
    const char *text = p->e->text;
    while (text[p->pos] == ' ' || text[p->pos] == '\t' || text[p->pos] == '\n' ||
           text[p->pos] == '\r')
        p->pos++;
    const char *s = text + p->pos;
    if (*s == '\0') {
        p->tok = (token){.kind = T_END, .at = p->pos};
        return KG_OK;
    }
    if (is_digit(*s))
        return lex_int(p);
    if (!is_name_char(*s))
        return lex_punct(p);
    size_t n = 0;
    while (is_name_char(s[n]))
        n++;
    p->tok = (token){.kind = T_NAME, .at = p->pos, .len = n};
    p->pos += n;
    return KG_OK;
}

static bool token_is(const parser *p, const token *t, const char *what) {
    return t->len == strlen(what) && memcmp(p->e->text + t->at, what, t->len) == 0;
}

static bool at_punct(const parser *p, const char *what) {
    return p->tok.kind == T_PUNCT && token_is(p, &p->tok, what);
}

/* "expected X, found Y", or a hint where the slip is a common one. */
static int fail_expected(parser *p, const char *what) {
    const token *t = &p->tok;
    const char *s = p->e->text + t->at;
    if (t->kind == T_END)
        return FAIL_AT(p, t->at, KG_EFORMAT, "expected %s, but the expression ends", what);
    bool doubled = t->kind == T_PUNCT && t->len == 1 && t->at > 0 && s[-1] == s[0];
    if (doubled && *s == '/')
        return FAIL_AT(p, t->at, KG_EFORMAT, "there is no operator '//': '/' floors");
    if (doubled && (*s == '*' || *s == '<' || *s == '>'))
        return FAIL_AT(p, t->at, KG_EFORMAT, "there is no operator '%c%c'", *s, *s);
    return FAIL_AT(p, t->at, KG_EFORMAT, "expected %s, found '%.*s'", what,
                   t->len > 60 ? 60 : (int)t->len, s);
}

static int expect(parser *p, const char *punct, const char *what) {
    if (!at_punct(p, punct))
        return fail_expected(p, what);
    return next(p);
}

static int fail_memory(parser *p) {
    return kg_fail(p->err, KG_ENOMEM, "expression: out of memory");
}

static int emit(parser *p, kg_expr_op o, size_t at, kg_expr_ins value) {
    kg_expr *e = p->e;
    if (e->ncode == p->code_cap) {
        size_t cap = p->code_cap ? 2 * p->code_cap : 16;
        kg_expr_ins *grown = realloc(e->code, cap * sizeof *grown);
        if (!grown)
            return fail_memory(p);
        e->code = grown;
        p->code_cap = cap;
    }
    value.op = (uint8_t)o;
    value.column = (uint16_t)(at + 1);
    e->code[e->ncode++] = value;
    return KG_OK;
}

static int emit_op(parser *p, kg_expr_op o, size_t at) {
    if (o >= OP_ADD)
        p->stack--;
    return emit(p, o, at, (kg_expr_ins){.u.arg = 0});
}

static int push(parser *p, size_t at) {
    if (++p->stack > KG_EXPR_STACK_MAX)
        return FAIL_AT(p, at, KG_EFORMAT, "too many operands wait here: simplify the expression");
    return KG_OK;
}

static int enter(parser *p, size_t at) {
    if (++p->depth > DEPTH_MAX)
        return FAIL_AT(p, at, KG_EFORMAT, "nested deeper than %d", DEPTH_MAX);
    return KG_OK;
}

static const char *keep_name(parser *p, const token *t) {
    char *name = p->e->names + p->names_len;
    memcpy(name, p->e->text + t->at, t->len);
    name[t->len] = '\0';
    p->names_len += t->len + 1;
    return name;
}

/* References are entered before their arguments are parsed, so that refs is in the order of the
 * text. */
static int add_ref(parser *p, kg_expr_ref r, size_t at, size_t *index) {
    kg_expr *e = p->e;
    if (e->nrefs == p->refs_cap) {
        size_t cap = p->refs_cap ? 2 * p->refs_cap : 8;
        kg_expr_ref *grown = realloc(e->refs, cap * sizeof *grown);
        if (!grown)
            return fail_memory(p);
        e->refs = grown;
        p->refs_cap = cap;
    }
    r.column = (uint16_t)(at + 1);
    e->refs[e->nrefs] = r;
    *index = e->nrefs++;
    return KG_OK;
}

/* The arguments are on the stack; the value takes their place. */
static int emit_ref(parser *p, size_t index) {
    const kg_expr_ref *r = &p->e->refs[index];
    p->stack -= r->nargs;
    int status = push(p, r->column - 1u);
    return status < 0 ? status : emit(p, OP_REF, r->column - 1u, (kg_expr_ins){.u.arg = index});
}

static int parse_ternary(parser *p);

/* After '(': arguments up to ')'. fold, when it is an operator, joins each further one to the
 * first. */
static int parse_args(parser *p, size_t min, size_t max, kg_expr_op fold, const char *name,
                      size_t at, size_t *count) {
    size_t n = 0;
    while (!(n == 0 && at_punct(p, ")"))) {
        int status = parse_ternary(p);
        if (status == KG_OK && ++n > 1 && fold >= OP_ADD)
            status = emit_op(p, fold, at);
        if (status < 0)
            return status;
        if (n > max)
            break;
        if (!at_punct(p, ","))
            break;
        if ((status = next(p)) < 0)
            return status;
    }
    if (n > max || (n < min && at_punct(p, ")")))
        return FAIL_AT(p, at, KG_EFORMAT, "%s takes %s%zu argument%s, not %zu%s", name,
                       min == max ? ""
                       : n > max  ? "at most "
                                  : "at least ",
                       n > max ? max : min, (n > max ? max : min) == 1 ? "" : "s", n,
                       n > max ? " or more" : "");
    *count = n;
    return expect(p, ")", "',' or ')'");
}

typedef struct function {
    const char *name;
    size_t min, max;
    kg_expr_op code;
} function;

static int parse_function(parser *p, const function *f, size_t at) {
    bool folds = f->code == OP_MIN || f->code == OP_MAX;
    size_t count, stack = p->stack;
    int status = parse_args(p, f->min, f->max, folds ? f->code : OP_LIT, f->name, at, &count);
    if (status < 0 || folds)
        return status;
    status = emit_op(p, f->code, at);
    p->stack = stack + 1;
    return status;
}

/* align(x) and kin: of one bare name, which is not a value by itself. */
static int parse_name_function(parser *p, const token *fn) {
    const char *name = keep_name(p, fn);
    if (p->tok.kind != T_NAME)
        return FAIL_AT(p, p->tok.at, KG_EFORMAT, "%s takes the name of one argument", name);
    size_t index;
    kg_expr_ref r = {.kind = KG_REF_CALL, .name = name, .object = keep_name(p, &p->tok)};
    int status = add_ref(p, r, fn->at, &index);
    if (status == KG_OK)
        status = next(p);
    if (status == KG_OK && !at_punct(p, ")"))
        return FAIL_AT(p, p->tok.at, KG_EFORMAT, "%s takes the name of one argument, nothing more",
                       name);
    if (status == KG_OK)
        status = next(p);
    return status < 0 ? status : emit_ref(p, index);
}

static int parse_call(parser *p, const token *fn) {
    static const function functions[] = {
        {"min", 2, TEXT_MAX, OP_MIN},    {"max", 2, TEXT_MAX, OP_MAX},
        {"abs", 1, 1, OP_ABS},           {"ceil_div", 2, 2, OP_CEIL_DIV},
        {"align_up", 2, 2, OP_ALIGN_UP}, {"log2_ceil", 1, 1, OP_LOG2_CEIL},
    };
    static const char *const of_names[] = {"align", "numel", "present", "len"};
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (token_is(p, fn, functions[i].name))
            return parse_function(p, &functions[i], fn->at);
    for (size_t i = 0; i < sizeof of_names / sizeof *of_names; i++)
        if (token_is(p, fn, of_names[i]))
            return parse_name_function(p, fn);
    return FAIL_AT(p, fn->at, KG_EFORMAT,
                   "unknown function '%.*s': there are min, max, abs, ceil_div, align_up, "
                   "log2_ceil, align, present, len",
                   fn->len > 60 ? 60 : (int)fn->len, p->e->text + fn->at);
}

/* After "x.": a field, or a method whose name the resolver judges. */
static int parse_member(parser *p, const token *object) {
    if (p->tok.kind != T_NAME)
        return fail_expected(p, "a field such as ndim or a method such as size(0)");
    token name = p->tok;
    size_t index;
    kg_expr_ref r = {
        .kind = KG_REF_FIELD, .object = keep_name(p, object), .name = keep_name(p, &name)};
    int status = add_ref(p, r, object->at, &index);
    if (status == KG_OK)
        status = next(p);
    if (status < 0 || !at_punct(p, "("))
        return status < 0 ? status : emit_ref(p, index);
    size_t count;
    status = next(p);
    if (status == KG_OK)
        status = parse_args(p, 0, METHOD_ARGS_MAX, OP_LIT, r.name, name.at, &count);
    if (status < 0)
        return status;
    p->e->refs[index].kind = KG_REF_METHOD;
    p->e->refs[index].nargs = count;
    return emit_ref(p, index);
}

static int parse_index(parser *p, const token *list) {
    size_t index;
    kg_expr_ref r = {.kind = KG_REF_INDEX, .name = keep_name(p, list), .nargs = 1};
    int status = add_ref(p, r, list->at, &index);
    if (status == KG_OK)
        status = parse_ternary(p);
    if (status == KG_OK)
        status = expect(p, "]", "']'");
    return status < 0 ? status : emit_ref(p, index);
}

static int parse_name(parser *p) {
    token name = p->tok;
    int status = next(p);
    if (status < 0)
        return status;
    static const char *const openers[] = {"(", ".", "["};
    int (*const parsers[])(parser *, const token *) = {parse_call, parse_member, parse_index};
    for (size_t i = 0; i < 3; i++) {
        if (!at_punct(p, openers[i]))
            continue;
        status = next(p);
        return status < 0 ? status : parsers[i](p, &name);
    }
    size_t index;
    status = add_ref(p, (kg_expr_ref){.kind = KG_REF_NAME, .name = keep_name(p, &name)}, name.at,
                     &index);
    return status < 0 ? status : emit_ref(p, index);
}

static int parse_int(parser *p, size_t at, bool negative) {
    uint64_t v = p->tok.value;
    if (v > (uint64_t)INT64_MAX && !negative)
        return FAIL_AT(p, p->tok.at, KG_EOVERFLOW, "%.*s does not fit 64 bits", (int)p->tok.len,
                       p->e->text + p->tok.at);
    int64_t value = v > (uint64_t)INT64_MAX ? INT64_MIN : negative ? -(int64_t)v : (int64_t)v;
    int status = push(p, at);
    if (status == KG_OK)
        status = emit(p, OP_LIT, at, (kg_expr_ins){.u.value = value});
    return status < 0 ? status : next(p);
}

static int parse_primary(parser *p) {
    if (p->tok.kind == T_INT)
        return parse_int(p, p->tok.at, false);
    if (p->tok.kind == T_NAME)
        return parse_name(p);
    if (!at_punct(p, "("))
        return fail_expected(p, "a number, a name or '('");
    int status = next(p);
    if (status == KG_OK)
        status = parse_ternary(p);
    return status < 0 ? status : expect(p, ")", "an operator or ')'");
}

static int parse_unary(parser *p) {
    size_t at = p->tok.at;
    bool minus = at_punct(p, "-");
    if (!minus && !at_punct(p, "!"))
        return parse_primary(p);
    int status = enter(p, at);
    if (status == KG_OK)
        status = next(p);
    if (status < 0)
        return status;
    bool literal = minus && p->tok.kind == T_INT;
    status = literal ? parse_int(p, at, true) : parse_unary(p);
    if (status == KG_OK && !literal)
        status = emit_op(p, minus ? OP_NEG : OP_NOT, at);
    p->depth--;
    return status;
}

typedef struct binary {
    const char *text;
    int level;
    kg_expr_op code;
} binary;

enum { LEVEL_EQUALITY = 3, LEVEL_ORDER = 4 };

static const binary *binary_at(const parser *p) {
    static const binary table[] = {
        {"||", 1, OP_OR},
        {"&&", 2, OP_AND},
        {"==", LEVEL_EQUALITY, OP_EQ},
        {"!=", LEVEL_EQUALITY, OP_NE},
        {"<", LEVEL_ORDER, OP_LT},
        {"<=", LEVEL_ORDER, OP_LE},
        {">", LEVEL_ORDER, OP_GT},
        {">=", LEVEL_ORDER, OP_GE},
        {"+", 5, OP_ADD},
        {"-", 5, OP_SUB},
        {"*", 6, OP_MUL},
        {"/", 6, OP_DIV},
        {"%", 6, OP_MOD},
    };
    for (size_t i = 0; p->tok.kind == T_PUNCT && i < sizeof table / sizeof *table; i++)
        if (token_is(p, &p->tok, table[i].text))
            return &table[i];
    return NULL;
}

static int parse_binary(parser *p, int min_level);

static int parse_right(parser *p, const binary *b, size_t at) {
    bool jumps = b->code == OP_AND || b->code == OP_OR;
    size_t jump = p->e->ncode;
    int status = jumps ? emit_op(p, b->code, at) : KG_OK;
    if (jumps)
        p->stack--;
    if (status == KG_OK)
        status = parse_binary(p, b->level + 1);
    if (status == KG_OK)
        status = emit_op(p, jumps ? OP_BOOL : b->code, at);
    if (status == KG_OK && jumps)
        p->e->code[jump].u.arg = p->e->ncode;
    return status;
}

/* a < b < c means something else in every language: refused rather than guessed. */
static int parse_binary(parser *p, int min_level) {
    int status = parse_unary(p), last = 0;
    const binary *b;
    while (status == KG_OK && (b = binary_at(p)) && b->level >= min_level) {
        size_t at = p->tok.at;
        if (b->level == last && (last == LEVEL_EQUALITY || last == LEVEL_ORDER))
            return FAIL_AT(p, at, KG_EFORMAT, "comparisons do not chain: join two with '&&'");
        last = b->level;
        status = next(p);
        if (status == KG_OK)
            status = parse_right(p, b, at);
    }
    return status;
}

/* c ? a : d ? b : ... is a loop: the jumps to the end are chained through their own targets. */
static int parse_branches(parser *p) {
    size_t chain = SIZE_MAX;
    int status;
    while ((status = parse_binary(p, 1)) == KG_OK && at_punct(p, "?")) {
        size_t at = p->tok.at, test = p->e->ncode;
        p->stack--;
        if ((status = emit(p, OP_JUMP_IF_ZERO, at, (kg_expr_ins){.u.arg = 0})) < 0 ||
            (status = next(p)) < 0 || (status = parse_ternary(p)) < 0)
            return status;
        if (!at_punct(p, ":"))
            return fail_expected(p, "an operator or the ':' of '?'");
        p->stack--;
        if ((status = emit(p, OP_JUMP, p->tok.at, (kg_expr_ins){.u.arg = chain})) < 0 ||
            (status = next(p)) < 0)
            return status;
        chain = p->e->ncode - 1;
        p->e->code[test].u.arg = p->e->ncode;
    }
    while (status == KG_OK && chain != SIZE_MAX) {
        size_t before = p->e->code[chain].u.arg;
        p->e->code[chain].u.arg = p->e->ncode;
        chain = before;
    }
    return status;
}

static int parse_ternary(parser *p) {
    int status = enter(p, p->tok.at);
    if (status == KG_OK)
        status = parse_branches(p);
    p->depth--;
    return status;
}

int kg_expr_parse(const char *text, kg_expr **out, kg_error *err) {
    size_t len = text ? strlen(text) : 0;
    if (len > TEXT_MAX)
        return kg_fail(err, KG_EFORMAT, "expression of %zu bytes: the limit is %d", len, TEXT_MAX);
    kg_expr *e = calloc(1, sizeof *e);
    parser p = {.e = e, .err = err};
    if (e && (e->text = malloc(len + 1)) && (e->names = malloc(2 * len + 2))) {
        memcpy(e->text, text ? text : "", len + 1);
    } else {
        kg_expr_free(e);
        return fail_memory(&p);
    }
    int status = next(&p);
    if (status == KG_OK && p.tok.kind == T_END)
        status = FAIL_AT(&p, 0, KG_EFORMAT, "it is empty");
    if (status == KG_OK)
        status = parse_ternary(&p);
    if (status == KG_OK && p.tok.kind != T_END)
        status = fail_expected(&p, "an operator");
    if (status < 0)
        kg_expr_free(e);
    else
        *out = e;
    return status;
}

void kg_expr_free(kg_expr *e) {
    if (!e)
        return;
    free(e->text);
    free(e->names);
    free(e->code);
    free(e->refs);
    free(e);
}

const char *kg_expr_text(const kg_expr *e) {
    return e->text;
}

int kg_expr_visit(const kg_expr *e, kg_visit visit, void *ctx, kg_error *err) {
    for (size_t i = 0; i < e->nrefs; i++) {
        const kg_expr_ref *r = &e->refs[i];
        kg_ref asked = {.kind = r->kind, .object = r->object, .name = r->name, .nargs = r->nargs};
        kg_error inner = {0};
        int status = visit(ctx, &asked, &inner);
        if (status < 0) {
            kg_fail(err, status, "%s", inner.code ? inner.msg : kg_status_text(status));
            return kg_expr_locate(e->text, r->column, status, err);
        }
    }
    return KG_OK;
}
