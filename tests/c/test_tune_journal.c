/* The journal: what was added is there after a crash, what was torn is gone, and anything else is
 * refused. */
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "contract_util.h"
#include "tune/journal.h"

static kg_journal *reopen(const char *dir) {
    kg_journal *j = NULL;
    kg_error err = {0};
    if (kg_journal_open(dir, &j, &err))
        FAIL("%s", err.msg);
    return j;
}

static void add(kg_journal *j, const char *kind, int64_t value) {
    kg_error err = {0};
    kg_json *o = kg_json_new_object();
    kg_json_set_int(o, "value", value);
    if (kg_journal_add(j, kind, o, &err))
        FAIL("%s", err.msg);
}

static int64_t value_at(const kg_journal *j, size_t i) {
    int64_t v = -1;
    kg_json_int(kg_json_get(kg_journal_at(j, i), "value"), "value", &v, NULL);
    return v;
}

static void append_raw(const char *text) {
    FILE *f = fopen(test_path("journal.jsonl"), "a");
    CHECK(f != NULL);
    fputs(text, f);
    fclose(f);
}

TEST(journal_keeps_what_was_added) {
    kg_journal *j = reopen(test_dir());
    CHECK_INT(kg_journal_size(j), 0);
    add(j, "verdict", 41);
    add(j, "rung", 42);
    kg_journal_close(j);
    j = reopen(test_dir());
    CHECK_INT(kg_journal_size(j), 2);
    CHECK_INT(value_at(j, 0), 41);
    CHECK_INT(value_at(j, 1), 42);
    add(j, "verdict", 43);
    CHECK_INT(value_at(j, 2), 43);
    kg_journal_close(j);
}

TEST(journal_cuts_a_torn_line) {
    kg_journal *j = reopen(test_dir());
    add(j, "verdict", 1);
    kg_journal_close(j);
    append_raw("{\"format\":1,\"n\":1,\"ki");
    j = reopen(test_dir());
    CHECK_INT(kg_journal_size(j), 1);
    add(j, "verdict", 2);
    kg_journal_close(j);
    j = reopen(test_dir());
    CHECK_INT(kg_journal_size(j), 2);
    CHECK_INT(value_at(j, 1), 2);
    kg_journal_close(j);
}

static void check_refused(const char *line, const char *part) {
    kg_journal *j = reopen(test_dir());
    kg_error err = {0};
    add(j, "verdict", 1);
    kg_journal_close(j);
    append_raw(line);
    j = NULL;
    CHECK_INT(kg_journal_open(test_dir(), &j, &err), KG_EFORMAT);
    CHECK(j == NULL);
    CHECK_HAS(err.msg, "line 2");
    CHECK_HAS(err.msg, part);
}

TEST(journal_refuses_a_broken_line) {
    check_refused("{\"format\":1,\n", "journal.jsonl");
}
TEST(journal_refuses_a_hole) {
    check_refused("{\"format\":1,\"kind\":\"x\",\"n\":7}\n", "n = 7");
}
TEST(journal_refuses_an_entry_without_kind) {
    check_refused("{\"format\":1,\"n\":1}\n", "kind");
}

TEST(journal_refuses_an_entry_without_sum) {
    check_refused("{\"format\":1,\"kind\":\"x\",\"n\":1}\n", "has no sum");
}

/* Whichever bit of a line is flipped, the journal is not taken for whole. */
TEST(journal_sees_every_flipped_bit) {
    kg_journal *j = reopen(test_dir());
    kg_error err = {0};
    kg_buf text;
    add(j, "verdict", 123456);
    add(j, "verdict", 7);
    kg_journal_close(j);
    kg_buf_init(&text, 0);
    CHECK_OK(kg_read_file(test_path("journal.jsonl"), 1 << 20, &text, &err), err);
    size_t first = strcspn(text.data, "\n");
    for (size_t bit = 0; bit < 8 * first; bit++) {
        text.data[bit / 8] ^= (char)(1 << bit % 8);
        CHECK_OK(kg_write_atomic(test_path("journal.jsonl"), text.data, text.len, &err), err);
        int rc = kg_journal_open(test_dir(), &j, &err);
        if (rc != KG_ECORRUPT && rc != KG_EFORMAT && rc != KG_EVERSION)
            FAIL("bit %zu gave %s", bit, kg_status_name(rc));
        text.data[bit / 8] ^= (char)(1 << bit % 8);
    }
    kg_buf_free(&text);
}

TEST(journal_refuses_a_newer_format) {
    kg_error err = {0};
    kg_journal *j = NULL;
    append_raw("{\"format\":2,\"kind\":\"x\",\"n\":0}\n");
    CHECK_INT(kg_journal_open(test_dir(), &j, &err), KG_EVERSION);
    CHECK_HAS(err.msg, "format 2");
}

TEST(journal_is_one_tuners) {
    kg_journal *first = reopen(test_dir()), *second = NULL;
    kg_error err = {0};
    CHECK_INT(kg_journal_open(test_dir(), &second, &err), KG_EBUSY);
    CHECK_HAS(err.msg, test_dir());
    kg_journal_close(first);
    second = reopen(test_dir());
    kg_journal_close(second);
}

TEST(journal_is_read_beside_its_tuner) {
    kg_journal *tuner = reopen(test_dir()), *reader = NULL;
    kg_error err = {0};
    kg_buf before, after;
    add(tuner, "verdict", 1);
    append_raw("{\"format\":1,\"ki"); /* it is writing */
    kg_buf_init(&before, 0);
    kg_buf_init(&after, 0);
    CHECK_OK(kg_read_file(test_path("journal.jsonl"), 1 << 20, &before, &err), err);
    CHECK_OK(kg_journal_peek(test_dir(), &reader, &err), err);
    CHECK_UINT(kg_journal_size(reader), 1);
    CHECK(kg_journal_add(reader, "verdict", kg_json_new_object(), &err) != KG_OK);
    CHECK_UINT(kg_journal_size(reader), 1);
    kg_journal_close(reader);
    CHECK_OK(kg_read_file(test_path("journal.jsonl"), 1 << 20, &after, &err), err);
    CHECK_STR(after.data, before.data);
    kg_journal_close(tuner);
    CHECK_INT(kg_journal_peek(test_path("nowhere"), &reader, &err), KG_ENOTFOUND);
    kg_buf_free(&before);
    kg_buf_free(&after);
}

/* The entry that there is no room for is not there, neither in the file nor in memory, and the next
 * one takes its number. */
TEST(journal_on_a_full_disk) {
    kg_error err = {0};
    kg_buf before, after;
    kg_journal *j = reopen(test_dir());
    kg_buf_init(&before, 0);
    kg_buf_init(&after, 0);
    add(j, "verdict", 1);
    CHECK_OK(kg_read_file(test_path("journal.jsonl"), 1 << 20, &before, &err), err);
    struct rlimit room = {.rlim_cur = before.len + 10, .rlim_max = RLIM_INFINITY};
    signal(SIGXFSZ, SIG_IGN);
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &room), 0);
    kg_json *o = kg_json_new_object();
    kg_json_set_int(o, "value", 2);
    CHECK_ERR(kg_journal_add(j, "verdict", o, &err), err, KG_EIO, "journal.jsonl");
    CHECK_UINT(kg_journal_size(j), 1);
    CHECK_OK(kg_read_file(test_path("journal.jsonl"), 1 << 20, &after, &err), err);
    CHECK_STR(after.data, before.data);
    room.rlim_cur = RLIM_INFINITY;
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &room), 0);
    add(j, "verdict", 3);
    kg_journal_close(j);
    j = reopen(test_dir());
    CHECK_UINT(kg_journal_size(j), 2);
    CHECK_INT(value_at(j, 1), 3);
    kg_journal_close(j);
    kg_buf_free(&before);
    kg_buf_free(&after);
}

/* ---- the golden files ---- */

#define GOLDEN "tests/golden/journal/"

/* The Run's journal is this golden file. */
static char *take_golden(const char *name) {
    kg_error err = {0};
    char path[128];
    snprintf(path, sizeof path, GOLDEN "%s", name);
    char *text = repo_text(path);
    CHECK_OK(kg_write_atomic(test_path("journal.jsonl"), text, strlen(text), &err), err);
    return text;
}

static char *canonical(const kg_json *value) {
    kg_buf b;
    kg_buf_init(&b, 0);
    kg_json_canonical(value, &b);
    return kg_buf_take(&b);
}

/* Added anew, an entry is written as it stands, but for its time and with it its sum. */
static void add_again(kg_journal *j, const kg_json *entry) {
    kg_error err = {0};
    double t;
    const char *kind, *sum;
    CHECK_OK(kg_json_double(kg_json_get(entry, "t"), "t", &t, &err), err);
    CHECK_OK(kg_json_str(kg_json_get(entry, "kind"), "kind", &kind, &err), err);
    CHECK_OK(kg_json_str(kg_json_get(entry, "sum"), "sum", &sum, &err), err);
    CHECK_OK(kg_journal_add(j, kind, kg_json_copy(entry), &err), err);
    kg_json *made = kg_json_copy(kg_journal_at(j, kg_journal_size(j) - 1));
    kg_json_set_double(made, "t", t);
    kg_json_set_str(made, "sum", sum);
    char *got = canonical(made), *want = canonical(entry);
    CHECK_STR(got, want);
    free(got);
    free(want);
    kg_json_free(made);
}

TEST(journal_golden_file) {
    char *text = take_golden("good.jsonl"), *at = text;
    kg_journal *j = reopen(test_dir()), *again = reopen(test_path("again"));
    CHECK_UINT(kg_journal_size(j), 11);
    for (size_t i = 0; i < kg_journal_size(j); i++) {
        char *line = canonical(kg_journal_at(j, i));
        size_t n = strlen(line);
        CHECK_MEM(at, line, n);
        CHECK_INT(at[n], '\n');
        at += n + 1;
        add_again(again, kg_journal_at(j, i));
        free(line);
    }
    CHECK_INT(*at, '\0');
    kg_journal_close(again);
    kg_journal_close(j);
    free(text);
}

TEST(journal_golden_torn_file) {
    char *torn = take_golden("torn.jsonl"), *good = repo_text(GOLDEN "good.jsonl");
    kg_journal *j = reopen(test_dir());
    CHECK_UINT(kg_journal_size(j), 3);
    kg_journal_close(j);
    kg_buf left;
    kg_error err = {0};
    kg_buf_init(&left, 0);
    CHECK_OK(kg_read_file(test_path("journal.jsonl"), 1 << 20, &left, &err), err);
    CHECK(left.len < strlen(torn) && left.data[left.len - 1] == '\n');
    CHECK_MEM(left.data, good, left.len);
    kg_buf_free(&left);
    free(torn);
    free(good);
}

TEST(journal_golden_bad_files) {
    char *messages = repo_text(GOLDEN "messages.txt"), *next = messages, want[640];
    int seen = 0;
    for (char *line; (line = next) != NULL && *line;) {
        kg_journal *j = NULL;
        kg_error err = {0};
        next = strchr(line, '\n');
        *next++ = '\0';
        if (*line == '#')
            continue;
        char *message = strchr(line, ' ');
        *message++ = '\0';
        char *text = take_golden(line);
        CHECK(kg_journal_open(test_dir(), &j, &err) != KG_OK);
        snprintf(want, sizeof want, "%s %s", test_path("journal.jsonl"), message);
        if (strcmp(err.msg, want) != 0)
            FAIL("%s: `%s`, not `%s`", line, err.msg, want);
        kg_buf after;
        kg_buf_init(&after, 0);
        CHECK_OK(kg_read_file(test_path("journal.jsonl"), 1 << 20, &after, &err), err);
        CHECK_STR(after.data, text); /* what is not understood is left as it is */
        kg_buf_free(&after);
        free(text);
        seen++;
    }
    CHECK_INT(seen, 8);
    free(messages);
}
