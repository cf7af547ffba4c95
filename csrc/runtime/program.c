/* Reads a Program's text and holds it to its canonical form, so that equal functions have equal
 * hashes and what comes after (lowering, evaluation) meets nothing but well-typed SSA. It repairs
 * nothing: text that is not canonical is an error that names the line and what would be right. */
#include "runtime/program_ir.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "runtime/op.h"

static const struct {
    const char *name;
    kg_pclass cls;
    uint8_t nargs, types;
} OPS[KG_POP_COUNT] = {
#define KG_X(NAME, text, cls, n, types) {text, KG_PC_##cls, n, types},
    KG_POPS(KG_X)
#undef KG_X
};

static const char *const TYPES[] = {"float32", "int32", "bool"};

const char *kg_ptype_name(int type) {
    return type >= 0 && type < 3 ? TYPES[type] : "nothing";
}

const char *kg_pop_name(int op) {
    return op >= 0 && op < KG_POP_COUNT ? OPS[op].name : "nothing";
}

kg_ptype kg_ptype_of_load(int dtype) {
    switch (dtype) {
    case KG_F32:
    case KG_F64:
    case KG_F16:
    case KG_BF16:
        return KG_PT_F32;
    case KG_BOOL:
        return KG_PT_BOOL;
    default:
        return KG_PT_I32;
    }
}

/* A piece of the line at hand; shown in errors by `%.*s` after `show` cut and cleaned it. */
typedef struct token {
    const char *s;
    size_t n;
} token;

typedef struct parser {
    kg_program *p;
    const char *at, *end; /* what is left of the text */
    const char *line;     /* the rest of the line at hand */
    size_t left;
    size_t number; /* of the line, from 1 */
    bool done;     /* no line is left */
    size_t tensors_used, scalars_used;
    char shown[48];
    kg_error *err;
} parser;

static const char *show(parser *ps, token t) {
    size_t n = t.n < 40 ? t.n : 40;
    for (size_t i = 0; i < n; i++)
        ps->shown[i] = t.s[i] > ' ' && t.s[i] < 127 ? t.s[i] : '?';
    ps->shown[n] = '\0';
    return n > 0 ? ps->shown : "the end of the line";
}

static bool is(token t, const char *word) {
    return strlen(word) == t.n && memcmp(t.s, word, t.n) == 0;
}

#define FAIL(ps, ...) kg_fail_line(ps, kg_fail((ps)->err, KG_EFORMAT, __VA_ARGS__))

static int kg_fail_line(parser *ps, int code) {
    return kg_fail_prefix(ps->err, code, "program, line %zu", ps->number);
}

/* Goes to the next line; `done` when there is none. */
static int next_line(parser *ps) {
    ps->number++;
    ps->line = ps->at;
    ps->left = 0;
    if (ps->at == ps->end) {
        ps->done = true;
        return KG_OK;
    }
    const char *nl = memchr(ps->at, '\n', (size_t)(ps->end - ps->at));
    if (nl == NULL)
        return FAIL(ps, "the last line must end with a newline");
    ps->left = (size_t)(nl - ps->at);
    ps->at = nl + 1;
    return KG_OK;
}

/* The next word of the line; words are parted by exactly one space. Empty at the line's end. */
static token next_word(parser *ps) {
    token t = {ps->line, 0};
    while (t.n < ps->left && ps->line[t.n] != ' ')
        t.n++;
    size_t step = t.n < ps->left ? t.n + 1 : t.n;
    ps->line += step;
    ps->left -= step;
    return t;
}

static int end_of_line(parser *ps) {
    token rest = {ps->line, ps->left};
    if (ps->left > 0 || (ps->line > ps->p->text && ps->line[-1] == ' '))
        return FAIL(ps, "found '%s' where the line must end", show(ps, rest));
    return KG_OK;
}

/* A decimal without sign or leading zero, at most max. */
static bool parse_index(const char *s, size_t n, size_t max, size_t *out) {
    size_t v = 0;
    if (n == 0 || n > 5 || (s[0] == '0' && n > 1))
        return false;
    for (size_t i = 0; i < n; i++) {
        if (s[i] < '0' || s[i] > '9')
            return false;
        v = v * 10 + (size_t)(s[i] - '0');
    }
    *out = v;
    return v <= max;
}

static int parse_type(parser *ps, token t, uint8_t *out) {
    for (uint8_t i = 0; i < 3; i++)
        if (is(t, TYPES[i])) {
            *out = i;
            return KG_OK;
        }
    return FAIL(ps, "expected a type (float32, int32 or bool), found '%s'", show(ps, t));
}

/* The fewest significant digits, at most 9, that read back the same, and the exponent of the first.
 */
static int shortest_digits(float v, char digits[16], int *exponent) {
    char text[32];
    int n = 0;
    for (int p = 0; p < 9; p++) {
        snprintf(text, sizeof text, "%.*e", p, (double)v);
        if ((float)strtod(text, NULL) == v)
            break;
    }
    char *e = strchr(text, 'e');
    *exponent = e != NULL ? (int)strtol(e + 1, NULL, 10) : 0;
    for (const char *c = text; c < e; c++)
        if (*c >= '0' && *c <= '9')
            digits[n++] = *c;
    return n;
}

/* Python's spelling of that decimal: 20.0, 0.0625, 1e-05, 1.5e+16; inf, -inf, nan. */
static void shortest_f32(float v, char out[32]) {
    char digits[16];
    int exponent = 0, n = 0, at = 0;
    if (!isfinite(v)) {
        snprintf(out, 32, "%s", isnan(v) ? "nan" : v < 0 ? "-inf" : "inf");
        return;
    }
    n = shortest_digits(v, digits, &exponent);
    if (signbit(v))
        out[at++] = '-';
    if (exponent < -4 || exponent >= 16) {
        out[at++] = digits[0];
        if (n > 1)
            out[at++] = '.';
        for (int i = 1; i < n; i++)
            out[at++] = digits[i];
        snprintf(out + at, (size_t)(32 - at), "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
        return;
    }
    int last = exponent - n + 1 < -1 ? exponent - n + 1 : -1;
    for (int w = exponent > 0 ? exponent : 0; w >= last; w--) {
        int i = exponent - w;
        if (w == -1)
            out[at++] = '.';
        out[at++] = i >= 0 && i < n ? digits[i] : '0';
    }
    out[at] = '\0';
}

static int parse_float(parser *ps, token t, kg_poperand *out) {
    char text[32], canonical[32], *stop = NULL;
    if (t.n >= sizeof text)
        return FAIL(ps, "'%s' is no operand", show(ps, t));
    memcpy(text, t.s, t.n);
    text[t.n] = '\0';
    bool hex = strpbrk(text, "xX") != NULL;
    float v = (float)strtod(text, &stop);
    if (hex || stop == text || *stop != '\0' || strlen(text) != t.n)
        return FAIL(ps, "'%s' is no operand", show(ps, t));
    shortest_f32(v, canonical);
    if (strcmp(text, canonical) != 0)
        return FAIL(ps, "the float32 literal '%s' must be written '%s'", text, canonical);
    *out = (kg_poperand){.kind = KG_PK_LITERAL, .type = KG_PT_F32, .literal.f = v};
    return KG_OK;
}

static int parse_int(parser *ps, token t, kg_poperand *out) {
    bool minus = t.s[0] == '-';
    size_t digits = t.n - (minus ? 1 : 0);
    int64_t v = 0;
    for (size_t i = minus ? 1 : 0; i < t.n && digits <= 10; i++)
        v = v * 10 + (t.s[i] - '0');
    v = minus ? -v : v;
    if (digits > 10 || v < INT32_MIN || v > INT32_MAX)
        return FAIL(ps, "the int32 literal '%s' is out of range", show(ps, t));
    if ((t.s[minus] == '0' && digits > 1) || (minus && v == 0))
        return FAIL(ps, "the int32 literal '%s' must be written '%d'", show(ps, t), (int)v);
    *out = (kg_poperand){.kind = KG_PK_LITERAL, .type = KG_PT_I32, .literal.i = (int32_t)v};
    return KG_OK;
}

static bool looks_int(token t) {
    size_t i = t.n > 0 && t.s[0] == '-' ? 1 : 0;
    if (i == t.n)
        return false;
    for (; i < t.n; i++)
        if (t.s[i] < '0' || t.s[i] > '9')
            return false;
    return true;
}

static int parse_scalar(parser *ps, token t, kg_poperand *out) {
    size_t k = 0;
    if (!parse_index(t.s + 1, t.n - 1, KG_MAX_SCALARS, &k) || k >= ps->p->nscalars)
        return FAIL(ps, "'%s' is not declared", show(ps, t));
    if (k > ps->scalars_used)
        return FAIL(ps, "s%zu is used before s%zu: scalars are numbered by first use", k,
                    ps->scalars_used);
    if (k == ps->scalars_used)
        ps->scalars_used++;
    *out = (kg_poperand){.kind = KG_PK_SCALAR, .type = ps->p->scalar[k], .index = (uint16_t)k};
    return KG_OK;
}

static bool parse_input(const kg_program *p, const kg_psection *s, token t, kg_poperand *out) {
    static const uint8_t kinds[] = {KG_PK_SCORE, KG_PK_B, KG_PK_H, KG_PK_Q, KG_PK_KV};
    static const char *const names[2][5] = {{"score", "b", "h", "q", "kv"},
                                            {"acc", "b", NULL, "m", "n"}};
    for (size_t i = s == &p->score ? 0 : 1; i < sizeof kinds; i++)
        if (names[p->epilogue][i] != NULL && is(t, names[p->epilogue][i])) {
            *out = (kg_poperand){.kind = kinds[i], .type = i == 0 ? KG_PT_F32 : KG_PT_I32};
            return true;
        }
    return false;
}

static int parse_value(parser *ps, const kg_psection *s, token t, kg_poperand *out) {
    size_t k = 0;
    if (!parse_index(t.s + 1, t.n - 1, KG_PROGRAM_MAX_VALUES, &k) || k >= s->n)
        return FAIL(ps, "'%s' is not computed above", show(ps, t));
    *out = (kg_poperand){.kind = KG_PK_VALUE, .type = s->value[k].type, .index = (uint16_t)k};
    return KG_OK;
}

static int parse_operand(parser *ps, const kg_psection *s, token t, kg_poperand *out) {
    if (t.n == 0)
        return FAIL(ps, "an operand is missing");
    if (t.s[0] == '%')
        return parse_value(ps, s, t, out);
    if (parse_input(ps->p, s, t, out))
        return KG_OK;
    if (is(t, "score"))
        return FAIL(ps, "score is there in the score section alone");
    if (t.s[0] == 's')
        return parse_scalar(ps, t, out);
    if (is(t, "true") || is(t, "false")) {
        *out = (kg_poperand){.kind = KG_PK_LITERAL, .type = KG_PT_BOOL, .literal.i = t.s[0] == 't'};
        return KG_OK;
    }
    if (t.s[0] == 't')
        return FAIL(ps, "'%s' is a tensor: only load takes one", show(ps, t));
    return looks_int(t) ? parse_int(ps, t, out) : parse_float(ps, t, out);
}

static int check_types(parser *ps, const kg_pinstr *in) {
    const char *name = OPS[in->op].name;
    uint8_t operand = in->arg[OPS[in->op].cls == KG_PC_WHERE ? 1 : 0].type;
    for (size_t i = 0; i < in->nargs; i++) {
        uint8_t want = operand;
        if (OPS[in->op].cls == KG_PC_LOAD)
            want = KG_PT_I32;
        else if (OPS[in->op].cls == KG_PC_WHERE && i == 0)
            want = KG_PT_BOOL;
        if (in->arg[i].type != want)
            return FAIL(ps, "operand %zu of %s must be %s, not %s", i + 1, name, TYPES[want],
                        TYPES[in->arg[i].type]);
    }
    uint8_t result = operand;
    if (OPS[in->op].cls == KG_PC_COMPARE)
        result = KG_PT_BOOL;
    else if (OPS[in->op].cls == KG_PC_LOAD)
        result = (uint8_t)kg_ptype_of_load(ps->p->dtype[in->tensor]);
    else if (OPS[in->op].cls == KG_PC_CAST)
        result = in->type;
    if (OPS[in->op].cls != KG_PC_LOAD && !(OPS[in->op].types & (1 << operand)))
        return FAIL(ps, "%s does not take %s", name, TYPES[operand]);
    if (OPS[in->op].cls == KG_PC_CAST && in->type == operand)
        return FAIL(ps, "a cast from %s to itself must be left out", TYPES[operand]);
    if (result != in->type)
        return FAIL(ps, "%s gives %s here, not %s", name, TYPES[result], TYPES[in->type]);
    return KG_OK;
}

static int parse_tensor_name(parser *ps, kg_pinstr *in) {
    token t = next_word(ps);
    size_t k = 0;
    if (t.n < 2 || t.s[0] != 't' || !parse_index(t.s + 1, t.n - 1, KG_MAX_CAPTURED, &k) ||
        k >= ps->p->ntensors)
        return FAIL(ps, "load needs a declared tensor, found '%s'", show(ps, t));
    if (k > ps->tensors_used)
        return FAIL(ps, "t%zu is used before t%zu: tensors are numbered by first use", k,
                    ps->tensors_used);
    if (k == ps->tensors_used)
        ps->tensors_used++;
    in->tensor = (uint8_t)k;
    in->nargs = (uint8_t)ps->p->rank[k];
    return KG_OK;
}

static bool same_operand(const kg_poperand *a, const kg_poperand *b) {
    if (a->kind != b->kind || a->type != b->type || a->index != b->index)
        return false;
    return a->kind != KG_PK_LITERAL || memcmp(&a->literal, &b->literal, sizeof a->literal) == 0;
}

static bool same_instr(const kg_pinstr *a, const kg_pinstr *b) {
    if (a->op != b->op || a->type != b->type || a->nargs != b->nargs || a->tensor != b->tensor)
        return false;
    for (size_t i = 0; i < a->nargs; i++)
        if (!same_operand(&a->arg[i], &b->arg[i]))
            return false;
    return true;
}

static int parse_op(parser *ps, token t, kg_pinstr *in) {
    for (uint8_t i = 0; i < KG_POP_COUNT; i++)
        if (is(t, OPS[i].name)) {
            in->op = i;
            in->nargs = OPS[i].nargs;
            return KG_OK;
        }
    return FAIL(ps, "'%s' is no operation", show(ps, t));
}

/* "%k = OP TYPE operands", after its first word. */
static int parse_instr(parser *ps, kg_psection *s, token name) {
    size_t k = 0;
    kg_pinstr in = {0};
    if (!parse_index(name.s + 1, name.n - 1, KG_PROGRAM_MAX_VALUES, &k) || k != s->n)
        return FAIL(ps, "expected '%%%zu' or 'return', found '%s'", s->n, show(ps, name));
    if (s->n == KG_PROGRAM_MAX_VALUES)
        return FAIL(ps, "a section may have at most %d values", KG_PROGRAM_MAX_VALUES);
    token eq = next_word(ps);
    if (!is(eq, "="))
        return FAIL(ps, "expected '=', found '%s'", show(ps, eq));
    int rc = parse_op(ps, next_word(ps), &in);
    if (rc == KG_OK)
        rc = parse_type(ps, next_word(ps), &in.type);
    if (rc == KG_OK && in.op == KG_POP_LOAD)
        rc = parse_tensor_name(ps, &in);
    for (size_t i = 0; rc == KG_OK && i < in.nargs; i++)
        rc = parse_operand(ps, s, next_word(ps), &in.arg[i]);
    if (rc == KG_OK)
        rc = end_of_line(ps);
    if (rc == KG_OK)
        rc = check_types(ps, &in);
    if (rc != KG_OK)
        return rc;
    for (size_t i = 0; i < s->n; i++)
        if (same_instr(&s->value[i], &in))
            return FAIL(ps, "this is %%%zu again: a value is computed once", i);
    s->value[s->n++] = in;
    return KG_OK;
}

static int check_all_used(parser *ps, const kg_psection *s) {
    bool used[KG_PROGRAM_MAX_VALUES] = {false};
    for (size_t i = 0; i < s->n; i++)
        for (size_t j = 0; j < s->value[i].nargs; j++)
            if (s->value[i].arg[j].kind == KG_PK_VALUE)
                used[s->value[i].arg[j].index] = true;
    if (s->result.kind == KG_PK_VALUE)
        used[s->result.index] = true;
    for (size_t i = 0; i < s->n; i++)
        if (!used[i])
            return FAIL(ps, "%%%zu is never used: it must be left out", i);
    return KG_OK;
}

static int parse_return(parser *ps, kg_psection *s, uint8_t type) {
    int rc = parse_operand(ps, s, next_word(ps), &s->result);
    if (rc == KG_OK)
        rc = end_of_line(ps);
    if (rc == KG_OK && s->result.type != type)
        rc = FAIL(ps, "this section returns %s, not %s", TYPES[type], TYPES[s->result.type]);
    return rc == KG_OK ? check_all_used(ps, s) : rc;
}

/* The lines after "score" or "mask", to its return; then the line after it is at hand. */
static int parse_section(parser *ps, kg_psection *s, uint8_t type) {
    s->present = true;
    s->value = calloc(KG_PROGRAM_MAX_VALUES, sizeof *s->value);
    if (s->value == NULL)
        return kg_fail(ps->err, KG_ENOMEM, "program: out of memory");
    for (;;) {
        int rc = next_line(ps);
        if (rc != KG_OK)
            return rc;
        token first = next_word(ps);
        if (is(first, "return")) {
            rc = parse_return(ps, s, type);
            return rc == KG_OK ? next_line(ps) : rc;
        }
        if (first.n == 0 || first.s[0] != '%')
            return FAIL(ps, "expected '%%%zu' or 'return', found '%s'", s->n, show(ps, first));
        rc = parse_instr(ps, s, first);
        if (rc != KG_OK)
            return rc;
    }
}

/* "tensor tI DTYPE RANK" after its first word. */
static int parse_tensor(parser *ps) {
    kg_program *p = ps->p;
    size_t k = 0, rank = 0;
    token t = next_word(ps);
    if (p->nscalars > 0)
        return FAIL(ps, "tensors are declared before scalars");
    if (p->ntensors == KG_MAX_CAPTURED)
        return FAIL(ps, "a Program may look up at most %d tensors", KG_MAX_CAPTURED);
    if (t.n < 2 || t.s[0] != 't' || !parse_index(t.s + 1, t.n - 1, KG_MAX_CAPTURED, &k) ||
        k != p->ntensors)
        return FAIL(ps, "expected 't%zu', found '%s'", p->ntensors, show(ps, t));
    token dtype = next_word(ps);
    int d = -1;
    for (int i = 0; i < KG_DTYPE_COUNT && d < 0; i++)
        if (is(dtype, kg_dtype_name(i)))
            d = i;
    if (d < 0)
        return FAIL(ps, "expected a dtype, found '%s'", show(ps, dtype));
    token r = next_word(ps);
    if (!parse_index(r.s, r.n, KG_PROGRAM_MAX_RANK, &rank))
        return FAIL(ps, "expected a rank of 0 to %d, found '%s'", KG_PROGRAM_MAX_RANK, show(ps, r));
    p->dtype[k] = d;
    p->rank[k] = (int32_t)rank;
    p->ntensors++;
    return end_of_line(ps);
}

/* "scalar sI TYPE" after its first word. */
static int parse_scalar_decl(parser *ps) {
    kg_program *p = ps->p;
    size_t k = 0;
    token t = next_word(ps);
    if (p->nscalars == KG_MAX_SCALARS)
        return FAIL(ps, "a Program may have at most %d lifted scalars", KG_MAX_SCALARS);
    if (t.n < 2 || t.s[0] != 's' || !parse_index(t.s + 1, t.n - 1, KG_MAX_SCALARS, &k) ||
        k != p->nscalars)
        return FAIL(ps, "expected 's%zu', found '%s'", p->nscalars, show(ps, t));
    int rc = parse_type(ps, next_word(ps), &p->scalar[k]);
    p->nscalars++;
    return rc == KG_OK ? end_of_line(ps) : rc;
}

static int parse_header(parser *ps) {
    int rc = next_line(ps);
    if (rc != KG_OK)
        return rc;
    token word = next_word(ps), format = next_word(ps);
    if (!is(word, "program"))
        return FAIL(ps, "expected 'program 1', found '%s'", show(ps, word));
    size_t n = 0;
    if (!parse_index(format.s, format.n, 99999, &n) || n == 0)
        return FAIL(ps, "expected 'program 1', found format '%s'", show(ps, format));
    if (n > 1)
        return kg_fail(ps->err, KG_EVERSION,
                       "program: format %zu is newer than this kgen, which reads format 1", n);
    return end_of_line(ps);
}

static int parse_sections(parser *ps, token word) {
    kg_program *p = ps->p;
    int rc = KG_OK;
    p->epilogue = !ps->done && is(word, "epilogue");
    if (!ps->done && (p->epilogue || is(word, "score"))) {
        rc = end_of_line(ps);
        if (rc == KG_OK)
            rc = parse_section(ps, &p->score, KG_PT_F32);
        word = rc == KG_OK ? next_word(ps) : word;
    }
    if (rc == KG_OK && !ps->done && !p->epilogue && is(word, "mask")) {
        rc = end_of_line(ps);
        if (rc == KG_OK)
            rc = parse_section(ps, &p->mask, KG_PT_BOOL);
        word = rc == KG_OK ? next_word(ps) : word;
    }
    if (rc != KG_OK)
        return rc;
    if (!ps->done)
        return FAIL(ps, "found '%s'; what may follow here is %s", show(ps, word),
                    p->mask.present || p->epilogue ? "nothing"
                    : p->score.present             ? "'mask'"
                                       : "'tensor', 'scalar', 'score', 'mask' or 'epilogue'");
    if (!p->score.present && !p->mask.present)
        return FAIL(ps, "there is neither a score, a mask nor an epilogue section");
    if (ps->tensors_used < p->ntensors)
        return FAIL(ps, "t%zu is never used: it must be left out", ps->tensors_used);
    if (ps->scalars_used < p->nscalars)
        return FAIL(ps, "s%zu is never used: it must be left out", ps->scalars_used);
    return KG_OK;
}

static int parse_all(parser *ps) {
    int rc = parse_header(ps);
    if (rc == KG_OK)
        rc = next_line(ps);
    token word = rc == KG_OK ? next_word(ps) : (token){ps->line, 0};
    while (rc == KG_OK && !ps->done && (is(word, "tensor") || is(word, "scalar"))) {
        rc = is(word, "tensor") ? parse_tensor(ps) : parse_scalar_decl(ps);
        if (rc == KG_OK)
            rc = next_line(ps);
        word = rc == KG_OK ? next_word(ps) : word;
    }
    return rc == KG_OK ? parse_sections(ps, word) : rc;
}

static void find_spread(kg_program *p, const kg_psection *s) {
    uint8_t dep[KG_PROGRAM_MAX_VALUES];
    kg_program_varying(s, dep);
    for (size_t i = 0; i < s->n; i++)
        for (unsigned d = 0; s->value[i].op == KG_POP_LOAD && d < s->value[i].nargs; d++)
            if (kg_operand_varying(&s->value[i].arg[d], dep))
                p->spread[s->value[i].tensor] |= (uint8_t)(1u << d);
}

int kg_program_parse(const char *text, size_t n, kg_program **out, kg_error *err) {
    if (n > KG_PROGRAM_MAX_TEXT)
        return kg_fail(err, KG_EFORMAT, "program: %zu bytes; at most %d are allowed", n,
                       KG_PROGRAM_MAX_TEXT);
    kg_program *p = calloc(1, sizeof *p);
    if (p == NULL || (p->text = malloc(n + 1)) == NULL) {
        free(p);
        return kg_fail(err, KG_ENOMEM, "program: out of memory");
    }
    if (n > 0)
        memcpy(p->text, text, n);
    p->text[n] = '\0';
    parser ps = {.p = p, .at = p->text, .end = p->text + n, .line = p->text, .err = err};
    /* Numbers are written with a point whatever the process's locale says. */
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    locale_t before = c != (locale_t)0 ? uselocale(c) : (locale_t)0;
    int rc = parse_all(&ps);
    if (c != (locale_t)0) {
        uselocale(before);
        freelocale(c);
    }
    if (rc != KG_OK) {
        kg_program_free(p);
        return rc;
    }
    find_spread(p, &p->score);
    find_spread(p, &p->mask);
    kg_hash128_hex(kg_xxh128(p->text, n), p->hash);
    *out = p;
    return KG_OK;
}

void kg_program_free(kg_program *p) {
    if (p == NULL)
        return;
    free(p->text);
    free(p->score.value);
    free(p->mask.value);
    free(p);
}

const char *kg_program_text(const kg_program *p) {
    return p->text;
}

const char *kg_program_hash(const kg_program *p) {
    return p->hash;
}

bool kg_program_has(const kg_program *p, const char *hole) {
    if (p == NULL)
        return false;
    return (strcmp(hole, p->epilogue ? "EPILOGUE" : "SCORE") == 0 && p->score.present) ||
           (strcmp(hole, "MASK") == 0 && p->mask.present);
}

int kg_program_fits(const kg_program *p, const kg_op *op, kg_error *err) {
    static const char *const holes[] = {"SCORE", "MASK", "EPILOGUE"};
    for (size_t i = 0; i < sizeof holes / sizeof *holes; i++) {
        bool there = !kg_program_has(p, holes[i]);
        for (size_t k = 0; k < op->nholes; k++)
            there = there || strcmp(op->holes[k], holes[i]) == 0;
        if (!there)
            return kg_fail(err, KG_EINVAL, "%s has no hole %s, and the Program has such a section",
                           op->name, holes[i]);
    }
    return KG_OK;
}

size_t kg_program_captured(const kg_program *p, int32_t *dtypes, int32_t *ranks) {
    for (size_t i = 0; p != NULL && i < p->ntensors; i++) {
        if (dtypes != NULL)
            dtypes[i] = p->dtype[i];
        if (ranks != NULL)
            ranks[i] = p->rank[i];
    }
    return p != NULL ? p->ntensors : 0;
}

size_t kg_program_scalars(const kg_program *p) {
    return p != NULL ? p->nscalars : 0;
}

bool kg_operand_varying(const kg_poperand *a, const uint8_t *dep) {
    if (a->kind == KG_PK_VALUE)
        return dep[a->index] != 0;
    return a->kind == KG_PK_SCORE || a->kind == KG_PK_KV;
}

void kg_program_varying(const kg_psection *s, uint8_t *dep) {
    for (size_t i = 0; i < s->n; i++) {
        dep[i] = 0;
        for (size_t j = 0; j < s->value[i].nargs; j++)
            if (kg_operand_varying(&s->value[i].arg[j], dep))
                dep[i] = 1;
    }
}
