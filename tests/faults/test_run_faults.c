/* A Run whose disk fails, whose memory ends, or which is killed: what was acknowledged is there,
 * and the Run goes on to the same result. */
#include <signal.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "faults.h"
#include "search_util.h"
#include "sys/proc.h"

static void clean(void) {
    kg_error err = {0};
    CHECK_OK(kg_remove_tree(test_path("journal.jsonl"), &err), err);
}

/* ---- the journal ---- */

enum { ENTRIES = 6 };

/* Adds entries until one fails; how many were acknowledged. */
static int write_entries(kg_error *err) {
    kg_journal *j = NULL;
    int done = 0, rc = kg_journal_open(test_dir(), &j, err);
    for (int i = 0; rc == KG_OK && i < ENTRIES; i++) {
        kg_json *o = kg_json_new_object();
        if (!kg_json_set_int(o, "value", i)) { /* the caller's own want of memory */
            kg_json_free(o);
            break;
        }
        rc = kg_journal_add(j, "rung", o, err);
        done += rc == KG_OK;
    }
    kg_journal_close(j);
    return done;
}

/* The entries there are 0, 1, 2 ...; how many. */
static int read_entries(void) {
    kg_journal *j = NULL;
    kg_error err = {0};
    CHECK_OK(kg_journal_open(test_dir(), &j, &err), err);
    size_t n = kg_journal_size(j);
    for (size_t i = 0; i < n; i++) {
        int64_t v = -1;
        CHECK_OK(kg_json_int(kg_json_get(kg_journal_at(j, i), "value"), "value", &v, &err), err);
        CHECK_INT(v, i);
    }
    kg_journal_close(j);
    return (int)n;
}

static void journal_fails_at_every(unsigned kind, fault_mode mode) {
    bool met = true;
    for (unsigned n = 1; met; n++) {
        kg_error err = {0};
        clean();
        fault_arm(kind, n, mode);
        int done = write_entries(&err);
        met = fault_disarm();
        CHECK(met || done == ENTRIES);
        int there = read_entries();
        if (there != done)
            FAIL("fault %u of kind %u: %d acknowledged, %d there (%s)", n, kind, done, there,
                 err.msg);
    }
}

TEST_WITHIN(journal_when_anything_fails, 120) {
    journal_fails_at_every(FAULT_WRITE, FAULT_ONCE);
    journal_fails_at_every(FAULT_WRITE, FAULT_EVER);
    journal_fails_at_every(FAULT_SYNC, FAULT_ONCE);
    journal_fails_at_every(FAULT_MALLOC, FAULT_ONCE);
}

/* Killed before each write and each sync: what was acknowledged is there, and at most the entry
 * under way beside it. */
TEST_WITHIN(journal_killed_anywhere, 120) {
    for (unsigned n = 1;; n++) {
        int ends[2], status;
        char dot;
        clean();
        CHECK_INT(pipe(ends), 0);
        pid_t pid = fork();
        if (pid == 0) {
            kg_error err = {0};
            kg_journal *j = NULL;
            fault_arm(FAULT_WRITE | FAULT_SYNC, n, FAULT_KILL);
            CHECK_OK(kg_journal_open(test_dir(), &j, &err), err);
            for (int i = 0; i < ENTRIES; i++) {
                kg_json *o = kg_json_new_object();
                kg_json_set_int(o, "value", i);
                CHECK_OK(kg_journal_add(j, "rung", o, &err), err);
                struct iovec v = {.iov_base = ".", .iov_len = 1};
                CHECK_INT(writev(ends[1], &v, 1), 1); /* not one of the writes that are counted */
            }
            kg_journal_close(j);
            _exit(0);
        }
        close(ends[1]);
        int acknowledged = 0;
        while (read(ends[0], &dot, 1) == 1)
            acknowledged++;
        close(ends[0]);
        CHECK_INT(waitpid(pid, &status, 0), pid);
        int there = read_entries();
        if (there != acknowledged && there != acknowledged + 1)
            FAIL("killed at %u: %d acknowledged, %d there", n, acknowledged, there);
        if (!WIFSIGNALED(status)) {
            CHECK_INT(status, 0);
            CHECK_INT(there, ENTRIES);
            return;
        }
    }
}

/* ---- a search ---- */

/* As fake_run, with a fault from where the journal is opened, and a failure is an answer. */
static int search_once(unsigned kind, unsigned n, fault_mode mode, bool *met, kg_search_result *out,
                       kg_error *err) {
    fake f = {0};
    kg_op *op = fake_read_op();
    kg_sources sources = {0};
    kg_journal *journal = NULL;
    kg_evaluator e = {
        .ctx = &f, .ncases = 2, .lanes = 1, .prepare = fake_prepare, .judge = fake_judge};
    kg_search_options o = {.budget_ms = 60000, .compile_jobs = 1};
    fake_read_sources(op, &sources);
    fault_arm(kind, n, mode);
    int rc = kg_journal_open(test_dir(), &journal, err);
    if (rc == KG_OK)
        rc = kg_search("twice", &sources, &e, journal, &o, out, err);
    kg_journal_close(journal);
    *met = fault_disarm();
    kg_sources_free(&sources);
    kg_op_free(op);
    return rc;
}

/* The same winners, and nothing that the journal holds is judged again. */
static void resume(void) {
    fake again = {0}, third = {0};
    kg_search_result r;
    CHECK_INT(fake_run(&again, 60000, &r), KG_OK);
    fake_check_winners(&r);
    CHECK(r.resumed + (size_t)(again.judged[0] + again.judged[1] + again.judged[2]) >= 28);
    kg_search_result_free(&r);
    CHECK_INT(fake_run(&third, 60000, &r), KG_OK);
    fake_check_winners(&r);
    CHECK_INT(third.judged[0] + third.judged[1] + third.judged[2], 0);
    kg_search_result_free(&r);
}

TEST_WITHIN(search_when_the_disk_fails, 600) {
    static const unsigned kinds[] = {FAULT_WRITE, FAULT_SYNC};
    unsigned stride = fault_stride(7);
    for (size_t k = 0; k < 2; k++) {
        bool met = true;
        for (unsigned n = 1; met; n += stride) {
            kg_search_result r = {0};
            kg_error err = {0};
            clean();
            int rc = search_once(kinds[k], n, FAULT_ONCE, &met, &r, &err);
            if (rc != KG_OK && err.msg[0] == '\0')
                FAIL("fault %u: %s without a reason", n, kg_status_name(rc));
            kg_search_result_free(&r);
            resume();
        }
    }
}

/* kill -9 before each journal entry is synced, which is everywhere that matters to it. */
TEST_WITHIN(search_killed_at_every_entry, 600) {
    unsigned stride = fault_stride(5);
    for (unsigned n = 1;; n += stride) {
        int status;
        clean();
        pid_t pid = fork();
        if (pid == 0) {
            bool met;
            kg_search_result r = {0};
            kg_error err = {0};
            _exit(search_once(FAULT_SYNC, n, FAULT_KILL, &met, &r, &err) == KG_OK ? 0 : 1);
        }
        CHECK_INT(waitpid(pid, &status, 0), pid);
        resume();
        if (!WIFSIGNALED(status)) {
            CHECK_INT(status, 0);
            return;
        }
    }
}

/* ---- processes ---- */

/* No process can be started for once: said with the program's name, and nothing stays open. */
TEST(process_that_cannot_be_forked) {
    const char *argv[] = {"/bin/true", NULL};
    const kg_limits limits = {.wall_ms = 10000};
    kg_error err = {0};
    kg_exit ex = {0};
    kg_buf out;
    kg_buf_init(&out, 0);
    for (int i = 0; i < 3; i++) { /* the third descriptor would be another if one leaked */
        fault_arm(FAULT_FORK, 1, FAULT_ONCE);
        CHECK_ERR(kg_proc_run(argv, NULL, NULL, &limits, &out, &ex, &err), err, KG_EIO,
                  "/bin/true");
        CHECK(fault_disarm());
    }
    int free_one = dup(0);
    CHECK_OK(kg_proc_run(argv, NULL, NULL, &limits, &out, &ex, &err), err);
    CHECK_INT(free_one <= 4, 1);
    close(free_one);
    kg_buf_free(&out);
}
