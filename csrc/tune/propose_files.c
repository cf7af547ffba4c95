/* The proposer `files`: any agent or person is the model. A prompt is one file; an answer is a file
 * whose name begins with the prompt's id. It reads nothing but the answers folder, follows no link
 * out of it, and takes each name once. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/stop.h"
#include "sys/proc.h"
#include "tune/answer.h"
#include "tune/llm_json.h"
#include "tune/prompt.h"
#include "tune/propose.h"

/* An answer that was not renamed into place and has no .done mark is complete when it has not
 * changed for this long. */
#define QUIET_S 2
#define LOOK_MS 100
/* In the answers folder: nothing more will come. */
#define END_MARK "DONE"
/* Longer names would be cut where they name Candidates. */
#define MOST_NAME 120

typedef struct names {
    char **at;
    size_t n;
} names;

typedef struct proposer {
    char *prompts, *answers, *verdicts;
    kg_journal *journal;
    char op[128];
    names asked, taken;
} proposer;

static int push(names *list, const char *name, kg_error *err) {
    char **grown = realloc(list->at, (list->n + 1) * sizeof *grown);
    if (!grown)
        return kg_fail(err, KG_ENOMEM, "a name");
    list->at = grown;
    if (!(list->at[list->n] = strdup(name)))
        return kg_fail(err, KG_ENOMEM, "a name");
    list->n++;
    return KG_OK;
}

static bool has(const names *list, const char *name) {
    for (size_t i = 0; i < list->n; i++)
        if (!strcmp(list->at[i], name))
            return true;
    return false;
}

static void names_free(names *list) {
    for (size_t i = 0; i < list->n; i++)
        free(list->at[i]);
    free(list->at);
    *list = (names){0};
}

/* --- asking --- */

static int write_text(const char *dir, const char *name, const char *ending, const kg_buf *text,
                      kg_error *err) {
    char file[256];
    snprintf(file, sizeof file, "%.200s%s", name, ending);
    char *path = kg_path_join(dir, file);
    int rc =
        path ? kg_buf_check(text, "a prompt", err) : kg_fail(err, KG_ENOMEM, "path of a prompt");
    if (!rc)
        rc = kg_write_atomic(path, text->data ? text->data : "", text->len, err);
    free(path);
    return rc;
}

static int ask(void *ctx, const char *id, const char *system, const char *user, kg_error *err) {
    proposer *p = ctx;
    kg_buf text;
    kg_buf_init(&text, 0);
    kg_buf_printf(&text, "%s\n%s", system ? system : "", user);
    int rc = write_text(p->prompts, id, ".md", &text, err);
    kg_buf_free(&text);
    if (!rc && !has(&p->asked, id))
        rc = push(&p->asked, id, err);
    return rc;
}

/* --- answers --- */

static bool ends_in(const char *name, const char *ending) {
    size_t n = strlen(name), m = strlen(ending);
    return n >= m && !strcmp(name + n - m, ending);
}

static bool unfinished(const char *name) {
    return name[0] == '.' || ends_in(name, ".tmp") || ends_in(name, ".part") ||
           ends_in(name, ".done") || ends_in(name, "~") || ends_in(name, ".swp");
}

/* The prompt that a file answers: its name is the id, and whatever follows a dot or a dash. */
static const char *prompt_of(const proposer *p, const char *name) {
    for (size_t i = 0; i < p->asked.n; i++) {
        size_t n = strlen(p->asked.at[i]);
        if (!strncmp(name, p->asked.at[i], n) && (!name[n] || name[n] == '.' || name[n] == '-'))
            return p->asked.at[i];
    }
    return NULL;
}

static bool complete(int dir, const char *name) {
    char done[300];
    struct stat st, mark;
    struct timespec now;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
        return false;
    snprintf(done, sizeof done, "%.256s.done", name);
    if (!fstatat(dir, done, &mark, AT_SYMLINK_NOFOLLOW))
        return true;
    clock_gettime(CLOCK_REALTIME, &now);
    double age = (double)(now.tv_sec - st.st_mtim.tv_sec) +
                 (double)(now.tv_nsec - st.st_mtim.tv_nsec) * 1e-9;
    return age >= QUIET_S || age < -60; /* a clock that is wrong must not stop a Run */
}

/* The text of an answer; too large is an answer of no use, not an error. */
static int read_answer(const proposer *p, const char *name, char **text, bool *large,
                       kg_error *err) {
    kg_buf b;
    kg_buf_init(&b, 0);
    char *path = kg_path_join(p->answers, name);
    int rc = path ? kg_read_file(path, KG_ANSWER_MAX, &b, err)
                  : kg_fail(err, KG_ENOMEM, "path of an answer");
    *large = rc == KG_EOVERFLOW;
    if (*large)
        rc = KG_OK;
    for (size_t i = 0; !rc && i < b.len; i++)
        if (!b.data[i])
            b.data[i] = '\x01'; /* kept as what it is for the answer's reader: no text */
    if (!rc)
        *text = *large ? strdup("") : kg_buf_take(&b);
    if (!rc && !*text)
        rc = kg_fail(err, KG_ENOMEM, "an answer");
    kg_buf_free(&b);
    free(path);
    return rc;
}

static int keep(proposer *p, const char *prompt, const char *name, const char *text, bool large,
                kg_error *err) {
    kg_spend count = {.calls = 1, .tokens = (int64_t)kg_prompt_tokens(strlen(text))};
    kg_json *e = kg_json_new_object();
    kg_json_set_str(e, "op", p->op);
    kg_json_set_str(e, "prompt", prompt);
    kg_json_set_str(e, "name", name);
    kg_json_set_str(e, "text", text);
    if (large)
        kg_json_set_str(e, "finish", "length");
    kg_json_set(e, "charged", kg_spend_json(&count));
    int rc = kg_journal_add(p->journal, "answer", e, err);
    return rc ? rc : push(&p->taken, name, err);
}

/* Out of the agent's sight: it is answered. */
static void put_away(const proposer *p, const char *prompt) {
    char from[128], to[160];
    snprintf(from, sizeof from, "%.64s.md", prompt);
    snprintf(to, sizeof to, "answered/%.64s.md", prompt);
    char *a = kg_path_join(p->prompts, from), *b = kg_path_join(p->prompts, to);
    if (a && b)
        (void)rename(a, b);
    free(a);
    free(b);
}

static int take(proposer *p, const char *prompt, const char *name, kg_proposal *out,
                kg_error *err) {
    bool large = false;
    char *text = NULL;
    int rc = read_answer(p, name, &text, &large, err);
    if (!rc)
        rc = keep(p, prompt, name, text, large, err);
    free(text);
    if (rc)
        return rc;
    *out = (kg_proposal){.answered = true};
    snprintf(out->prompt, sizeof out->prompt, "%s", prompt);
    put_away(p, prompt);
    return KG_OK;
}

/* One look at the folder, names in order. */
static int look(proposer *p, kg_proposal *out, kg_error *err) {
    char **list = NULL;
    size_t n = 0;
    int dir = open(p->answers, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = dir < 0 ? kg_fail(err, KG_EIO, "open %s: %s", p->answers, strerror(errno))
                     : kg_list_dir(p->answers, &list, &n, err);
    bool found = false;
    for (size_t i = 0; !rc && !found && i < n; i++) {
        const char *prompt = unfinished(list[i]) ? NULL : prompt_of(p, list[i]);
        if (!prompt || strlen(list[i]) > MOST_NAME || has(&p->taken, list[i]) ||
            !complete(dir, list[i]))
            continue;
        rc = take(p, prompt, list[i], out, err);
        found = true;
    }
    struct stat st;
    if (!rc && !found && !fstatat(dir, END_MARK, &st, AT_SYMLINK_NOFOLLOW)) {
        *out = (kg_proposal){.done = true};
        found = true;
    }
    if (dir >= 0)
        close(dir);
    kg_free_names(list, n);
    return rc ? rc : found ? KG_OK : KG_ETIMEOUT;
}

static int collect(void *ctx, int wait_ms, kg_proposal *out, kg_error *err) {
    int64_t end = kg_now_ns() + (int64_t)wait_ms * 1000000;
    for (;;) {
        int rc = look(ctx, out, err);
        if (rc != KG_ETIMEOUT || kg_now_ns() >= end || kg_stop_wanted())
            return rc;
        nanosleep(&(struct timespec){.tv_nsec = LOOK_MS * 1000000}, NULL);
    }
}

/* Each life of a Run tells of all answers; a file that has the text already stays as it is. */
static bool says(const char *dir, const char *answer, const kg_buf *text) {
    char file[256];
    kg_buf there;
    kg_buf_init(&there, 0);
    snprintf(file, sizeof file, "%.200s.txt", answer);
    char *path = kg_path_join(dir, file);
    bool same = path && kg_is_file(path) && !kg_read_file(path, text->len + 1, &there, NULL) &&
                there.len == text->len &&
                (!text->len || memcmp(there.data, text->data, text->len) == 0);
    kg_buf_free(&there);
    free(path);
    return same;
}

static void told(void *ctx, const char *answer, const char *text) {
    const proposer *p = ctx;
    kg_buf b;
    kg_buf_init(&b, 0);
    kg_buf_puts(&b, text);
    if (!says(p->verdicts, answer, &b))
        (void)write_text(p->verdicts, answer, ".txt", &b, NULL); /* the next prompt says it, too */
    kg_buf_free(&b);
}

static void close_proposer(void *ctx) {
    proposer *p = ctx;
    free(p->prompts);
    free(p->answers);
    free(p->verdicts);
    names_free(&p->asked);
    names_free(&p->taken);
    free(p);
}

/* --- beginning --- */

static int remember(proposer *p, kg_error *err) {
    const size_t n = kg_journal_size(p->journal);
    int rc = KG_OK;
    for (size_t i = 0; !rc && i < n; i++) {
        const kg_json *e = kg_journal_at(p->journal, i);
        const char *kind = "", *op = "", *name = "";
        kg_json_str(kg_json_get(e, "kind"), "kind", &kind, NULL);
        kg_json_str(kg_json_get(e, "op"), "op", &op, NULL);
        if (strcmp(op, p->op) != 0)
            continue;
        if (!strcmp(kind, "answer") && !kg_json_str(kg_json_get(e, "name"), "name", &name, NULL))
            rc = push(&p->taken, name, err);
        if (!strcmp(kind, "prompt") && !kg_json_str(kg_json_get(e, "id"), "id", &name, NULL))
            rc = push(&p->asked, name, err);
    }
    return rc;
}

static void replace(kg_buf *text, const char *name, const char *value) {
    kg_buf out;
    const char *at, *from = text->data ? text->data : "";
    kg_buf_init(&out, 0);
    for (; (at = strstr(from, name)) != NULL; from = at + strlen(name)) {
        kg_buf_add(&out, from, (size_t)(at - from));
        kg_buf_puts(&out, value);
    }
    kg_buf_puts(&out, from);
    kg_buf_free(text);
    *text = out;
}

static int write_readme(const proposer *p, const char *agent_md, kg_error *err) {
    char quiet[16];
    kg_buf text;
    kg_buf_init(&text, 0);
    snprintf(quiet, sizeof quiet, "%d", QUIET_S);
    kg_buf_puts(&text, agent_md);
    replace(&text, "{PROMPTS}", p->prompts);
    replace(&text, "{ANSWERS}", p->answers);
    replace(&text, "{VERDICTS}", p->verdicts);
    replace(&text, "{QUIET}", quiet);
    replace(&text, "{DONE}", "DONE");
    int rc = write_text(p->prompts, "README", ".md", &text, err);
    kg_buf_free(&text);
    return rc;
}

static int make_folders(proposer *p, const char *run_dir, kg_error *err) {
    p->prompts = kg_path_join(run_dir, "prompts");
    p->answers = kg_path_join(run_dir, "answers");
    p->verdicts = kg_path_join(run_dir, "verdicts");
    char *answered = p->prompts ? kg_path_join(p->prompts, "answered") : NULL;
    int rc = p->answers && p->verdicts && answered ? kg_mkdirs(answered, err)
                                                   : kg_fail(err, KG_ENOMEM, "folders of a Run");
    if (!rc)
        rc = kg_mkdirs(p->answers, err);
    if (!rc)
        rc = kg_mkdirs(p->verdicts, err);
    free(answered);
    return rc;
}

int kg_propose_files(const char *op, const char *run_dir, const char *agent_md, size_t slots,
                     bool anew, kg_journal *journal, kg_proposer *out, kg_error *err) {
    proposer *p = calloc(1, sizeof *p);
    if (!p)
        return kg_fail(err, KG_ENOMEM, "a proposer");
    p->journal = journal;
    snprintf(p->op, sizeof p->op, "%s", op);
    int rc = make_folders(p, run_dir, err);
    char *mark = rc || !anew ? NULL : kg_path_join(p->answers, END_MARK);
    if (mark)
        (void)unlink(mark);
    free(mark);
    if (!rc)
        rc = remember(p, err);
    if (!rc)
        rc = write_readme(p, agent_md, err);
    if (rc) {
        close_proposer(p);
        return rc;
    }
    *out = (kg_proposer){.ctx = p,
                         .slots = slots,
                         .ask = ask,
                         .collect = collect,
                         .told = told,
                         .close = close_proposer};
    return KG_OK;
}

int kg_propose_nothing(const char *run_dir, kg_proposer *out, kg_error *err) {
    proposer *p = calloc(1, sizeof *p);
    if (!p)
        return kg_fail(err, KG_ENOMEM, "a proposer");
    int rc = make_folders(p, run_dir, err);
    if (rc) {
        close_proposer(p);
        return rc;
    }
    *out = (kg_proposer){.ctx = p, .told = told, .close = close_proposer};
    return KG_OK;
}
