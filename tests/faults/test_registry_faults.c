/* Whatever fails, and wherever the process dies, while a registry is changed: it serves what it
 * served, or the new state, and the same change goes through afterwards. */
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/log.h"
#include "faults.h"
#include "registry_util.h"

enum { MOST = 100000 };

static char warned[8192];

static void collect(void *ctx, kg_log_level level, const char *message) {
    (void)ctx;
    if (level >= KG_LOG_WARNING && strlen(warned) + strlen(message) + 2 < sizeof warned)
        strncat(warned, message, sizeof warned - strlen(warned) - 1);
}

/* A registry with source 1 for size 8, which was replaced by 2 and then rolled back to, so that
 * every change below has something to do. */
static void made_anew(char a[65], char b[65]) {
    kg_error err = {0};
    size_t moved;
    kg_registry *r = NULL;
    CHECK_OK(kg_remove_tree(test_path("generated"), &err), err);
    promote(1, 8, a);
    promote(2, 8, b);
    CHECK_OK(kg_registry_open(test_path("generated"), false, &r, &err), err);
    CHECK_OK(kg_registry_rollback(r, "twice", "v1", &moved, &err), err);
    kg_registry_close(r);
    check_served(8, a);
}

static unsigned wanted_kinds, wanted_n;
static fault_mode wanted_mode;

static void arm(void) {
    fault_arm(wanted_kinds, wanted_n, wanted_mode);
}

/* The changes arm the fault once their arguments are made. */
static int promote_third(kg_error *err) {
    int version;
    char id[65];
    registry_before_change = arm;
    int rc = promote_as(test_path("generated"), 3, 8, "pass", &version, id, err);
    registry_before_change = NULL;
    fault_disarm();
    return rc;
}

static int roll_forward(kg_error *err) {
    size_t moved;
    kg_registry *r = NULL;
    const char *root = test_path("generated");
    arm();
    int rc = kg_registry_open(root, false, &r, err);
    if (rc == KG_OK)
        rc = kg_registry_rollback(r, "twice", "v2", &moved, err);
    kg_registry_close(r);
    fault_disarm();
    return rc;
}

static int collect_garbage(kg_error *err) {
    kg_registry *r = NULL;
    kg_buf report;
    const char *root = test_path("generated");
    kg_buf_init(&report, 0);
    arm();
    int rc = kg_registry_open(root, false, &r, err);
    if (rc == KG_OK)
        rc = kg_registry_gc(r, false, &report, err);
    kg_registry_close(r);
    kg_buf_free(&report);
    fault_disarm();
    return rc;
}

typedef struct change {
    const char *name;
    int (*run)(kg_error *err);
    int after; /* which source is served for size 8 when it is done: 1, 2 or 3 */
} change;

static const change changes[] = {
    {"promote", promote_third, 3}, {"roll back", roll_forward, 2}, {"gc", collect_garbage, 1}};

static void id_of_source(int k, char id[65]) {
    kg_error err = {0};
    kg_plan *plan = NULL;
    kg_tuning t;
    kg_op *op = read_op();
    char *source = source_of(k);
    CHECK_OK(kg_plan_from_source(source, strlen(source), "twice.c", op, &plan, &err), err);
    kg_tuning_default(plan, &t);
    CHECK_OK(kg_candidate_id(source, strlen(source), plan, &t, id, &err), err);
    kg_plan_free(plan);
    kg_op_free(op);
    free(source);
}

/* Serves the old or the new, whole; then the change goes through. */
static void check_after(const change *c, const char *a, unsigned n, bool failed) {
    char now[65], want[65];
    kg_error err = {0};
    id_of_source(c->after, want);
    served(8, now);
    if (strcmp(now, a) != 0 && strcmp(now, want) != 0)
        FAIL("%s, fault %u: serves %.12s, neither the old %.12s nor the new %.12s", c->name, n, now,
             a, want);
    if (!failed)
        CHECK_STR(now, want);
    int rc = c->run(&err);
    if (rc != KG_OK)
        FAIL("%s again after fault %u: %s", c->name, n, err.msg);
    check_served(8, want);
}

static void fails_at_every(const change *c, unsigned kinds, fault_mode mode, unsigned stride) {
    char a[65], b[65];
    for (unsigned n = 1;; n += stride) {
        kg_error err = {0};
        made_anew(a, b);
        wanted_kinds = kinds, wanted_n = n, wanted_mode = mode;
        int rc = c->run(&err);
        bool met = fault_disarm();
        wanted_kinds = 0;
        if (rc != KG_OK && (!met || err.msg[0] == '\0'))
            FAIL("%s, fault %u: %s without a reason: \"%s\"", c->name, n, kg_status_name(rc),
                 err.msg);
        if (rc != KG_OK && kinds == FAULT_MALLOC && rc != KG_ENOMEM)
            FAIL("%s, fault %u: %s: %s", c->name, n, kg_status_name(rc), err.msg);
        check_after(c, a, n, rc != KG_OK);
        if (!met) {
            CHECK(n > 1 || c->run != promote_third); /* gc renames and writes nothing */
            return;
        }
        CHECK(n < MOST);
    }
}

TEST_WITHIN(registry_when_the_disk_fails_once, 300) {
    for (size_t i = 0; i < 3; i++)
        for (unsigned kind = FAULT_WRITE; kind <= FAULT_RENAME; kind <<= 1)
            fails_at_every(&changes[i], kind, FAULT_ONCE, 1);
}

TEST_WITHIN(registry_when_the_disk_stays_broken, 300) {
    for (size_t i = 0; i < 3; i++)
        fails_at_every(&changes[i], FAULT_DISK, FAULT_EVER, fault_stride(3));
}

TEST_WITHIN(registry_without_memory, 600) {
    kg_log_set_sink(collect, NULL);
    for (size_t i = 0; i < 3; i++)
        fails_at_every(&changes[i], FAULT_MALLOC, FAULT_ONCE, fault_stride(17));
    kg_log_set_sink(NULL, NULL);
}

/* Killed in place of every write, sync and rename. */
TEST_WITHIN(registry_killed_anywhere, 300) {
    for (size_t i = 0; i < 3; i++) {
        for (unsigned n = 1;; n++) {
            char a[65], b[65];
            made_anew(a, b);
            pid_t pid = fork();
            if (pid == 0) {
                kg_error err = {0};
                wanted_kinds = FAULT_DISK, wanted_n = n, wanted_mode = FAULT_KILL;
                _exit(changes[i].run(&err) == KG_OK ? 0 : 1);
            }
            int status;
            CHECK_INT(waitpid(pid, &status, 0), pid);
            bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
            CHECK(killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
            check_after(&changes[i], a, n, killed);
            if (!killed)
                break;
        }
    }
}

/* What an index gives, or "" when it is refused: never something else. */
TEST_WITHIN(index_when_anything_fails, 300) {
    static const unsigned kinds[] = {FAULT_WRITE, FAULT_SYNC, FAULT_RENAME, FAULT_MALLOC};
    char a[65], b[65], root[512];
    snprintf(root, sizeof root, "%s", test_path("generated"));
    kg_log_set_sink(collect, NULL);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        unsigned stride = kinds[k] == FAULT_MALLOC ? fault_stride(5) : 1;
        made_anew(a, b);
        bool met = true;
        for (unsigned n = 1; met; n += stride) {
            kg_error err = {0};
            fault_arm(kinds[k], n, FAULT_ONCE);
            int rc = kg_index_build(root, test_path("index"), &err);
            met = fault_disarm();
            if (rc != KG_OK && err.msg[0] == '\0')
                FAIL("fault %u of kind %u: no reason", n, kinds[k]);
            kg_index *x = NULL;
            rc = kg_index_open(test_path("index"), root, kg_registry_fingerprint(root), &x, &err);
            if (rc != KG_OK && rc != KG_EEXIST && rc != KG_ENOTFOUND)
                FAIL("fault %u of kind %u left an index that is %s", n, kinds[k], err.msg);
            kg_index_free(x);
        }
        check_served(8, a);
    }
    kg_log_set_sink(NULL, NULL);
}

/* Reading an index without memory says so, and leaves nothing (the leak check looks). */
TEST_WITHIN(index_read_without_memory, 120) {
    char a[65], b[65], root[512], path[512];
    kg_error err = {0};
    made_anew(a, b);
    snprintf(root, sizeof root, "%s", test_path("generated"));
    snprintf(path, sizeof path, "%s", test_path("index"));
    CHECK_OK(kg_index_build(root, path, &err), err);
    bool met = true;
    for (unsigned n = 1; met; n++) {
        kg_index *x = NULL;
        const kg_index_op *op = NULL;
        const kg_plan *plan = NULL;
        fault_arm(FAULT_MALLOC, n, FAULT_ONCE);
        int rc = kg_index_open(path, root, kg_registry_fingerprint(root), &x, &err);
        if (rc == KG_OK)
            rc = kg_index_get(x, 0, &op, &err);
        if (rc == KG_OK)
            rc = kg_index_plan(x, 0, 0, &plan, &err);
        met = fault_disarm();
        /* The fingerprint takes what it cannot read as absent. */
        if (rc != KG_OK && rc != KG_ENOMEM && rc != KG_EEXIST)
            FAIL("malloc %u: %s: %s", n, kg_status_name(rc), err.msg);
        CHECK(rc == KG_OK || met);
        kg_index_free(x);
    }
}

/* ---- two tuners and a server ---- */

enum { EACH = 12, SIZES = 3 };

static void tune_into(int from) {
    for (int i = 0; i < EACH; i++) {
        char id[65];
        promote(from + i, 8 + i % SIZES, id);
    }
}

/* Looks once: a size that was ever served is served; seen learns what is. */
static void look(bool seen[SIZES], const char *root, const char *path) {
    kg_error err = {0};
    kg_index *x = NULL;
    const kg_index_op *op = NULL;
    bool now[SIZES] = {false};
    int rc = kg_index_open(path, root, kg_registry_fingerprint(root), &x, &err);
    if (rc != KG_OK) {
        CHECK_OK(kg_index_build(root, path, &err), err);
        rc = kg_index_open(path, root, kg_registry_fingerprint(root), &x, &err);
    }
    if (rc == KG_EEXIST)
        return; /* it changed again meanwhile */
    CHECK_OK(rc, err);
    int at = kg_index_find(x, "twice");
    if (at >= 0)
        CHECK_OK(kg_index_get(x, (size_t)at, &op, &err), err);
    for (size_t i = 0; op && i < op->npins; i++)
        now[op->pins[i].key.min[0] - 8] = true;
    for (int i = 0; i < SIZES; i++) {
        CHECK(now[i] || !seen[i]);
        seen[i] = seen[i] || now[i];
    }
    kg_index_free(x);
}

/* Until the other end of the pipe is closed. */
static void serve_until(int closed) {
    bool seen[SIZES] = {false};
    char root[512], path[512];
    struct pollfd p = {.fd = closed};
    snprintf(root, sizeof root, "%s", test_path("generated"));
    snprintf(path, sizeof path, "%s", test_path("server-index"));
    while (poll(&p, 1, 0) == 0)
        if (kg_is_dir(root))
            look(seen, root, path);
}

TEST_WITHIN(registry_of_two_tuners_and_a_server, 120) {
    int ends[2], status;
    char id[65];
    kg_error err = {0};
    CHECK_INT(pipe(ends), 0);
    kg_log_set_sink(collect, NULL); /* gone before it was read: the next look finds the new one */
    pid_t tuners[2], server = fork();
    if (server == 0) {
        close(ends[1]);
        serve_until(ends[0]);
        _exit(0);
    }
    close(ends[0]);
    for (int i = 0; i < 2; i++)
        if ((tuners[i] = fork()) == 0) {
            close(ends[1]);
            tune_into(100 * (i + 1));
            _exit(0);
        }
    for (int i = 0; i < 2; i++) {
        CHECK_INT(waitpid(tuners[i], &status, 0), tuners[i]);
        CHECK_INT(status, 0);
    }
    close(ends[1]);
    CHECK_INT(waitpid(server, &status, 0), server);
    CHECK_INT(status, 0);
    kg_log_set_sink(NULL, NULL);
    /* Versions are 1 to 24, each once. */
    kg_registry *r = NULL;
    const kg_kernel *list = NULL;
    CHECK_OK(kg_registry_open(test_path("generated"), false, &r, &err), err);
    size_t n = kg_registry_kernels(r, &list);
    CHECK_UINT(n, 2 * EACH);
    for (size_t i = 0; i < n; i++)
        CHECK_INT(list[i].version, i + 1);
    kg_registry_close(r);
    for (int i = 0; i < SIZES; i++) {
        served(8 + i, id);
        CHECK(id[0]);
    }
}

/* ---- flipped bytes ---- */

/* gc over a registry with a damaged file removes no Kernel that was needed before: it refuses. */
static void gc_spares(const char *path, size_t i, const char *want) {
    kg_error err = {0};
    char folder[1024];
    int rc = collect_garbage(&err);
    snprintf(folder, sizeof folder, "%s/twice/x86-64-v3/%s", test_path("generated"), want);
    if (!kg_is_dir(folder))
        FAIL("byte %zu of %s: gc (%s) removed the Kernel", i, path, kg_status_name(rc));
}

/* Serves the Kernel as it was, or nothing and says of which file; never anything else. Changes that
 * mean nothing (of a date, of white space) may be served. */
static size_t flip_file(const char *path, const char *want, unsigned stride) {
    kg_error err = {0};
    kg_buf text;
    size_t refused = 0;
    kg_buf_init(&text, 0);
    CHECK_OK(kg_read_file(path, 1 << 20, &text, &err), err);
    for (size_t i = 0; i < text.len; i += stride) {
        char id[65], kept = text.data[i];
        text.data[i] = (char)(kept ^ (1 << i % 8));
        CHECK_OK(kg_write_atomic(path, text.data, text.len, &err), err);
        warned[0] = '\0';
        served(8, id);
        if (strcmp(id, want) != 0 && id[0])
            FAIL("byte %zu of %s serves %.12s", i, path, id);
        if (!id[0] && !warned[0])
            FAIL("byte %zu of %s: not served, and nothing is said", i, path);
        refused += !id[0];
        gc_spares(path, i, want);
        text.data[i] = kept;
    }
    CHECK_OK(kg_write_atomic(path, text.data, text.len, &err), err);
    check_served(8, want);
    kg_buf_free(&text);
    return refused;
}

TEST_WITHIN(registry_with_any_byte_flipped, 300) {
    char a[65], path[1024], pins[512], **names = NULL;
    size_t n = 0;
    kg_error err = {0};
    unsigned stride = fault_stride(3);
    promote(1, 8, a);
    kg_log_set_sink(collect, NULL);
    snprintf(path, sizeof path, "%s/twice/x86-64-v3/%s/kernel.c", test_path("generated"), a);
    size_t refused = flip_file(path, a, stride);
    CHECK(refused > 50 / stride); /* every byte of a source is in its id */
    snprintf(path, sizeof path, "%s/twice/x86-64-v3/%s/record.json", test_path("generated"), a);
    CHECK(flip_file(path, a, stride) > 50 / stride);
    snprintf(path, sizeof path, "%s/twice/op.json", test_path("generated"));
    CHECK(flip_file(path, a, stride) > 50 / stride);
    snprintf(pins, sizeof pins, "%s/twice/x86-64-v3/pins", test_path("generated"));
    CHECK_OK(kg_list_dir(pins, &names, &n, &err), err);
    CHECK_UINT(n, 1);
    snprintf(path, sizeof path, "%s/%s", pins, names[0]);
    CHECK(flip_file(path, a, stride) > 50 / stride);
    kg_free_names(names, n);
    kg_log_set_sink(NULL, NULL);
}
