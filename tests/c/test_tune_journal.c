/* The journal: what was added is there after a crash, what was torn is gone, and anything else is
 * refused. */
#include <unistd.h>

#include "base/fs.h"
#include "test.h"
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
