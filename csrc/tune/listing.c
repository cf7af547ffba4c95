/* Reads what disassemblers print, line by line; a line that is neither function, label nor
 * instruction is passed over. Loops are found by branches that go back. Refuses to guess which loop
 * is hot: an innermost one with the most instructions comes first, and all are named. */
#define _GNU_SOURCE
#include "tune/listing.h"

#include <ctype.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sys/proc.h"

enum {
    EM_OFFSET = 18, /* e_machine of an ELF header */
    MACHINE_CUDA = 190,
    LEAST_LOOP = 3,   /* instructions: a trap behind the end is a loop of one */
    LONGEST_SPIN = 24 /* of a wait for an mbarrier, which is a loop, too */
};
#define MOST_TEXT ((int64_t)64 << 20)

typedef struct piece {
    const char *at;
    size_t n;
} piece;

typedef struct instruction {
    uint64_t address;
    piece text;
    size_t function;
} instruction;

typedef struct label {
    piece name;
    size_t at; /* the instruction behind it */
} label;

typedef struct loop {
    size_t from, to; /* the last instruction is in it */
} loop;

typedef struct listing {
    bool sass;
    piece *functions;
    instruction *code;
    label *labels;
    loop *loops;
    size_t nfunctions, ncode, nlabels, nloops;
    size_t cap_functions, cap_code, cap_labels, cap_loops;
} listing;

static void *more(void *list, size_t n, size_t *cap, size_t size, kg_error *err) {
    if (n < *cap)
        return list;
    size_t want = *cap ? 2 * *cap : 64;
    void *grown = realloc(list, want * size);
    if (!grown)
        kg_fail(err, KG_ENOMEM, "a listing");
    else
        *cap = want;
    return grown;
}

/* Room for one more; false: out of memory. */
#define PUSH(l, list, count, capacity, err)                                                        \
    do {                                                                                           \
        void *grown = more((l)->list, (l)->count, &(l)->capacity, sizeof *(l)->list, err);         \
        if (!grown)                                                                                \
            return KG_ENOMEM;                                                                      \
        (l)->list = grown;                                                                         \
    } while (0)

static piece trimmed(const char *at, const char *end) {
    while (at < end && isspace((unsigned char)*at))
        at++;
    while (at < end && isspace((unsigned char)end[-1]))
        end--;
    return (piece){at, (size_t)(end - at)};
}

static bool starts(piece p, const char *with) {
    size_t n = strlen(with);
    return p.n >= n && memcmp(p.at, with, n) == 0;
}

static bool same(piece a, piece b) {
    return a.n == b.n && memcmp(a.at, b.at, a.n) == 0;
}

/* --- reading --- */

static bool function_of(const listing *l, piece line, piece *name) {
    static const char said[] = "Function : ";
    if (!l->sass) { /* 0000000000001000 <sm>: */
        const char *open = memchr(line.at, '<', line.n);
        if (!line.n || !isxdigit((unsigned char)*line.at) || !open || line.n < 3 ||
            memcmp(line.at + line.n - 2, ">:", 2) != 0)
            return false;
        *name = (piece){open + 1, (size_t)(line.at + line.n - 2 - (open + 1))};
        return true;
    }
    if (starts(line, said)) {
        *name = (piece){line.at + sizeof said - 1, line.n - (sizeof said - 1)};
        return true;
    }
    if (!starts(line, ".text.") || line.at[line.n - 1] != ':')
        return false;
    *name = (piece){line.at + 6, line.n - 7};
    return true;
}

/* A line of SASS opens with its address as a comment and may end with its encoding as one; of
 * objdump "1003:  jge 1ae2 <sm+0xae2>". */
static bool instruction_of(const listing *l, piece line, instruction *out) {
    const char *p = line.at, *end = line.at + line.n;
    if (l->sass && !starts(line, "/*"))
        return false;
    p += l->sass ? 2 : 0;
    const char *digits = p;
    uint64_t address = 0;
    for (; p < end && isxdigit((unsigned char)*p); p++)
        address =
            address * 16 + (uint64_t)(isdigit((unsigned char)*p) ? *p - '0' : (*p | 32) - 'a' + 10);
    if (p == digits || end - p < 2 || (l->sass ? memcmp(p, "*/", 2) != 0 : *p != ':'))
        return false;
    p += l->sass ? 2 : 1;
    const char *note = l->sass ? memmem(p, (size_t)(end - p), "/*", 2) : NULL;
    piece text = trimmed(p, note ? note : end);
    if (l->sass && text.n && text.at[text.n - 1] == ';')
        text = trimmed(text.at, text.at + text.n - 1);
    *out = (instruction){address, text, l->nfunctions - 1};
    return text.n > 0;
}

static int read_line(listing *l, piece line, kg_error *err) {
    piece name;
    instruction one;
    if (function_of(l, line, &name)) {
        PUSH(l, functions, nfunctions, cap_functions, err);
        l->functions[l->nfunctions++] = name;
    } else if (l->sass && starts(line, ".L") && line.at[line.n - 1] == ':') {
        PUSH(l, labels, nlabels, cap_labels, err);
        l->labels[l->nlabels++] = (label){{line.at, line.n - 1}, l->ncode};
    } else if (l->nfunctions && instruction_of(l, line, &one)) {
        PUSH(l, code, ncode, cap_code, err);
        l->code[l->ncode++] = one;
    }
    return KG_OK;
}

static int read_text(listing *l, const char *text, size_t n, kg_error *err) {
    int rc = KG_OK;
    for (const char *p = text, *end = text + n; !rc && p < end;) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        const char *stop = nl ? nl : end;
        piece line = trimmed(p, stop);
        if (line.n)
            rc = read_line(l, line, err);
        p = nl ? nl + 1 : end;
    }
    return rc;
}

/* --- loops --- */

/* Whether an instruction is a branch of its own function, and whether it is always taken. */
static bool is_branch(const listing *l, piece t, bool *always) {
    const char *end = t.at + t.n, *p = t.at;
    *always = true;
    if (!l->sass) {
        *always = starts(t, "jmp") || starts(t, "b ") || starts(t, "b\t");
        return *p == 'j' || starts(t, "b.") || starts(t, "cbz") || starts(t, "cbnz") ||
               starts(t, "tbz") || starts(t, "tbnz") || *always;
    }
    if (*p == '@') {
        *always = false;
        while (p < end && !isspace((unsigned char)*p))
            p++;
    }
    return starts(trimmed(p, end), "BRA");
}

/* The instruction at or before `at` that a branch goes to; SIZE_MAX: it goes on. */
static size_t target_of(const listing *l, size_t at) {
    const instruction *i = &l->code[at];
    const char *end = i->text.at + i->text.n, *p = memmem(i->text.at, i->text.n, "`(", 2);
    if (p) {
        const char *close = memchr(p, ')', (size_t)(end - p));
        piece name = {p + 2, close ? (size_t)(close - p - 2) : 0};
        for (size_t k = 0; k < l->nlabels; k++)
            if (same(l->labels[k].name, name))
                return l->labels[k].at <= at ? l->labels[k].at : SIZE_MAX;
        return SIZE_MAX;
    }
    /* The last word, before objdump's "<name+offset>". */
    const char *note = memmem(i->text.at, i->text.n, " <", 2);
    piece t = trimmed(i->text.at, note ? note : end);
    const char *word = t.at + t.n;
    while (word > t.at && !isspace((unsigned char)word[-1]) && word[-1] != ',')
        word--;
    char *stop;
    char number[24];
    snprintf(number, sizeof number, "%.*s", (int)(t.at + t.n - word), word);
    uint64_t address = strtoull(number, &stop, 16);
    if (stop == number || *stop)
        return SIZE_MAX;
    for (size_t k = at + 1;
         k-- > 0 && l->code[k].function == i->function && l->code[k].address >= address;)
        if (l->code[k].address == address)
            return k;
    return SIZE_MAX;
}

static bool has(piece t, const char *word) {
    return memmem(t.at, t.n, word, strlen(word)) != NULL;
}

/* Short, waits, and computes nothing. */
static bool spins(const listing *l, size_t from, size_t to) {
    bool waits = false;
    for (size_t i = from; i <= to && to - from < LONGEST_SPIN; i++) {
        piece t = l->code[i].text;
        if (has(t, "MMA") || has(t, "FMA") || has(t, "LDS"))
            return false;
        waits = waits || has(t, "TRYWAIT") || has(t, "NANOSLEEP");
    }
    return waits;
}

/* Branches back to one place are one loop, up to the last. */
static int add_loop(listing *l, size_t from, size_t to, kg_error *err) {
    if (to - from + 1 < LEAST_LOOP || spins(l, from, to))
        return KG_OK;
    for (size_t i = 0; i < l->nloops; i++)
        if (l->loops[i].from == from) {
            l->loops[i].to = to;
            return KG_OK;
        }
    PUSH(l, loops, nloops, cap_loops, err);
    l->loops[l->nloops++] = (loop){from, to};
    return KG_OK;
}

/* Code that is rarely needed lies behind the end and jumps back from there for good: such a jump
 * closes a loop only where no other does. */
static int find_loops(listing *l, bool unconditional, kg_error *err) {
    int rc = KG_OK;
    for (size_t i = 0; !rc && i < l->ncode; i++) {
        bool always;
        if (!is_branch(l, l->code[i].text, &always) || (always && !unconditional))
            continue;
        size_t to = target_of(l, i);
        if (to != SIZE_MAX && l->code[to].function == l->code[i].function)
            rc = add_loop(l, to, i, err);
    }
    return rc;
}

static int by_size(const void *a, const void *b) {
    const loop *x = a, *y = b;
    size_t m = x->to - x->from, n = y->to - y->from;
    return m != n ? (m < n) - (m > n) : (x->from > y->from) - (x->from < y->from);
}

/* Those with no other in them, the largest first. */
static void keep_innermost(listing *l) {
    size_t n = 0;
    for (size_t i = 0; i < l->nloops; i++) {
        bool outer = false;
        for (size_t k = 0; k < l->nloops && !outer; k++)
            outer =
                k != i && l->loops[k].from >= l->loops[i].from && l->loops[k].to <= l->loops[i].to;
        if (!outer) {
            loop kept = l->loops[i];
            l->loops[i] = l->loops[n];
            l->loops[n++] = kept;
            /* What was swapped back is an outer one, and is compared with all the same. */
        }
    }
    l->nloops = n;
    if (n)
        qsort(l->loops, n, sizeof *l->loops, by_size);
}

/* --- writing --- */

/* In ASCII, runs of blanks as one. */
static void put_text(kg_buf *b, piece t) {
    bool blank = false;
    for (size_t i = 0; i < t.n; i++) {
        unsigned char c = (unsigned char)t.at[i];
        if (isspace(c)) {
            blank = true;
            continue;
        }
        if (blank)
            kg_buf_putc(b, ' ');
        blank = false;
        kg_buf_putc(b, c > 32 && c < 127 ? (char)c : '?');
    }
}

/* Instructions as long as there is room; false: some are left out. */
static bool put_code(const listing *l, size_t from, size_t to, size_t end, kg_buf *b) {
    for (size_t i = from; i <= to; i++) {
        if (b->len + l->code[i].text.n + 64 > end) {
            kg_buf_printf(b, "(%zu more instructions are left out)\n", to - i + 1);
            return false;
        }
        kg_buf_printf(b, "%6llx  ", (unsigned long long)l->code[i].address);
        put_text(b, l->code[i].text);
        kg_buf_putc(b, '\n');
    }
    return true;
}

/* The instructions of a function: from *from on, as many as are given back. */
static size_t extent(const listing *l, size_t function, size_t *from) {
    size_t n = 0;
    for (size_t i = l->ncode; i-- > 0;)
        if (l->code[i].function == function) {
            *from = i;
            n++;
        }
    return n;
}

/* What there is, in one line each; at most a third of the room. */
static void put_summary(const listing *l, size_t end, kg_buf *b) {
    size_t from = 0, start = b->len, room = start + (end > start ? (end - start) / 3 : 0);
    for (size_t f = 0; f < l->nfunctions && b->len < room; f++) {
        size_t n = extent(l, f, &from);
        if (!n)
            continue;
        put_text(b, l->functions[f]);
        kg_buf_printf(b, ": %zu instructions", n);
        const char *sep = "; innermost loops";
        for (size_t i = 0; i < l->nloops && b->len < room; i++) {
            const loop *p = &l->loops[i];
            if (l->code[p->from].function != f)
                continue;
            kg_buf_printf(b, "%s %llx..%llx (%zu)", sep,
                          (unsigned long long)l->code[p->from].address,
                          (unsigned long long)l->code[p->to].address, p->to - p->from + 1);
            sep = ",";
        }
        kg_buf_putc(b, '\n');
    }
}

static void put_loops(const listing *l, size_t end, kg_buf *b) {
    bool room = true;
    for (size_t i = 0; i < l->nloops && room && b->len + 400 < end; i++) {
        const loop *p = &l->loops[i];
        kg_buf_puts(b, "\nloop of ");
        put_text(b, l->functions[l->code[p->from].function]);
        kg_buf_puts(b, ":\n");
        room = put_code(l, p->from, p->to, end, b);
    }
}

static void put_functions(const listing *l, bool all, size_t end, kg_buf *b) {
    size_t from = 0, longest = 0, most = 0;
    for (size_t f = 0; f < l->nfunctions; f++) {
        size_t n = extent(l, f, &from);
        longest = n > most ? f : longest;
        most = n > most ? n : most;
    }
    bool room = true;
    for (size_t f = all ? 0 : longest; f < (all ? l->nfunctions : longest + 1) && room; f++) {
        size_t n = extent(l, f, &from);
        if (!n)
            continue;
        kg_buf_putc(b, '\n');
        put_text(b, l->functions[f]);
        kg_buf_puts(b, ":\n");
        room = put_code(l, from, from + n - 1, end, b);
    }
}

int kg_listing_text(const char *text, size_t n, bool sass, const kg_listing_options *o, kg_buf *out,
                    kg_error *err) {
    listing l = {.sass = sass};
    size_t end = out->len + (o && o->bytes ? o->bytes : (size_t)KG_LISTING_BYTES);
    int rc = read_text(&l, text, n, err);
    if (!rc && !l.ncode)
        rc = kg_fail(err, KG_EFORMAT, "a listing without instructions");
    if (!rc)
        rc = find_loops(&l, false, err);
    if (!rc && !l.nloops)
        rc = find_loops(&l, true, err);
    if (!rc) {
        keep_innermost(&l);
        put_summary(&l, end, out);
        if ((o && o->whole) || !l.nloops)
            put_functions(&l, o && o->whole, end, out);
        else
            put_loops(&l, end, out);
        rc = kg_buf_check(out, "a listing", err);
    }
    free(l.functions);
    free(l.code);
    free(l.labels);
    free(l.loops);
    return rc;
}

/* --- the disassembler --- */

static int write_aside(const void *image, size_t n, char path[512], kg_error *err) {
    const char *tmp = getenv("TMPDIR");
    snprintf(path, 512, "%.400s/kgen-listing-XXXXXX", tmp && *tmp == '/' ? tmp : "/tmp");
    int fd = mkstemp(path);
    if (fd < 0)
        return kg_fail(err, KG_EIO, "mkstemp %s: %s", path, strerror(errno));
    size_t done = 0;
    while (done < n) {
        ssize_t k = write(fd, (const char *)image + done, n - done);
        if (k <= 0)
            break;
        done += (size_t)k;
    }
    close(fd);
    if (done == n)
        return KG_OK;
    kg_fail(err, KG_EIO, "write %s: %s", path, strerror(errno));
    unlink(path);
    return KG_EIO;
}

/* PATH, and where CUDA's toolkit may be. */
static void search_path(char out[4096]) {
    const char *path = getenv("PATH"), *home = getenv("CUDA_HOME"), *other = getenv("CUDA_PATH");
    snprintf(out, 4096, "PATH=%.3000s:%.400s%s:%.400s%s:/usr/local/cuda/bin",
             path && *path ? path : "/usr/local/bin:/usr/bin:/bin", home ? home : "",
             home ? "/bin" : "", other ? other : "", other ? "/bin" : "");
}

static int disassemble(const char *const argv[], kg_buf *text, kg_error *err) {
    char path[4096];
    search_path(path);
    const char *const env[] = {path, "LC_ALL=C", NULL};
    const kg_limits limits = {
        .wall_ms = 20000, .cpu_s = 20, .memory = (int64_t)4 << 30, .output_bytes = MOST_TEXT};
    kg_exit ex;
    kg_buf_clear(text);
    int rc = kg_proc_run(argv, env, NULL, &limits, text, &ex, err);
    if (!rc && (ex.timed_out || ex.code != 0))
        rc = kg_fail(err, KG_EFORMAT, "%s %s: %.200s", argv[0],
                     ex.timed_out ? "took more than 20 s" : "failed", text->data ? text->data : "");
    return rc;
}

int kg_listing(const void *image, size_t n, const kg_listing_options *o, kg_buf *out,
               kg_error *err) {
    const unsigned char *bytes = image;
    char file[512];
    kg_buf text;
    if (n < 64 || memcmp(bytes, "\177ELF", 4) != 0)
        return kg_fail(err, KG_EFORMAT, "an image that is no ELF file");
    bool sass = bytes[EM_OFFSET] + 256 * bytes[EM_OFFSET + 1] == MACHINE_CUDA;
    int rc = write_aside(image, n, file, err);
    if (rc)
        return rc;
    kg_buf_init(&text, (size_t)MOST_TEXT + 1);
    if (!sass) {
        rc = disassemble((const char *[]){"objdump", "-d", "--no-show-raw-insn", file, NULL}, &text,
                         err);
        if (rc == KG_EENV)
            kg_fail(err, rc, "no disassembler: objdump (binutils) is not on PATH");
    } else {
        rc = disassemble((const char *[]){"nvdisasm", "-c", file, NULL}, &text, err);
        if (rc == KG_EENV)
            rc = disassemble((const char *[]){"cuobjdump", "-sass", file, NULL}, &text, err);
        if (rc == KG_EENV)
            kg_fail(err, rc,
                    "no disassembler: neither nvdisasm nor cuobjdump (of CUDA's toolkit) is on "
                    "PATH, in CUDA_HOME or in /usr/local/cuda");
    }
    unlink(file);
    if (!rc)
        rc = kg_listing_text(text.data ? text.data : "", text.len, sass, o, out, err);
    kg_buf_free(&text);
    return rc;
}
