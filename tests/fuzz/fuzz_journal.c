/* Journals. Fields of an entry (text that opens with a brace), added, read back and added to again,
 * are the same; other text is a journal as a crash or a person left it, which is read or refused,
 * and once it was read, reads the same again. */
#define _GNU_SOURCE
#include "fuzz_folder.h"

#include <string.h>

#include "tune/journal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char file[64];

static void prepare(void) {
    fuzz_folder_make();
    snprintf(file, sizeof file, "%s/journal.jsonl", fuzz_folder);
}

/* How many entries are there, and the last as text; -1: it is refused. */
static long read_back(kg_buf *last) {
    kg_journal *j;
    kg_error err;
    if (kg_journal_open(fuzz_folder, &j, &err) != KG_OK)
        return -1;
    long n = (long)kg_journal_size(j);
    if (n > 0 && last)
        kg_json_canonical(kg_journal_at(j, (size_t)n - 1), last);
    kg_journal_close(j);
    return n;
}

static void add_and_read(kg_json *fields) {
    kg_journal *j;
    kg_error err;
    kg_buf one, two;
    kg_buf_init(&one, 0);
    kg_buf_init(&two, 0);
    unlink(file);
    if (kg_journal_open(fuzz_folder, &j, &err) != KG_OK)
        abort();
    bool added = kg_journal_add(j, "rung", fields, &err) == KG_OK;
    if (added)
        kg_json_canonical(kg_journal_at(j, 0), &one);
    kg_journal_close(j);
    if (read_back(&two) != (added ? 1 : 0) || one.len != two.len ||
        (one.len > 0 && memcmp(one.data, two.data, one.len) != 0))
        __builtin_trap();
    kg_buf_free(&one);
    kg_buf_free(&two);
}

static void read_twice(const uint8_t *data, size_t size) {
    fuzz_write(file, data, size);
    long n = read_back(NULL);
    if (read_back(NULL) != n)
        __builtin_trap();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    kg_json *fields = NULL;
    kg_error err;
    prepare();
    if (size > 0 && data[0] == '{' &&
        kg_json_parse((const char *)data, size, "fields", &fields, &err) == KG_OK)
        add_and_read(fields); /* what opens so is an object */
    else
        read_twice(data, size);
    return 0;
}
