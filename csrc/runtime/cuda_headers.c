/* Reads include directives as a compiler does, and the few headers that may be included. Refuses
 * what it cannot read for sure: a missed directive would let a Candidate depend on the machine. */
#include "runtime/cuda_headers.h"

#include <ctype.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/fs.h"

/* What may be included, and all that it takes. */
static const char *const LISTED[] = {"cuda_fp16.h", "cuda_bf16.h", "cuda_fp8.h", "mma.h"};
/* file: below the folder of headers; NULL: an empty text, for what NVRTC itself has. */
static const struct {
    const char *name, *file;
} FILES[] = {
    {"cuda_fp16.h", "cuda_fp16.h"},
    {"cuda_fp16.hpp", "cuda_fp16.hpp"},
    {"cuda_bf16.h", "cuda_bf16.h"},
    {"cuda_bf16.hpp", "cuda_bf16.hpp"},
    {"cuda_fp8.h", "cuda_fp8.h"},
    {"cuda_fp8.hpp", "cuda_fp8.hpp"},
    {"mma.h", "mma.h"},
    {"crt/mma.h", "crt/mma.h"},
    {"crt/mma.hpp", "crt/mma.hpp"},
    {"mma.hpp", "crt/mma.hpp"},
    {"vector_types.h", NULL},
    {"vector_functions.h", NULL},
    {"device_types.h", NULL},
    {"nv/target", NULL},
};
enum { NFILES = sizeof(FILES) / sizeof(FILES[0]), MAX_HEADER = 4 << 20, MAX_WORD = 64 };

/* ---- directives ---- */

typedef struct scan {
    const char *text, *name;
    size_t n, at, line;
    bool *any;
    kg_buf *complaint;
    kg_error *err;
} scan;

/* Past any backslash that joins two lines (NVRTC takes blanks between it and the line's end). */
static int peek(scan *s) {
    while (s->at < s->n && s->text[s->at] == '\\') {
        size_t k = s->at + 1;
        while (k < s->n && strchr(" \t\r", s->text[k]) != NULL && s->text[k] != '\0')
            k++;
        if (k >= s->n || s->text[k] != '\n')
            break;
        s->at = k + 1;
        s->line++;
    }
    return s->at < s->n ? (unsigned char)s->text[s->at] : -1;
}

static int take(scan *s) {
    int c = peek(s);
    if (c >= 0)
        s->at++;
    s->line += c == '\n';
    return c;
}

static bool word_char(int c) {
    return c == '_' || c == '$' || (c >= 0 && isalnum(c)) || c >= 0x80;
}

static void take_word(scan *s, char out[MAX_WORD]) {
    size_t n = 0;
    while (word_char(peek(s))) {
        int c = take(s);
        if (n + 1 < MAX_WORD)
            out[n++] = (char)c;
    }
    out[n] = '\0';
}

static void skip_quoted(scan *s, int quote) {
    for (int c; (c = peek(s)) >= 0 && c != '\n';) {
        take(s);
        if (c == quote)
            return;
        if (c == '\\' && peek(s) >= 0)
            take(s);
    }
}

/* After the quote of R": no escapes and no joined lines until )delimiter". */
static void skip_raw(scan *s) {
    char end[24] = ")";
    size_t n = 1;
    while (s->at < s->n && s->text[s->at] != '(' && n + 2 < sizeof(end))
        end[n++] = s->text[s->at++];
    end[n++] = '"';
    while (s->at < s->n && (s->n - s->at < n || memcmp(s->text + s->at, end, n) != 0))
        s->line += s->text[s->at++] == '\n';
    s->at += s->at < s->n ? n : 0;
}

/* After a slash: true when a comment was passed over. */
static bool skip_comment(scan *s) {
    if (peek(s) == '/') {
        while (peek(s) >= 0 && peek(s) != '\n')
            take(s);
        return true;
    }
    if (peek(s) != '*')
        return false;
    take(s);
    for (int last = 0, c; (c = take(s)) >= 0; last = c)
        if (last == '*' && c == '/')
            break;
    return true;
}

static void skip_blanks(scan *s) {
    for (int c; (c = peek(s)) >= 0 && c != '\n';) {
        size_t at = s->at, line = s->line;
        if (!isspace(c) && c != '/')
            return;
        take(s);
        if (c == '/' && !skip_comment(s)) {
            s->at = at;
            s->line = line;
            return;
        }
    }
}

static int check_file(scan *s) {
    char file[MAX_WORD] = "";
    size_t n = 0;
    skip_blanks(s);
    int close = peek(s) == '<' ? '>' : peek(s) == '"' ? '"' : -1;
    if (close >= 0)
        take(s);
    while (close >= 0 && peek(s) >= 0 && peek(s) != close && peek(s) != '\n' && n + 1 < MAX_WORD)
        file[n++] = (char)take(s);
    file[n] = '\0';
    *s->any = true;
    for (size_t i = 0; i < sizeof(LISTED) / sizeof(LISTED[0]); i++)
        if (peek(s) == close && strcmp(file, LISTED[i]) == 0)
            return KG_OK;
    kg_buf_printf(s->complaint,
                  "%s:%zu: %.63s: only <cuda_fp16.h>, <cuda_bf16.h>, <cuda_fp8.h> and <mma.h> may "
                  "be included",
                  s->name, s->line, n > 0 ? file : "an include whose file a macro names");
    return kg_fail(s->err, KG_EUNSUPPORTED, "%.480s", s->complaint->data);
}

static int check_directive(scan *s) {
    char word[MAX_WORD];
    skip_blanks(s);
    take_word(s, word);
    bool includes = strncmp(word, "include", 7) == 0 || strcmp(word, "import") == 0 ||
                    strcmp(word, "embed") == 0;
    return includes ? check_file(s) : KG_OK;
}

/* A number may hold quotes (1'000) that open nothing. */
static void skip_number(scan *s) {
    for (int c; word_char(c = peek(s)) || c == '.' || c == '\'';) {
        size_t at = s->at;
        take(s);
        if (c == '\'' && !word_char(peek(s))) {
            s->at = at;
            return;
        }
    }
}

/* One token that is no blank; *fresh: nothing stood before it on its line. */
static int step(scan *s, bool fresh) {
    char word[MAX_WORD];
    int c = peek(s);
    if (word_char(c) && !isdigit(c)) {
        take_word(s, word);
        size_t n = strlen(word);
        if (s->at < s->n && s->text[s->at] == '"' && word[n - 1] == 'R') {
            s->at++;
            skip_raw(s);
        }
        return KG_OK;
    }
    if (isdigit(c)) {
        skip_number(s);
        return KG_OK;
    }
    take(s);
    if (c == '"' || c == '\'')
        skip_quoted(s, c);
    if (fresh && (c == '#' || (c == '%' && peek(s) == ':' && take(s))))
        return check_directive(s);
    return KG_OK;
}

int kg_cuda_includes(const char *text, size_t n, const char *name, bool *any, kg_buf *complaint,
                     kg_error *err) {
    scan s = {.text = text,
              .name = name,
              .n = n,
              .line = 1,
              .any = any,
              .complaint = complaint,
              .err = err};
    bool fresh = true;
    int rc = KG_OK;
    *any = false;
    while (rc == KG_OK) {
        skip_blanks(&s);
        int c = peek(&s);
        if (c < 0)
            break;
        if (c == '\n') {
            take(&s);
            fresh = true;
            continue;
        }
        rc = step(&s, fresh);
        fresh = false;
    }
    return rc;
}

/* ---- the headers ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* over what follows */
static kg_nvrtc_header headers[NFILES];
static kg_cuda_header_set set;

/* *out is NULL when the file is not there: an older toolkit has no fp8, and a wheel may leave crt/
 * out; the compiler says so if it is wanted. */
static int read_header(const char *folder, const char *file, char **out, kg_error *err) {
    kg_buf text;
    char path[640];
    int rc = KG_OK;
    kg_buf_init(&text, MAX_HEADER);
    *out = NULL;
    snprintf(path, sizeof(path), "%s/%s", folder, file != NULL ? file : "");
    if (file != NULL && !kg_is_file(path))
        return KG_OK;
    if (file != NULL)
        rc = kg_read_file(path, MAX_HEADER, &text, err);
    *out = rc == KG_OK ? kg_buf_take(&text) : NULL;
    if (rc == KG_OK && *out == NULL)
        rc = kg_fail(err, KG_ENOMEM, "no memory for a header");
    kg_buf_free(&text);
    return rc;
}

static int read_headers(const char *folder, kg_error *err) {
    kg_buf all;
    int rc = KG_OK;
    size_t n = 0;
    kg_buf_init(&all, 0);
    for (size_t i = 0; rc == KG_OK && i < NFILES; i++) {
        char *text = NULL;
        rc = read_header(folder, FILES[i].file, &text, err);
        if (rc != KG_OK || text == NULL)
            continue;
        kg_put_str(&all, FILES[i].name);
        kg_buf_puts(&all, text);
        headers[n++] = (kg_nvrtc_header){.name = FILES[i].name, .text = text};
    }
    if (rc == KG_OK)
        rc = kg_buf_check(&all, "headers", err);
    if (rc == KG_OK)
        set = (kg_cuda_header_set){.v = headers, .n = n, .hash = kg_xxh128(all.data, all.len)};
    kg_buf_free(&all);
    return rc;
}

int kg_cuda_headers(kg_cuda_header_set *out, kg_error *err) {
    const kg_nvrtc *nvrtc;
    int rc = kg_nvrtc_find(&nvrtc, err);
    if (rc != KG_OK)
        return rc;
    pthread_mutex_lock(&lock);
    if (set.n == 0 && nvrtc->include[0] == '\0')
        rc = kg_fail(err, KG_EENV, "no cuda_fp16.h beside %s or in the toolkit: pip install %s",
                     nvrtc->path,
                     nvrtc->major >= 13 ? "'nvidia-cuda-runtime==13.*' 'nvidia-cuda-crt==13.*'"
                                        : "nvidia-cuda-runtime-cu12");
    else if (set.n == 0)
        rc = read_headers(nvrtc->include, err);
    if (rc == KG_OK)
        *out = set;
    pthread_mutex_unlock(&lock);
    return rc;
}
