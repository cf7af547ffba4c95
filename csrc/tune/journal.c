/* The journal of a Run. It holds facts, never state that must be changed: whoever resumes reads it
 * from the start. It refuses to guess about a damaged file: only a torn last line is repaired. */
#include "tune/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/hash.h"

/* 4 GiB of journal is a mistake somewhere else. */
#define MAX_BYTES ((size_t)4 << 30)

struct kg_journal {
    char *path;
    int fd, lock;
    pthread_mutex_t mutex; /* around what follows, and around the file */
    bool unsynced;
    kg_json **entries;
    size_t n, cap;
};

static int keep(kg_journal *j, kg_json *entry, kg_error *err) {
    if (j->n == j->cap) {
        size_t cap = j->cap ? 2 * j->cap : 64;
        kg_json **grown = realloc(j->entries, cap * sizeof *grown);
        if (!grown)
            return kg_fail(err, KG_ENOMEM, "journal of %zu entries", cap);
        j->entries = grown;
        j->cap = cap;
    }
    j->entries[j->n++] = entry;
    return KG_OK;
}

int kg_journal_sum(kg_json *entry, char sum[17], kg_error *err) {
    kg_buf text;
    kg_buf_init(&text, 0);
    kg_json_set_str(entry, "sum", "");
    kg_json_canonical(entry, &text);
    int rc = kg_buf_check(&text, "journal entry", err);
    if (!rc)
        snprintf(sum, 17, "%016llx", (unsigned long long)kg_xxh64(text.data, text.len));
    if (!rc && !kg_json_set_str(entry, "sum", sum))
        rc = kg_fail(err, KG_ENOMEM, "journal entry");
    kg_buf_free(&text);
    return rc;
}

static int check_sum(kg_json *entry, const char *what, kg_error *err) {
    char have[24] = "", want[17] = "";
    const char *text = "";
    if (kg_json_str(kg_json_get(entry, "sum"), "sum", &text, NULL))
        return kg_fail(err, KG_EFORMAT,
                       "%s: has no sum, so it was changed or written by an older kgen", what);
    snprintf(have, sizeof have, "%s", text);
    int rc = kg_journal_sum(entry, want, err);
    if (!rc && strcmp(have, want) != 0)
        rc = kg_fail(err, KG_ECORRUPT, "%s: its sum is %s, not %s: the line was changed", what,
                     want, have);
    return rc;
}

static int check_entry(const kg_journal *j, kg_json *entry, const char *what, kg_error *err) {
    int64_t n;
    const char *kind;
    int rc = kg_json_format(entry, what, 1, err);
    if (rc) /* it names the line itself */
        return rc;
    rc = kg_json_int(kg_json_get(entry, "n"), "n", &n, err);
    if (!rc)
        rc = kg_json_str(kg_json_get(entry, "kind"), "kind", &kind, err);
    if (rc)
        return err ? kg_fail_prefix(err, rc, "%s", what) : rc;
    if (n != (int64_t)j->n)
        return kg_fail(err, KG_EFORMAT, "%s: entry has n = %lld where %zu must follow", what,
                       (long long)n, j->n);
    return check_sum(entry, what, err);
}

static int read_line(kg_journal *j, const char *line, size_t n, size_t number, kg_error *err) {
    char what[4200];
    kg_json *entry = NULL;
    snprintf(what, sizeof what, "%s line %zu", j->path, number);
    int rc = kg_json_parse(line, n, what, &entry, err);
    if (!rc)
        rc = check_entry(j, entry, what, err);
    if (!rc)
        rc = keep(j, entry, err);
    if (rc)
        kg_json_free(entry);
    return rc;
}

/* Reads what is there; *good is the length of whole lines. */
static int read_all(kg_journal *j, size_t *good, kg_error *err) {
    kg_buf text;
    size_t pos = 0, number = 1;
    kg_buf_init(&text, MAX_BYTES);
    int rc = kg_read_file(j->path, MAX_BYTES, &text, err);
    while (!rc && pos < text.len) {
        const char *end = memchr(text.data + pos, '\n', text.len - pos);
        if (!end)
            break;
        size_t n = (size_t)(end - (text.data + pos));
        rc = read_line(j, text.data + pos, n, number++, err);
        pos += n + 1;
    }
    *good = pos;
    kg_buf_free(&text);
    return rc;
}

static int open_files(kg_journal *j, const char *run_dir, kg_error *err) {
    char *lock = kg_path_join(run_dir, ".lock");
    int rc =
        lock ? kg_lock_file(lock, 0, &j->lock, err) : kg_fail(err, KG_ENOMEM, "path of a lock");
    free(lock);
    if (rc)
        return rc == KG_EBUSY ? kg_fail_prefix(err, rc, "Run %s", run_dir) : rc;
    j->fd = open(j->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (j->fd < 0)
        return kg_fail(err, KG_EIO, "open %s: %s", j->path, strerror(errno));
    return KG_OK;
}

int kg_journal_open(const char *run_dir, kg_journal **out, kg_error *err) {
    size_t good = 0;
    kg_journal *j = calloc(1, sizeof *j);
    if (!j)
        return kg_fail(err, KG_ENOMEM, "journal of %s", run_dir);
    j->fd = j->lock = -1;
    pthread_mutex_init(&j->mutex, NULL);
    j->path = kg_path_join(run_dir, "journal.jsonl");
    int rc = j->path ? kg_mkdirs(run_dir, err) : kg_fail(err, KG_ENOMEM, "path of a journal");
    if (!rc)
        rc = open_files(j, run_dir, err);
    if (!rc)
        rc = read_all(j, &good, err);
    if (!rc && ftruncate(j->fd, (off_t)good))
        rc = kg_fail(err, KG_EIO, "truncate %s: %s", j->path, strerror(errno));
    if (rc) {
        kg_journal_close(j);
        return rc;
    }
    *out = j;
    return KG_OK;
}

int kg_journal_peek(const char *run_dir, kg_journal **out, kg_error *err) {
    size_t whole = 0;
    kg_journal *j = calloc(1, sizeof *j);
    if (!j)
        return kg_fail(err, KG_ENOMEM, "journal of %s", run_dir);
    j->fd = j->lock = -1;
    pthread_mutex_init(&j->mutex, NULL);
    j->path = kg_path_join(run_dir, "journal.jsonl");
    int rc = j->path ? read_all(j, &whole, err) : kg_fail(err, KG_ENOMEM, "path of a journal");
    if (rc) {
        kg_journal_close(j);
        return rc;
    }
    *out = j;
    return KG_OK;
}

void kg_journal_close(kg_journal *j) {
    if (!j)
        return;
    for (size_t i = 0; i < j->n; i++)
        kg_json_free(j->entries[i]);
    free(j->entries);
    if (j->fd >= 0) {
        if (j->unsynced)
            (void)fdatasync(j->fd);
        close(j->fd);
    }
    if (j->lock >= 0)
        kg_unlock_file(j->lock);
    pthread_mutex_destroy(&j->mutex);
    free(j->path);
    free(j);
}

size_t kg_journal_size(const kg_journal *j) {
    pthread_mutex_t *mutex = (pthread_mutex_t *)&j->mutex;
    pthread_mutex_lock(mutex);
    size_t n = j->n;
    pthread_mutex_unlock(mutex);
    return n;
}

const kg_json *kg_journal_at(const kg_journal *j, size_t i) {
    pthread_mutex_t *mutex = (pthread_mutex_t *)&j->mutex;
    pthread_mutex_lock(mutex);
    const kg_json *entry = i < j->n ? j->entries[i] : NULL;
    pthread_mutex_unlock(mutex);
    return entry;
}

/* What whoever resumes makes of the other entries anew need not wait for the disk, which takes
 * milliseconds; it is written in order, and the next entry that is synced takes it along. */
static bool can_wait(const char *kind) {
    static const char *const all[] = {"rung", "candidate", "judged", "tuned"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strcmp(kind, all[i]) == 0)
            return true;
    return false;
}

static int append(kg_journal *j, const kg_json *entry, bool sync, kg_error *err) {
    kg_buf line;
    kg_buf_init(&line, 0);
    kg_json_canonical(entry, &line);
    kg_buf_putc(&line, '\n');
    int rc = kg_buf_check(&line, "journal entry", err);
    if (!rc)
        rc = sync ? kg_append_sync(j->fd, line.data, line.len, j->path, err)
                  : kg_append(j->fd, line.data, line.len, j->path, err);
    if (!rc)
        j->unsynced = !sync;
    kg_buf_free(&line);
    return rc;
}

static int add_entry(kg_journal *j, const char *kind, kg_json *fields, kg_error *err) {
    struct timespec now;
    char sum[17];
    clock_gettime(CLOCK_REALTIME, &now);
    kg_json_set_int(fields, "format", 1);
    kg_json_set_int(fields, "n", (int64_t)j->n);
    kg_json_set_str(fields, "kind", kind);
    if (!kg_json_set_double(fields, "t",
                            (double)now.tv_sec + (double)(now.tv_nsec / 1000000) * 1e-3)) {
        kg_json_free(fields);
        return kg_fail(err, KG_ENOMEM, "journal entry %s", kind);
    }
    int rc = kg_journal_sum(fields, sum, err);
    if (!rc)
        rc = keep(j, fields, err);
    if (rc) {
        kg_json_free(fields);
        return rc;
    }
    rc = append(j, fields, !can_wait(kind), err);
    if (rc) {
        j->n--;
        kg_json_free(fields);
    }
    return rc;
}

int kg_journal_add(kg_journal *j, const char *kind, kg_json *fields, kg_error *err) {
    pthread_mutex_lock(&j->mutex);
    int rc = add_entry(j, kind, fields, err);
    pthread_mutex_unlock(&j->mutex);
    return rc;
}
