/* Sections, each with how long it stays when the whole does not fit. */
#include "tune/prompt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"

#define DEFAULT_TOKENS 24000
#define MAX_TEXT ((size_t)4 << 20)
/* A section that cannot have this much is dropped whole: a few lines of a kernel help nobody. */
#define LEAST_PART 600
#define MAX_SECTIONS 32

/* Lower goes first. */
typedef enum keep {
    KEEP_KNOWLEDGE,
    KEEP_OTHERS, /* good Candidates but the best */
    KEEP_GRAPH,
    KEEP_IDEAS,
    KEEP_BEST,
    KEEP_LISTINGS,
    KEEP_LAST,
    KEEP_REFERENCE, /* whatever says what is to be computed */
    KEEP_ALWAYS
} keep;

typedef struct section {
    const char *title;
    kg_buf text;
    keep keep;
} section;

typedef struct sections {
    section at[MAX_SECTIONS];
    size_t n;
} sections;

struct kg_prompt {
    kg_buf system, contract, cases, reference, source, graph, machine, notes, knowledge;
    char *asks[4]; /* by kind */
    size_t max_tokens, ncases;
    kg_prompt_case *known;
};

static const char *const kinds[] = {"fresh", "refine", "ideas", "implement"};

const char *kg_prompt_kind_name(kg_prompt_kind kind) {
    return kinds[kind];
}

int kg_prompt_kind_parse(const char *name) {
    for (int i = 0; i < 4; i++)
        if (strcmp(kinds[i], name) == 0)
            return i;
    return -1;
}

size_t kg_prompt_tokens(size_t bytes) {
    return (bytes + 2) / 3;
}

/* --- reading --- */

/* The text on the functions that holes call; NULL for an Op without any. */
static const char *holes_of(const kg_op *op) {
    if (op->nholes == 0)
        return NULL;
    return strcmp(op->holes[0], "EPILOGUE") == 0 ? "epilogue.md" : "holes.md";
}

/* Appends a file; one that may be absent is no error then. */
static int read_into(const char *dir, const char *name, bool needed, kg_buf *out, kg_error *err) {
    char *path = kg_path_join(dir, name);
    int rc = path ? KG_OK : kg_fail(err, KG_ENOMEM, "path of %s", name);
    if (!rc && (needed || kg_is_file(path)))
        rc = kg_read_file(path, MAX_TEXT, out, err);
    free(path);
    return rc;
}

static int read_system(kg_prompt *p, const kg_prompt_task *t, kg_error *err) {
    const char *names[] = {"role.md", "plan.md", t->target == KG_CUDA ? "cuda.md" : "cpu.md",
                           holes_of(t->op), "answer.md"};
    int rc = KG_OK;
    for (size_t i = 0; !rc && i < sizeof names / sizeof *names; i++) {
        if (!names[i])
            continue;
        if (p->system.len)
            kg_buf_putc(&p->system, '\n');
        rc = read_into(t->prompts_dir, names[i], true, &p->system, err);
    }
    return rc ? rc : kg_buf_check(&p->system, "a prompt", err);
}

static int read_asks(kg_prompt *p, const kg_prompt_task *t, kg_error *err) {
    int rc = KG_OK;
    for (int i = 0; !rc && i < 4; i++) {
        char name[32];
        kg_buf text;
        kg_buf_init(&text, 0);
        snprintf(name, sizeof name, "%s.md", kinds[i]);
        rc = read_into(t->prompts_dir, name, true, &text, err);
        if (!rc && !(p->asks[i] = kg_buf_take(&text)))
            rc = kg_fail(err, KG_ENOMEM, "a prompt");
        kg_buf_free(&text);
    }
    return rc;
}

/* The contract on one line, and what the prompts folder knows of the Op. */
static int read_contract(kg_prompt *p, const kg_prompt_task *t, kg_json **root, kg_error *err) {
    char name[160];
    kg_buf text;
    kg_buf_init(&text, 0);
    int rc = read_into(t->task_dir, "op.json", true, &text, err);
    if (!rc)
        rc = kg_json_parse(text.data, text.len, "op.json", root, err);
    kg_buf_free(&text);
    if (rc)
        return rc;
    kg_buf_printf(&p->contract, "`%s`, target `%s`. Its contract:\n\n```json\n", t->op->schema,
                  t->target == KG_CUDA ? "cuda" : "cpu");
    kg_json_canonical(*root, &p->contract);
    kg_buf_puts(&p->contract, "\n```\n\n");
    snprintf(name, sizeof name, "op_%.120s.md", t->op->name);
    rc = read_into(t->prompts_dir, name, false, &p->contract, err);
    return rc ? rc : kg_buf_check(&p->contract, "a prompt", err);
}

/* The Python that the graph was made of, where the Task has it. */
static int read_source(kg_prompt *p, const kg_prompt_task *t, kg_error *err) {
    kg_buf text;
    kg_buf_init(&text, 0);
    int rc = read_into(t->task_dir, "source.txt", false, &text, err);
    if (!rc && text.len) {
        kg_buf_printf(&p->source, "```python\n%s```\n", text.data);
        rc = kg_buf_check(&p->source, "a prompt", err);
    }
    kg_buf_free(&text);
    return rc;
}

static int read_reference(kg_prompt *p, const kg_prompt_task *t, const kg_json *contract,
                          kg_error *err) {
    const kg_json *r = kg_json_get(contract, "reference");
    const char *kind = "", *call = "", *file = "";
    kg_json_str(kg_json_get(r, "kind"), "kind", &kind, NULL);
    if (strcmp(kind, "torch") == 0 && !kg_json_str(kg_json_get(r, "call"), "call", &call, NULL)) {
        kg_buf_printf(&p->reference, "`%s`\n", call);
        return kg_buf_check(&p->reference, "a prompt", err);
    }
    if (strcmp(kind, "source") != 0 || kg_json_str(kg_json_get(r, "file"), "file", &file, NULL))
        return read_source(p, t, err); /* an archive: the graph says what it computes */
    if (strcmp(file, "reference.py") != 0)
        return kg_fail(err, KG_EFORMAT, "op.json: reference.file is %.100s, not reference.py",
                       file);
    kg_buf_puts(&p->reference, "```python\n");
    int rc = read_into(t->task_dir, file, true, &p->reference, err);
    kg_buf_puts(&p->reference, "\n```\n");
    return rc ? rc : kg_buf_check(&p->reference, "a prompt", err);
}

static int read_cases(kg_prompt *p, const kg_prompt_task *t, kg_error *err) {
    char *dir = kg_path_join(t->task_dir, "cases");
    int rc = dir ? KG_OK : kg_fail(err, KG_ENOMEM, "path of the Cases");
    for (size_t i = 0; !rc && i < KG_MAX_CASES; i++) {
        char name[32];
        kg_buf text;
        kg_buf_init(&text, 0);
        snprintf(name, sizeof name, "%zu.json", i);
        rc = read_into(dir, name, i == 0, &text, err);
        if (!rc && !text.len)
            break;
        if (!rc)
            rc = kg_prompt_case_text(t->op, text.data, text.len, i,
                                     t->cases && i < t->ncases ? &t->cases[i] : NULL, &p->cases,
                                     err);
        kg_buf_free(&text);
        if (rc)
            break;
    }
    free(dir);
    return rc;
}

static int read_task(kg_prompt *p, const kg_prompt_task *t, kg_error *err) {
    kg_json *contract = NULL;
    kg_buf graph;
    kg_buf_init(&graph, 0);
    int rc = read_contract(p, t, &contract, err);
    if (!rc)
        rc = read_reference(p, t, contract, err);
    if (!rc)
        rc = read_cases(p, t, err);
    if (!rc)
        rc = read_into(t->task_dir, "graph.txt", false, &graph, err);
    if (!rc && graph.len) {
        kg_buf_printf(&p->graph, "```\n%s```\n", graph.data);
        rc = kg_buf_check(&p->graph, "a prompt", err);
    }
    kg_buf_free(&graph);
    kg_json_free(contract);
    return rc;
}

enum { TEXTS = 9 };

static kg_buf *text_at(kg_prompt *p, size_t i) {
    kg_buf *const all[TEXTS] = {&p->system, &p->contract, &p->cases, &p->reference, &p->source,
                                &p->graph,  &p->machine,  &p->notes, &p->knowledge};
    return all[i];
}

int kg_prompt_open(const kg_prompt_task *t, kg_prompt **out, kg_error *err) {
    kg_prompt *p = calloc(1, sizeof *p);
    if (!p)
        return kg_fail(err, KG_ENOMEM, "a prompt");
    for (size_t i = 0; i < TEXTS; i++)
        kg_buf_init(text_at(p, i), 0);
    p->max_tokens = t->max_tokens ? t->max_tokens : DEFAULT_TOKENS;
    p->ncases = t->cases ? t->ncases : 0;
    p->known = p->ncases ? calloc(p->ncases, sizeof *p->known) : NULL;
    int rc = p->ncases && !p->known ? kg_fail(err, KG_ENOMEM, "a prompt") : KG_OK;
    for (size_t i = 0; !rc && i < p->ncases; i++)
        p->known[i] = t->cases[i];
    if (!rc)
        rc = read_system(p, t, err);
    if (!rc)
        rc = read_asks(p, t, err);
    if (!rc)
        rc = read_task(p, t, err);
    if (!rc) {
        kg_buf_puts(&p->machine, t->machine ? t->machine : "");
        kg_buf_puts(&p->notes, t->notes ? t->notes : "");
        kg_buf_puts(&p->knowledge, t->knowledge ? t->knowledge : "");
        rc = kg_buf_check(&p->knowledge, "knowledge files", err);
    }
    if (rc) {
        kg_prompt_close(p);
        return rc;
    }
    *out = p;
    return KG_OK;
}

void kg_prompt_close(kg_prompt *p) {
    if (!p)
        return;
    for (size_t i = 0; i < TEXTS; i++)
        kg_buf_free(text_at(p, i));
    for (int i = 0; i < 4; i++)
        free(p->asks[i]);
    free(p->known);
    free(p);
}

const char *kg_prompt_system(const kg_prompt *p) {
    return p->system.data;
}

/* --- sections --- */

static kg_buf *add(sections *s, const char *title, keep k) {
    section *one = &s->at[s->n < MAX_SECTIONS - 1 ? s->n++ : s->n];
    *one = (section){.title = title, .keep = k};
    kg_buf_init(&one->text, MAX_TEXT);
    return &one->text;
}

static void add_text(sections *s, const char *title, keep k, const kg_buf *text) {
    if (text->len)
        kg_buf_add(add(s, title, k), text->data, text->len);
}

static void put_times(const kg_prompt *p, const kg_prompt_shown *c, kg_buf *b) {
    for (size_t i = 0; c->time_ns && i < (p->ncases ? p->ncases : 1); i++) {
        double t = c->time_ns[i];
        const kg_prompt_case *k = p->ncases ? &p->known[i] : NULL;
        if (t <= 0)
            continue;
        kg_buf_printf(b, "- Case %zu: ", i);
        kg_prompt_time(b, t);
        if (k && k->floor_ns > 0)
            kg_buf_printf(b, ", %.2f times the roofline%s", t / k->floor_ns,
                          t < k->floor_ns ? " (the machine was busy when that was measured)" : "");
        if (k && k->torch_ns > 0)
            kg_buf_printf(b, ", %.2f times as fast as eager torch", k->torch_ns / t);
        if (k && k->bytes > 0)
            kg_buf_printf(b, "; %.3g GB/s of what must move", k->bytes / t);
        if (k && k->flops > 0)
            kg_buf_printf(b, "; %.3g GFLOP/s", k->flops / t);
        kg_buf_putc(b, '\n');
    }
}

static void put_source(const kg_prompt_shown *c, kg_buf *b) {
    size_t n = strlen(c->text);
    kg_buf_printf(b, "Candidate %.12s:\n\n```c\n%s%s```\n", c->id, c->text,
                  n && c->text[n - 1] == '\n' ? "" : "\n");
}

static void put_verdict(const kg_prompt *p, const kg_prompt_shown *c, kg_buf *b) {
    bool passed = strcmp(c->verdict, "pass") == 0;
    kg_buf_printf(b, "Candidate %.12s: `%s`%s\n", c->id, c->verdict,
                  passed && !c->full ? " on the first inputs" : "");
    if (c->message && *c->message)
        kg_buf_printf(b, "\n```\n%s\n```\n", c->message);
    if (passed) {
        kg_buf_putc(b, '\n');
        put_times(p, c, b);
        kg_buf_puts(b, c->profile ? c->profile : "");
        kg_buf_puts(b, c->counters ? c->counters : "");
    }
}

static void add_last(const kg_prompt *p, const kg_prompt_state *s, sections *out) {
    if (s->last) {
        put_source(s->last, add(out, "## The last attempt", KEEP_LAST));
        put_verdict(p, s->last, add(out, "## Its verdict", KEEP_ALWAYS));
    }
    if (s->complaint && *s->complaint) {
        kg_buf *b = add(out, "## What of the last answer could not be used", KEEP_ALWAYS);
        kg_buf_puts(b, s->complaint);
    }
}

/* A table of all that are shown; then the sources, but for the one that is the last attempt. */
static void add_best(const kg_prompt *p, const kg_prompt_state *s, sections *out) {
    if (!s->nbest)
        return;
    kg_buf *b = add(out, "## The best so far", KEEP_ALWAYS);
    for (size_t i = 0; i < s->nbest && i < 8; i++) {
        kg_buf_printf(b, "Candidate %.12s\n", s->best[i].id);
        put_times(p, &s->best[i], b);
        if (s->best[i].counters && (!s->last || strcmp(s->last->id, s->best[i].id) != 0))
            kg_buf_puts(b, s->best[i].counters);
    }
    for (size_t i = 0; i < s->nbest && i < 8; i++)
        if (!s->last || strcmp(s->last->id, s->best[i].id) != 0)
            put_source(&s->best[i],
                       add(out, i == 0 ? "## The source of the best" : "## Another good one",
                           i == 0 ? KEEP_BEST : KEEP_OTHERS));
}

static void add_ideas(const kg_prompt_state *s, sections *out) {
    if (!s->nideas)
        return;
    kg_buf *b = add(out, "## Ideas so far, and what came of them", KEEP_IDEAS);
    /* The newest first: what is cut is the oldest. */
    for (size_t i = s->nideas; i-- > 0;)
        kg_buf_printf(b, "- %s\n  Result: %s\n", s->ideas[i].text,
                      s->ideas[i].result ? s->ideas[i].result : "not tried");
}

/* Replaces {NAME}. */
static void put_filled(kg_buf *b, const char *text, const char *name, const char *value) {
    const char *at = value ? strstr(text, name) : NULL;
    kg_buf_add(b, text, at ? (size_t)(at - text) : strlen(text));
    if (at)
        kg_buf_printf(b, "%s%s", value, at + strlen(name));
}

static void add_ask(const kg_prompt *p, const kg_prompt_state *s, sections *out) {
    char count[16];
    kg_buf *b = add(out, NULL, KEEP_ALWAYS);
    snprintf(count, sizeof count, "%d", s->count);
    if (s->kind == KG_PROMPT_IDEAS)
        put_filled(b, p->asks[s->kind], "{COUNT}", count);
    else
        put_filled(b, p->asks[s->kind], "{IDEA}", s->idea);
}

/* --- fitting --- */

static size_t length(const sections *s) {
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++)
        if (s->at[i].text.len)
            n += s->at[i].text.len + (s->at[i].title ? strlen(s->at[i].title) : 0) + 4;
    return n;
}

/* Cuts a text to at most n bytes at the end of a line, and says so. */
static void cut(kg_buf *b, size_t n) {
    static const char note[] = "\n(the rest is left out)\n";
    bool fenced = strstr(b->data, "```") != NULL;
    size_t room = n > sizeof note + 8 ? n - sizeof note - 8 : 0;
    while (room > 0 && b->data[room - 1] != '\n')
        room--;
    b->len = room;
    b->data[room] = '\0';
    if (fenced)
        kg_buf_puts(b, "```\n");
    kg_buf_puts(b, note);
}

/* Of the sections that go first, the last one: it is the worst of the good Candidates. */
static section *first_to_go(sections *s) {
    section *found = NULL;
    for (size_t i = 0; i < s->n; i++)
        if (s->at[i].text.len && s->at[i].keep < KEEP_ALWAYS &&
            (!found || s->at[i].keep <= found->keep))
            found = &s->at[i];
    return found;
}

static void fit(sections *s, size_t bytes) {
    for (size_t n; (n = length(s)) > bytes;) {
        section *one = first_to_go(s);
        if (!one)
            return; /* what always stays is more than the budget: it is sent all the same */
        size_t over = n - bytes, have = one->text.len;
        /* Half a kernel is worth nothing; half a list or a graph is. */
        bool divisible = one->keep == KEEP_KNOWLEDGE || one->keep == KEEP_GRAPH ||
                         one->keep == KEEP_IDEAS || one->keep == KEEP_REFERENCE ||
                         one->keep == KEEP_LISTINGS;
        if (divisible && have > over + LEAST_PART)
            cut(&one->text, have - over);
        else
            kg_buf_clear(&one->text);
    }
}

static void put_all(const sections *s, kg_buf *out) {
    for (size_t i = 0; i < s->n; i++) {
        const section *one = &s->at[i];
        if (!one->text.len)
            continue;
        if (out->len)
            kg_buf_putc(out, '\n');
        if (one->title)
            kg_buf_printf(out, "%s\n\n", one->title);
        kg_buf_add(out, one->text.data, one->text.len);
        if (out->len && out->data[out->len - 1] != '\n')
            kg_buf_putc(out, '\n');
    }
}

int kg_prompt_user(const kg_prompt *p, const kg_prompt_state *state, kg_buf *out, kg_error *err) {
    sections s = {.n = 0};
    int rc = KG_OK;
    add_text(&s, "## The Op", KEEP_ALWAYS, &p->contract);
    add_text(&s, "## Its reference", KEEP_REFERENCE, &p->reference);
    add_text(&s, "## Its source", KEEP_GRAPH, &p->source);
    /* Without a reference in Python the graph is the reference. */
    add_text(&s, "## Its graph", p->reference.len ? KEEP_GRAPH : KEEP_REFERENCE, &p->graph);
    add_text(&s, "## The Cases", KEEP_ALWAYS, &p->cases);
    add_text(&s, "## The machine", KEEP_ALWAYS, &p->machine);
    add_text(&s, "## From the user", KEEP_ALWAYS, &p->notes);
    add_text(&s, "## Knowledge", KEEP_KNOWLEDGE, &p->knowledge);
    add_best(p, state, &s);
    add_ideas(state, &s);
    if (state->kind != KG_PROMPT_IDEAS)
        add_last(p, state, &s);
    if (state->listings && *state->listings)
        kg_buf_puts(add(&s, "## Machine code that was asked for", KEEP_LISTINGS), state->listings);
    add_ask(p, state, &s);
    size_t bytes = p->max_tokens * 3, taken = p->system.len;
    fit(&s, bytes > taken ? bytes - taken : 0);
    for (size_t i = 0; !rc && i < s.n; i++)
        rc = kg_buf_check(&s.at[i].text, "a prompt", err);
    if (!rc) {
        put_all(&s, out);
        rc = kg_buf_check(out, "a prompt", err);
    }
    for (size_t i = 0; i < s.n; i++)
        kg_buf_free(&s.at[i].text);
    return rc;
}
