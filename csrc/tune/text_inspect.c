/* Walks the text as a C lexer does: lines that end in a backslash are joined, comments and strings
 * are passed over, directives are read by their own rules. */
#include "tune/text_inspect.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

enum { MAX_WORD = 64 };

typedef struct scan {
    const char *text, *name;
    size_t n, at;
    size_t line;
    bool fresh; /* nothing but blanks so far on this line */
    kg_buf *complaint;
    kg_error *err;
} scan;

static int refuse(scan *s, const char *rest, const char *what) {
    kg_buf_printf(s->complaint, "%s:%zu: ", s->name, s->line);
    kg_buf_printf(s->complaint, "%s%s", what, rest);
    return kg_fail(s->err, KG_EUNSUPPORTED, "%.480s",
                   s->complaint->data ? s->complaint->data : what);
}

/* Length of a backslash, blanks and a line's end at i; 0 when there is none. */
static size_t splice(const scan *s, size_t i) {
    if (i >= s->n || s->text[i] != '\\')
        return 0;
    size_t k = i + 1;
    while (k < s->n && (s->text[k] == ' ' || s->text[k] == '\t' || s->text[k] == '\r'))
        k++;
    return k < s->n && s->text[k] == '\n' ? k + 1 - i : 0;
}

/* The character at the cursor, past any splice; -1 at the end. */
static int peek(scan *s) {
    for (size_t k; (k = splice(s, s->at)) > 0; s->line++)
        s->at += k;
    return s->at < s->n ? (unsigned char)s->text[s->at] : -1;
}

static int next(scan *s) {
    int c = peek(s);
    if (c < 0)
        return c;
    s->at++;
    if (c == '\n') {
        s->line++;
        s->fresh = true;
    }
    return c;
}

static bool word_char(int c) {
    return c == '_' || c == '$' || (c >= 0 && isalnum(c)) || c >= 0x80;
}

/* A word, cut at MAX_WORD: no word that matters is longer. */
static void word(scan *s, char out[MAX_WORD]) {
    size_t n = 0;
    while (word_char(peek(s))) {
        int c = next(s);
        if (n + 1 < MAX_WORD)
            out[n++] = (char)c;
    }
    out[n] = '\0';
}

static void skip_quoted(scan *s, int quote) {
    for (int c; (c = peek(s)) >= 0 && c != '\n';) {
        next(s);
        if (c == quote)
            return;
        if (c == '\\' && peek(s) >= 0)
            next(s);
    }
}

/* After a slash: true if a comment was passed over. */
static bool skip_comment(scan *s) {
    if (peek(s) == '/') {
        while (peek(s) >= 0 && peek(s) != '\n')
            next(s);
        return true;
    }
    if (peek(s) != '*')
        return false;
    next(s);
    bool fresh = s->fresh;
    for (int last = 0, c; (c = next(s)) >= 0; last = c)
        if (last == '*' && c == '/')
            break;
    s->fresh = fresh; /* a comment is a blank: a directive may follow it */
    return true;
}

/* Blanks and comments up to the end of the line. */
static void skip_blanks(scan *s) {
    for (int c; (c = peek(s)) >= 0;) {
        if (c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v') {
            next(s);
            continue;
        }
        size_t before = s->at, line = s->line;
        if (c != '/')
            return;
        next(s);
        if (!skip_comment(s)) {
            s->at = before;
            s->line = line;
            return;
        }
    }
}

static bool listed(const char *word, const char *const *list) {
    for (; *list; list++)
        if (strcmp(word, *list) == 0)
            return true;
    return false;
}

static int check_include(scan *s) {
    static const char *const allowed[] = {"stdint.h", "stddef.h",    "math.h", "float.h",
                                          "string.h", "immintrin.h", NULL};
    char file[MAX_WORD] = "";
    size_t n = 0;
    skip_blanks(s);
    if (peek(s) == '<') {
        next(s);
        for (int c; (c = peek(s)) >= 0 && c != '>' && c != '\n' && n + 1 < MAX_WORD;)
            file[n++] = (char)next(s);
        file[n] = '\0';
        if (peek(s) == '>' && listed(file, allowed))
            return KG_OK;
    }
    return refuse(s, "",
                  "only <stdint.h>, <stddef.h>, <math.h>, <float.h>, <string.h> and "
                  "<immintrin.h> may be included");
}

static int check_pragma(scan *s) {
    static const char *const families[] = {"GCC", "clang", "STDC", "omp", "once", "unroll", NULL};
    static const char *const gcc[] = {
        "unroll",       "ivdep",       "diagnostic",    "optimize", "target",
        "push_options", "pop_options", "reset_options", "novector", NULL};
    static const char *const clang[] = {"loop", "fp", "diagnostic", NULL};
    char first[MAX_WORD], second[MAX_WORD];
    skip_blanks(s);
    word(s, first);
    skip_blanks(s);
    word(s, second);
    if (!listed(first, families) || (strcmp(first, "GCC") == 0 && !listed(second, gcc)) ||
        (strcmp(first, "clang") == 0 && !listed(second, clang)) ||
        (strcmp(first, "omp") == 0 && strcmp(second, "simd") != 0))
        return refuse(
            s,
            " is a pragma that a Candidate may not have; allowed are GCC unroll, ivdep, "
            "optimize, target and diagnostic, clang loop, fp and diagnostic, omp simd and STDC",
            (strcmp(first, "GCC") == 0 || strcmp(first, "clang") == 0) && *second ? second : first);
    return KG_OK;
}

/* _Pragma("..."): what stands in the string is a pragma. A macro's _Pragma(#x) is let through, as
 * the words that x may be of are refused wherever they stand. */
static int check_operator(scan *s) {
    size_t at = s->at, line = s->line;
    skip_blanks(s);
    if (peek(s) == '(') {
        next(s);
        skip_blanks(s);
        if (peek(s) == '"') {
            next(s);
            int rc = check_pragma(s);
            if (rc != KG_OK)
                return rc;
        }
    }
    s->at = at; /* the string itself is passed over as any other */
    s->line = line;
    return KG_OK;
}

static int check_directive(scan *s) {
    static const char *const plain[] = {"define", "undef", "if",    "ifdef",   "ifndef", "elif",
                                        "else",   "endif", "error", "warning", NULL};
    char name[MAX_WORD];
    skip_blanks(s);
    word(s, name);
    if (strcmp(name, "include") == 0)
        return check_include(s);
    if (strcmp(name, "pragma") == 0)
        return check_pragma(s);
    if (listed(name, plain) || (!*name && (peek(s) == '\n' || peek(s) < 0)))
        return KG_OK;
    return refuse(s, " is a directive that a Candidate may not have",
                  *name ? name : "a line marker");
}

/* Words within the brackets after __attribute__. */
static int check_attribute(scan *s) {
    static const char *const refused[] = {
        "constructor",   "destructor", "section", "ifunc",         "alias",     "weak", "weakref",
        "init_priority", "symver",     "common",  "target_clones", "tls_model", NULL};
    int depth = 0;
    for (int c; (c = peek(s)) >= 0;) {
        if (word_char(c)) {
            char w[MAX_WORD];
            word(s, w);
            size_t n = strlen(w);
            char *bare = w;
            if (n > 4 && strncmp(w, "__", 2) == 0 && strcmp(w + n - 2, "__") == 0) {
                w[n - 2] = '\0';
                bare = w + 2;
            }
            if (listed(bare, refused))
                return refuse(s, " is an attribute that a Candidate may not have", bare);
            continue;
        }
        next(s);
        depth += (c == '(') - (c == ')');
        if (c == '"')
            skip_quoted(s, c);
        if (depth == 0 && c == ')')
            break;
        if (depth == 0 && !isspace(c))
            break; /* no bracket: a macro's name, or an error that the compiler tells */
    }
    return KG_OK;
}

static int check_word(scan *s) {
    static const char *const code[] = {"asm", "__asm", "__asm__", NULL};
    static const char *const local[] = {"_Thread_local", "thread_local", "__thread", NULL};
    static const char *const clock[] = {"__DATE__", "__TIME__", "__TIMESTAMP__", NULL};
    static const char *const place[] = {
        "__FILE__",      "__BASE_FILE__",      "__FILE_NAME__", "__INCLUDE_LEVEL__",
        "__has_include", "__has_include_next", "__has_embed",   NULL};
    static const char *const caller[] = {"__builtin_return_address",
                                         "__builtin_frame_address",
                                         "__builtin_extract_return_addr",
                                         "__builtin_setjmp",
                                         "__builtin_longjmp",
                                         "__builtin_eh_return",
                                         "__builtin_unwind_init",
                                         "__builtin_apply",
                                         "__builtin_apply_args",
                                         "__builtin_return",
                                         NULL};
    static const char *const files[] = {"dependency", "pch_preprocess", "system_header", NULL};
    static const char *const segment[] = {"__seg_fs", "__seg_gs", "__builtin_thread_pointer", NULL};
    char w[MAX_WORD];
    word(s, w);
    if (listed(w, code))
        return refuse(s, " is not allowed in a CPU Candidate; use vector types or immintrin.h", w);
    if (listed(w, local))
        return refuse(s, ": a thread-local variable is state, which a Candidate must not keep", w);
    if (listed(w, clock))
        return refuse(s, " makes another image of the same source each time", w);
    if (listed(w, place))
        return refuse(s, " tells where it is compiled, and the same source must be one program", w);
    if (listed(w, caller))
        return refuse(s, " looks at the caller, which is not a Candidate's concern", w);
    if (listed(w, files))
        return refuse(
            s, " is a pragma's word for files of the machine, and no name for anything else", w);
    if (strcmp(w, "_Pragma") == 0)
        return check_operator(s);
    if (listed(w, segment))
        return refuse(s, " is memory of the thread or the process, which a Candidate must not use",
                      w);
    if (strcmp(w, "__attribute__") == 0 || strcmp(w, "__attribute") == 0)
        return check_attribute(s);
    return KG_OK;
}

/* One token; whatever is not a word, a comment, a string or a directive is passed over. */
static int step(scan *s, int c) {
    bool fresh = s->fresh;
    if (word_char(c) && !isdigit(c)) {
        s->fresh = false;
        return check_word(s);
    }
    if (isdigit(c)) {
        char number[MAX_WORD];
        s->fresh = false;
        word(s, number);
        return KG_OK;
    }
    next(s);
    if (isspace(c))
        return KG_OK;
    if (c == '/' && skip_comment(s))
        return KG_OK;
    s->fresh = false;
    if (c == '"' || c == '\'')
        skip_quoted(s, c);
    if (fresh && c == '%' && peek(s) == ':')
        next(s);
    else if (!fresh || c != '#')
        return KG_OK;
    return check_directive(s);
}

int kg_text_inspect(const char *text, size_t n, const char *name, kg_buf *complaint,
                    kg_error *err) {
    scan s = {.text = text,
              .n = n,
              .name = name,
              .line = 1,
              .fresh = true,
              .complaint = complaint,
              .err = err};
    int c, rc = KG_OK;
    while (rc == KG_OK && (c = peek(&s)) >= 0)
        rc = step(&s, c);
    return rc;
}
