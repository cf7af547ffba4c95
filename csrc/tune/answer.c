/* Fenced blocks as CommonMark has them, and what each is. Models differ in how they dress an
 * answer, so a file without a fence, a comment before the plan and CRLF are put up with; what would
 * need guessing is not. */
#define _GNU_SOURCE
#include "tune/answer.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_text.h"

static const char opening[] = "/* kgen";
/* A prefix that is shorter may fit several Candidates. */
#define LEAST_PREFIX 6

typedef struct block {
    const char *info, *text;
    size_t ninfo, n;
    bool open; /* the answer ends within it */
} block;

typedef struct reader {
    const char *at, *end;
    kg_answer_want want;
    const kg_answer_bases *bases;
    kg_answer *out;
    const char *foreign, *word; /* of a block that is no Candidate */
    bool bare;                  /* code without a plan came */
    int rc;
} reader;

static const char *line_end(const char *p, const char *end) {
    const char *nl = memchr(p, '\n', (size_t)(end - p));
    return nl ? nl : end;
}

/* The run of fence characters that a line opens with; 0: none. */
static size_t fence(const char *line, const char *end, char *c) {
    const char *p = line;
    while (p < end && p - line < 4 && *p == ' ')
        p++;
    const char *from = p;
    if (p == end || p - line > 3 || (*p != '`' && *p != '~'))
        return 0;
    *c = *p;
    while (p < end && *p == *c)
        p++;
    return p - from >= 3 ? (size_t)(p - from) : 0;
}

static bool closes(const char *line, const char *end, char c, size_t count) {
    char have = 0;
    size_t n = fence(line, end, &have);
    if (n < count || have != c)
        return false;
    const char *p = line + strspn(line, " ") + n;
    while (p < end && isspace((unsigned char)*p))
        p++;
    return p == end;
}

/* The next block; text before it goes to the ideas when they are wanted. false: no more. */
static bool next_block(reader *r, block *b) {
    while (r->at < r->end) {
        const char *line = r->at, *stop = line_end(line, r->end);
        char c = 0;
        size_t count = fence(line, stop, &c);
        r->at = stop < r->end ? stop + 1 : r->end;
        if (!count)
            continue;
        const char *info = line + strspn(line, " ") + count;
        *b = (block){.info = info, .ninfo = (size_t)(stop - info), .text = r->at, .open = true};
        while (b->open && r->at < r->end) {
            line = r->at;
            stop = line_end(line, r->end);
            b->n = (size_t)(line - b->text);
            b->open = !closes(line, stop, c, count);
            r->at = stop < r->end ? stop + 1 : r->end;
        }
        if (b->open)
            b->n = (size_t)(r->end - b->text);
        return true;
    }
    return false;
}

/* --- files --- */

static bool clean(const char *text, size_t n, kg_buf *complaint) {
    size_t line = 1;
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)text[i];
        if ((c < 32 && c != '\n' && c != '\t') || c == 127) {
            kg_buf_printf(complaint, "- line %zu of a file holds the control character 0x%02x\n",
                          line, c);
            return false;
        }
        size_t step = c < 128 ? 1 : kg_utf8_len(text + i, n - i);
        if (!step) {
            kg_buf_printf(complaint, "- line %zu of a file is not UTF-8\n", line);
            return false;
        }
        line += c == '\n';
        i += step;
    }
    return true;
}

/* Past blank lines and line comments before the plan. */
static const char *past_comments(const char *p, const char *end) {
    for (;;) {
        while (p < end && isspace((unsigned char)*p))
            p++;
        if (end - p < 2 || strncmp(p, "//", 2) != 0)
            return p;
        p = line_end(p, end);
    }
}

static bool begins(const char *p, const char *end, const char *with) {
    size_t n = strlen(with);
    return (size_t)(end - p) >= n && strncmp(p, with, n) == 0;
}

static void add_file(reader *r, const char *text, size_t n, const char *parent) {
    kg_answer *a = r->out;
    const char *word = "", *foreign;
    if (n > KG_ANSWER_FILE_MAX) {
        kg_buf_printf(&a->complaint, "- a file of %zu bytes; 1 MiB is the most\n", n);
        return;
    }
    if (!clean(text, n, &a->complaint))
        return;
    foreign = kg_answer_foreign(text, n, &word);
    if (foreign) {
        kg_buf_printf(&a->complaint,
                      "- a file holds %s (`%s`): a Candidate is device code and a plan alone; kgen "
                      "launches it\n",
                      foreign, word);
        return;
    }
    if (a->nfiles == KG_ANSWER_FILES) {
        kg_buf_printf(&a->complaint, "- more than %d files; the rest is left out\n",
                      KG_ANSWER_FILES);
        return;
    }
    kg_answer_file *f = &a->files[a->nfiles];
    *f = (kg_answer_file){.text = malloc(n + 2)};
    if (!f->text) {
        r->rc = KG_ENOMEM;
        return;
    }
    memcpy(f->text, text, n);
    if (n == 0 || text[n - 1] != '\n')
        f->text[n++] = '\n';
    f->text[n] = '\0';
    f->n = n;
    memcpy(f->parent, parent, strlen(parent) + 1);
    a->nfiles++;
}

/* The text of the Candidate that a block names; NULL: there is none. */
static const char *find_base(const reader *r, const char *id, size_t nid, size_t *n,
                             char whole[65]) {
    char prefix[65] = "";
    bool hex = nid >= LEAST_PREFIX && nid <= 64;
    for (size_t i = 0; hex && i < nid; i++)
        hex = isxdigit((unsigned char)id[i]);
    if (hex)
        for (size_t i = 0; i < nid; i++)
            prefix[i] = (char)tolower((unsigned char)id[i]);
    return hex && r->bases ? r->bases->find(r->bases->ctx, prefix, n, whole) : NULL;
}

static void take_edit(reader *r, const block *b, const char *id, size_t nid) {
    kg_buf *complaint = &r->out->complaint;
    char whole[65] = "";
    size_t n = 0;
    const char *base = find_base(r, id, nid, &n, whole);
    if (!base) {
        kg_buf_printf(complaint,
                      "- an edit of `%.*s`: there is no such Candidate; name one by its id, as in "
                      "the prompt\n",
                      (int)(nid < 64 ? nid : 64), id);
        return;
    }
    kg_buf text;
    kg_buf_init(&text, KG_ANSWER_FILE_MAX);
    if (kg_answer_edit(base, n, b->text, b->n, &text, complaint)) {
        if (begins(text.data, text.data + text.len, opening))
            add_file(r, text.data, text.len, whole);
        else
            kg_buf_puts(complaint, "- after an edit the file does not open with `/* kgen`\n");
    }
    kg_buf_free(&text);
}

/* The id stands behind the word or in the block. */
static void take_listing(reader *r, const block *b, const char *id, size_t nid) {
    kg_answer *a = r->out;
    char whole[65] = "";
    size_t n = 0;
    const char *end = b->text + b->n;
    if (!nid) {
        for (id = b->text; id < end && isspace((unsigned char)*id);)
            id++;
        while (id + nid < end && !isspace((unsigned char)id[nid]))
            nid++;
    }
    if (!find_base(r, id, nid, &n, whole))
        kg_buf_printf(&a->complaint,
                      "- machine code of `%.*s`: there is no such Candidate; name one by its id, "
                      "as in the prompt\n",
                      (int)(nid < 64 ? nid : 64), id);
    else if (a->nlistings == KG_ANSWER_LISTINGS)
        kg_buf_printf(&a->complaint, "- machine code of more than %d Candidates\n",
                      KG_ANSWER_LISTINGS);
    else
        memcpy(a->listings[a->nlistings++], whole, sizeof whole);
}

/* --- ideas --- */

/* The text of a list item: "- x", "* x", "12. x", "3) x"; NULL: the line is none. */
static const char *item(const char *line, const char *end) {
    const char *p = line;
    while (p < end && (*p == ' ' || *p == '\t'))
        p++;
    const char *from = p;
    while (p < end && isdigit((unsigned char)*p))
        p++;
    bool marked = p > from ? p < end && (*p == '.' || *p == ')')
                           : p < end && (*p == '-' || *p == '*' || *p == '+');
    if (!marked || p + 1 >= end || (p[1] != ' ' && p[1] != '\t'))
        return NULL;
    for (p++; p < end && (*p == ' ' || *p == '\t');)
        p++;
    return p < end ? p : NULL;
}

static void push_idea(reader *r, kg_buf *idea) {
    kg_answer *a = r->out;
    while (idea->len > 0 && isspace((unsigned char)idea->data[idea->len - 1]))
        idea->data[--idea->len] = '\0';
    /* One that is too long is cut where a character ends. */
    if (idea->len > KG_ANSWER_IDEA_MAX) {
        size_t n = KG_ANSWER_IDEA_MAX;
        while (n > 0 && ((unsigned char)idea->data[n] & 0xC0) == 0x80)
            n--;
        idea->len = n;
        idea->data[n] = '\0';
    }
    if (idea->len && a->nideas < KG_ANSWER_IDEAS && clean(idea->data, idea->len, &a->complaint)) {
        char *text = strdup(idea->data);
        if (text)
            a->ideas[a->nideas++] = text;
        else
            r->rc = KG_ENOMEM;
    }
    kg_buf_clear(idea);
}

static void take_ideas(reader *r, const char *text, size_t n) {
    const char *end = text + n;
    kg_buf idea;
    kg_buf_init(&idea, 64 << 10);
    for (const char *line = text; line < end;) {
        const char *stop = line_end(line, end), *body = item(line, stop);
        bool blank = past_comments(line, stop) == stop && !body;
        if (body || blank)
            push_idea(r, &idea);
        if (body)
            kg_buf_add(&idea, body, (size_t)(stop - body));
        else if (!blank && idea.len) { /* a folded line */
            kg_buf_putc(&idea, ' ');
            kg_buf_add(&idea, line + strspn(line, " \t"),
                       (size_t)(stop - line) - strspn(line, " \t"));
        }
        line = stop < end ? stop + 1 : end;
    }
    push_idea(r, &idea);
    kg_buf_free(&idea);
}

/* --- blocks --- */

static bool word_is(const char *p, size_t n, const char *word) {
    return n == strlen(word) && strncmp(p, word, n) == 0;
}

static void take_block(reader *r, const block *b) {
    const char *end = b->text + b->n, *info = b->info, *stop = b->info + b->ninfo;
    while (info < stop && isspace((unsigned char)*info))
        info++;
    size_t n = 0, skip;
    while (info + n < stop && !isspace((unsigned char)info[n]))
        n++;
    for (skip = n; info + skip < stop && isspace((unsigned char)info[skip]);)
        skip++;
    size_t rest = (size_t)(stop - info) - skip;
    while (rest > 0 && isspace((unsigned char)info[skip + rest - 1]))
        rest--;
    const char *file = past_comments(b->text, end);
    bool is_edit = word_is(info, n, "edit"), is_file = begins(file, end, opening);
    if (b->open && (is_edit || is_file)) {
        kg_buf_puts(&r->out->complaint,
                    "- the answer ends in the middle of a file; answer shorter, "
                    "and close every block\n");
    } else if (is_edit) {
        take_edit(r, b, info + skip, rest);
    } else if (word_is(info, n, "sass") && !is_file) {
        take_listing(r, b, info + skip, rest);
    } else if (word_is(info, n, "ideas")) {
        take_ideas(r, b->text, b->n);
    } else if (is_file) {
        add_file(r, file, (size_t)(end - file), "");
    } else if (memmem(b->text, b->n, "<<<<<<< SEARCH", 14)) {
        kg_buf_puts(&r->out->complaint, "- an edit that names no Candidate: open its block with "
                                        "```edit ID\n");
    } else {
        const char *what = kg_answer_foreign(b->text, b->n, &r->word);
        r->foreign = what ? what : r->foreign;
        r->bare = r->bare || memmem(b->text, b->n, "void ", 5);
    }
}

/* When nothing could be used, what there was instead. */
static void complain(reader *r) {
    kg_buf *c = &r->out->complaint;
    if (r->out->nlistings)
        return;
    if (r->want == KG_WANT_IDEAS && r->out->nideas == 0)
        kg_buf_puts(c, "- no idea in the answer: give a list, one a line, in a block that opens "
                       "with ```ideas\n");
    if (r->want == KG_WANT_IDEAS || r->out->nfiles || c->len)
        return;
    if (r->foreign)
        kg_buf_printf(c,
                      "- the answer holds %s (`%s`) and no Candidate: a Candidate is device code "
                      "that opens with its plan in a comment, `/* kgen {...} */`\n",
                      r->foreign, r->word);
    else if (r->bare)
        kg_buf_puts(c, "- the answer holds code without a plan: the file must open with `/* kgen "
                       "{...} */`\n");
    else
        kg_buf_puts(c, "- no Candidate in the answer: give each file whole in a fenced block, "
                       "opening with `/* kgen`\n");
}

/* Without carriage returns before line ends. */
static int plain_lines(const char *text, size_t n, kg_buf *out, kg_error *err) {
    kg_buf_init(out, KG_ANSWER_MAX + 1);
    for (size_t i = 0; i < n;) {
        const char *cr = memchr(text + i, '\r', n - i);
        size_t part = cr ? (size_t)(cr - text) - i : n - i;
        kg_buf_add(out, text + i, part);
        i += part;
        if (i < n && !(i + 1 < n && text[i + 1] == '\n'))
            kg_buf_putc(out, '\r');
        i += i < n;
    }
    return kg_buf_check(out, "an answer", err);
}

int kg_answer_read(const char *text, size_t n, kg_answer_want want, const kg_answer_bases *bases,
                   kg_answer *out, kg_error *err) {
    kg_buf plain;
    block b;
    *out = (kg_answer){0};
    kg_buf_init(&out->complaint, 64 << 10);
    if (n > KG_ANSWER_MAX) {
        kg_buf_printf(&out->complaint, "- the answer has %zu bytes; %d MiB is the most\n", n,
                      KG_ANSWER_MAX >> 20);
        return KG_OK;
    }
    int rc = plain_lines(text, n, &plain, err);
    if (!rc) {
        const char *from = plain.data ? plain.data : "", *end = from + plain.len;
        reader r = {.at = from, .end = end, .want = want, .bases = bases, .out = out};
        const char *file = past_comments(from, end);
        if (want == KG_WANT_FILES && begins(file, end, opening))
            add_file(&r, file, (size_t)(end - file), "");
        else
            while (next_block(&r, &b))
                take_block(&r, &b);
        if (want == KG_WANT_IDEAS && out->nideas == 0)
            take_ideas(&r, from, plain.len);
        complain(&r);
        rc = r.rc ? kg_fail(err, r.rc, "an answer") : KG_OK;
    }
    kg_buf_free(&plain);
    if (rc)
        kg_answer_free(out);
    return rc;
}

void kg_answer_free(kg_answer *a) {
    for (size_t i = 0; i < a->nfiles; i++)
        free(a->files[i].text);
    for (size_t i = 0; i < a->nideas; i++)
        free(a->ideas[i]);
    kg_buf_free(&a->complaint);
    *a = (kg_answer){0};
}
