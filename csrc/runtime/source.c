/* Puts a Candidate's text between what it may count on (macros of dtypes, tunables and exact dims,
 * the Programs of its holes) and, on the CPU, the typed entries by which it is called. The text is
 * the key of the image cache: it holds nothing that does not change the code, so that calls share
 * images. Scalars and alignments are left out for that. */
#include <stdio.h>
#include <string.h>

#include "runtime/plan.h"
#include "runtime/program.h"

typedef struct source {
    const kg_plan *p;
    const kg_op *op;
    const kg_call *call;
    kg_buf *out;
} source;

/* On CUDA both half types are their bits: house kernels include no header. */
static const char *ctype(const source *s, int dtype) {
    return s->p->target == KG_CUDA && dtype == KG_F16 ? kg_dtype_ctype(KG_BF16)
                                                      : kg_dtype_ctype(dtype);
}

static void put_int(kg_buf *out, int64_t v) {
    if (v == INT64_MIN)
        kg_buf_puts(out, "(-9223372036854775807 - 1)");
    else
        kg_buf_printf(out, v < 0 ? "(%lld)" : "%lld", (long long)v);
}

/* NVRTC has no stdint.h of its own; these are the ABI's types of its host. */
static const char CUDA_INTEGERS[] = "typedef signed char int8_t;\ntypedef short int16_t;\n"
                                    "typedef int int32_t;\ntypedef long int64_t;\n"
                                    "typedef unsigned char uint8_t;\n"
                                    "typedef unsigned short uint16_t;\n"
                                    "typedef unsigned int uint32_t;\n"
                                    "typedef unsigned long uint64_t;\n"
                                    "typedef unsigned long uintptr_t;\n";

static void put_constants(const source *s) {
#define KG_X(NAME, value, text, bytes, type)                                                       \
    kg_buf_puts(s->out, "#define KG_" #NAME " " #value "\n");
    KG_DTYPES(KG_X)
#undef KG_X
    if (s->p->target == KG_CUDA) {
        kg_buf_puts(s->out, "#define KG_ARCH (__CUDA_ARCH__ / 10)\n");
        kg_buf_puts(s->out, CUDA_INTEGERS);
        return;
    }
    /* From the compiler, not from us: the same text serves every -march. */
    kg_buf_puts(s->out, "#if defined(__AVX512F__) && defined(__AVX512BW__)\n"
                        "#define KG_ARCH 4\n"
                        "#elif defined(__AVX2__) && defined(__FMA__)\n"
                        "#define KG_ARCH 3\n"
                        "#elif defined(__SSE4_2__)\n"
                        "#define KG_ARCH 2\n"
                        "#elif defined(__x86_64__)\n"
                        "#define KG_ARCH 1\n"
                        "#else\n"
                        "#define KG_ARCH 0\n"
                        "#endif\n");
}

/* Words that a preprocessor can make out of parts, so that looking at the text is not enough: code
 * that is no C, the caller's frame, memory of a thread or of the processor's segments, what tells
 * one compilation from another, and what looks for files (also in a pragma, through _Pragma). From
 * here on the compiler refuses each, however it came to be; headers that use them are read before.
 */
static const char *const POISONED[] = {"asm",
                                       "__asm",
                                       "__asm__",
                                       "_Thread_local",
                                       "__thread",
                                       "__seg_fs",
                                       "__seg_gs",
                                       "__builtin_thread_pointer",
                                       "__builtin_return_address",
                                       "__builtin_frame_address",
                                       "__builtin_extract_return_addr",
                                       "__builtin_setjmp",
                                       "__builtin_longjmp",
                                       "__builtin_eh_return",
                                       "__builtin_unwind_init",
                                       "__builtin_apply",
                                       "__builtin_apply_args",
                                       "__builtin_return",
                                       "__FILE__",
                                       "__BASE_FILE__",
                                       "__FILE_NAME__",
                                       "__INCLUDE_LEVEL__",
                                       "__DATE__",
                                       "__TIME__",
                                       "__TIMESTAMP__",
                                       "__has_include",
                                       "__has_include_next",
                                       "__has_embed",
                                       "dependency",
                                       "pch_preprocess",
                                       "system_header",
                                       NULL};

static bool mentions(const char *text, size_t n, const char *part) {
    size_t size = strlen(part);
    for (size_t i = 0; i + size <= n; i++)
        if (text[i] == part[0] && memcmp(text + i, part, size) == 0)
            return true;
    return false;
}

static void put_headers(kg_buf *out, const char *text, size_t n) {
    static const char *const headers[] = {"<stddef.h>", "<math.h>",      "<float.h>",
                                          "<string.h>", "<immintrin.h>", NULL};
    kg_buf_puts(out, "#include <stdint.h>\n");
    for (const char *const *h = headers; *h; h++)
        if (mentions(text, n, *h))
            kg_buf_printf(out, "#include %s\n", *h);
    /* As if in a header of the system: it is no author's concern that some of them are macros. */
    kg_buf_puts(out, "# 1 \"words that kgen refuses\" 3\n#pragma GCC poison");
    for (const char *const *word = POISONED; *word; word++)
        kg_buf_printf(out, " %s", *word);
    kg_buf_puts(out, "\n# 1 \"what kgen defines\"\n");
}

static void put_type(const source *s, const char *name, int dtype) {
    kg_buf_printf(s->out, "#define KG_T_%s %s\n#define KG_DTYPE_%s %d\n", name, ctype(s, dtype),
                  name, dtype);
}

static void put_types(const source *s) {
    for (size_t i = 0; i < s->op->nargs; i++)
        if (kg_arg_is_tensor(s->op->args[i].type))
            put_type(s, s->op->args[i].name, kg_op_arg_dtype(s->op, s->call, i));
    for (size_t i = 0; i < s->op->noutputs; i++)
        put_type(s, s->op->outputs[i].name, kg_op_output_dtype(s->op, s->call, i));
    for (size_t i = 0; i < s->p->nworkspace; i++)
        put_type(s, s->p->workspace[i].name, s->p->workspace[i].dtype);
}

static int put_numbers(const source *s, const kg_tuning *t, const kg_dims *exact, kg_error *err) {
    for (size_t i = 0; i < s->p->ntunables; i++) {
        kg_buf_printf(s->out, "#define %s ", s->p->tunables[i].name);
        put_int(s->out, t->value[i]);
        kg_buf_putc(s->out, '\n');
    }
    for (size_t i = 0; i < s->p->nspecialize; i++) {
        const char *name = s->p->specialize[i];
        int d = kg_op_dim_index(s->op, name);
        if (d < 0)
            return kg_fail(err, KG_EFORMAT, "specialize: %s is no dim of %s", name, s->op->name);
        kg_buf_printf(s->out, "#define KG_EXACT_%s %d\n", name, exact != NULL);
        if (exact == NULL)
            continue;
        kg_buf_printf(s->out, "#define %s ", name);
        put_int(s->out, exact->value[d]);
        kg_buf_putc(s->out, '\n');
    }
    return KG_OK;
}

static void put_line(kg_buf *out, const char *name) {
    kg_buf_puts(out, "#line 1 \"");
    for (; *name != '\0'; name++) {
        if (*name == '"' || *name == '\\')
            kg_buf_putc(out, '\\');
        kg_buf_putc(out, *name == '\n' || *name == '\r' ? ' ' : *name);
    }
    kg_buf_puts(out, "\"\n");
}

static bool is_macro(const source *s, const char *name) {
    for (size_t i = 0; i < s->p->nspecialize; i++)
        if (strcmp(s->p->specialize[i], name) == 0)
            return true;
    return kg_plan_tunable_index(s->p, name) >= 0;
}

static const char *scalar_type(int dtype) {
    return dtype == KG_I32 ? "int32_t" : dtype == KG_I64 ? "int64_t" : kg_dtype_ctype(dtype);
}

/* The type of argument i. With `name`, as a prototype that the author would write: KG_T_x and a
 * name. */
static void put_param(const source *s, const kg_plan_arg *a, size_t i, bool named) {
    const char *text = a->expr != NULL ? kg_expr_text(a->expr) : a->attr;
    const char *tensor = a->kind == KG_PA_TENSOR      ? s->op->args[a->index].name
                         : a->kind == KG_PA_OUTPUT    ? s->op->outputs[a->index].name
                         : a->kind == KG_PA_WORKSPACE ? s->p->workspace[a->index].name
                                                      : NULL;
    if (tensor != NULL) {
        kg_buf_printf(s->out, "%sKG_T_%s *%s", a->kind == KG_PA_TENSOR ? "const " : "", tensor,
                      named ? tensor : "");
    } else if (a->kind == KG_PA_PROGRAMS) {
        kg_buf_puts(s->out, named ? "KG_PROGRAMS programs" : "KG_PROGRAMS");
    } else {
        kg_buf_puts(s->out, scalar_type(a->dtype));
        if (named && text != NULL && kg_is_name(text) && !is_macro(s, text))
            kg_buf_printf(s->out, " %s", text);
        else if (named)
            kg_buf_printf(s->out, " a%zu", i);
    }
}

static void put_params(const source *s, const kg_plan_launch *l, bool named) {
    kg_buf_puts(s->out, named ? "int64_t begin, int64_t end" : "int64_t, int64_t");
    for (size_t i = 0; i < l->nargs; i++) {
        kg_buf_puts(s->out, ", ");
        put_param(s, &l->args[i], i, named);
    }
}

static void put_value(const source *s, const kg_plan_arg *a, size_t i) {
    kg_buf_puts(s->out, ", ");
    if (a->kind == KG_PA_SCALAR) {
        kg_buf_printf(s->out, "*(const %s *)kg_args[%zu]", scalar_type(a->dtype), i);
        return;
    }
    kg_buf_putc(s->out, '(');
    put_param(s, a, i, false);
    kg_buf_printf(s->out, ")kg_args[%zu]", i);
}

static void put_entry(const source *s, size_t launch) {
    const kg_plan_launch *l = &s->p->launches[launch];
    kg_buf_printf(s->out, "_Static_assert(__builtin_types_compatible_p(__typeof__(&%s), void (*)(",
                  l->kernel);
    put_params(s, l, false);
    kg_buf_printf(s->out, ")), \"launches[%zu] of the plan wants: void %s(", launch, l->kernel);
    put_params(s, l, true);
    kg_buf_printf(
        s->out,
        ")\");\n__attribute__((visibility(\"default\"))) void kg_entry_%zu(int64_t kg_begin, "
        "int64_t kg_end, void *const *kg_args);\nvoid kg_entry_%zu(int64_t kg_begin, "
        "int64_t kg_end, void *const *kg_args) {\n    %s(kg_begin, kg_end",
        launch, launch, l->kernel);
    for (size_t i = 0; i < l->nargs; i++)
        put_value(s, &l->args[i], i);
    kg_buf_puts(s->out, ");\n}\n");
}

/* Indices of a plan from an index, as kg_plan_bind checks them: the source may be built without
 * binding. */
static int check_args(const source *s, kg_error *err) {
    for (size_t i = 0; i < s->p->nlaunches; i++)
        for (size_t k = 0; k < s->p->launches[i].nargs; k++) {
            const kg_plan_arg *a = &s->p->launches[i].args[k];
            size_t n = a->kind == KG_PA_TENSOR      ? s->op->nargs
                       : a->kind == KG_PA_OUTPUT    ? s->op->noutputs
                       : a->kind == KG_PA_WORKSPACE ? s->p->nworkspace
                       : a->kind == KG_PA_MAP       ? s->p->nmaps
                                                    : SIZE_MAX;
            if ((size_t)a->index >= n)
                return kg_fail(err, KG_EFORMAT, "the plan does not belong to the contract of %s",
                               s->op->name);
        }
    return KG_OK;
}

static bool is_half(int dtype) {
    return dtype == KG_F16 || dtype == KG_BF16;
}

/* Whether the first tensor is of a half type, and with it what Programs are evaluated beside. */
static bool takes_halves(const source *s) {
    for (size_t i = 0; i < s->op->nargs; i++)
        if (kg_arg_is_tensor(s->op->args[i].type))
            return is_half(kg_op_arg_dtype(s->op, s->call, i));
    return false;
}

static bool gives_halves(const source *s) {
    for (size_t i = 0; i < s->op->noutputs; i++)
        if (!(s->call->skip_outputs >> i & 1) && !is_half(kg_op_output_dtype(s->op, s->call, i)))
            return false;
    return true;
}

static bool holds_epilogue(const kg_plan *p) {
    return strcmp(p->holes[0], "EPILOGUE") == 0;
}

/* KG_ROUGH: what the functions of the Programs may be off by, which their results bear. */
static int roughness(const source *s) {
    if (s->p->target != KG_CUDA || s->p->nholes == 0 || !takes_halves(s))
        return 0;
    bool scores = !holds_epilogue(s->p);
    return scores && kg_program_uses_tanh(s->call->program) && gives_halves(s) ? 2 : 1;
}

/* What the holes call. */
static int put_programs(const source *s, kg_error *err) {
    const kg_plan *p = s->p;
    if (p->nholes == 0)
        return KG_OK;
    return holds_epilogue(p) ? kg_program_lower_epilogue(s->call->program, p->target, s->out, err)
                             : kg_program_lower(s->call->program, p->target, s->out, err);
}

int kg_source_build(const kg_plan *p, const kg_op *op, const kg_tuning *t, const kg_call *call,
                    const kg_dims *exact, const char *text, size_t n, const char *name, kg_buf *out,
                    kg_error *err) {
    source s = {.p = p, .op = op, .call = call, .out = out};
    int rc = check_args(&s, err);
    if (rc < 0)
        return rc;
    if (p->target == KG_CPU)
        put_headers(out, text, n);
    put_constants(&s);
    int rough = roughness(&s);
    if (rough > 0)
        kg_buf_printf(out, "#define KG_ROUGH %d\n", rough);
    /* Before the tunables: their macros must not reach kgen's own code. */
    if ((rc = put_programs(&s, err)) < 0)
        return rc;
    put_types(&s);
    rc = put_numbers(&s, t, exact, err);
    if (rc < 0)
        return rc;
    put_line(out, name);
    kg_buf_add(out, text, n);
    kg_buf_putc(out, '\n');
    if (p->target == KG_CPU) {
        put_line(out, "entries by kgen");
        for (size_t i = 0; i < p->nlaunches; i++)
            put_entry(&s, i);
    }
    return kg_buf_check(out, name, err);
}
