/* Timing excludes what loads the CPU, and the one who times goes first. */
#include "test.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/log.h"
#include "base/stop.h"
#include "tune/exclusive.h"

static atomic_int busy, timing, overlaps;

static void nap(void) {
    const struct timespec ms = {.tv_nsec = 1000000};
    nanosleep(&ms, NULL);
}

static void *work(void *arg) {
    (void)arg;
    for (int i = 0; i < 20; i++) {
        kg_busy_begin();
        atomic_fetch_add(&busy, 1);
        overlaps += timing > 0;
        nap();
        overlaps += timing > 0;
        atomic_fetch_sub(&busy, 1);
        kg_busy_end();
    }
    return NULL;
}

TEST(timing_is_alone) {
    kg_error err = {0};
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, work, NULL);
    for (int i = 0; i < 10; i++) {
        CHECK_OK(kg_timing_begin(&err), err);
        timing = 1;
        overlaps += busy > 0;
        nap();
        overlaps += busy > 0;
        timing = 0;
        kg_timing_end();
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    CHECK_INT(overlaps, 0);
}

TEST(timing_waits_for_other_processes_until_told_to_stop) {
    kg_error err = {0};
    int fd;
    CHECK_OK(kg_timing_begin(&err), err);
    kg_timing_end();
    CHECK_OK(kg_lock_device("cpu", 0, &fd, &err), err);
    kg_stop_set(true);
    CHECK_ERR(kg_timing_begin(&err), err, KG_EINTR, "interrupted");
    kg_stop_set(false);
    kg_unlock_file(fd);
    CHECK_OK(kg_timing_begin(&err), err);
    kg_timing_end();
}

static char heard[512];

static void hear(void *ctx, kg_log_level level, const char *message) {
    (void)ctx, (void)level;
    snprintf(heard, sizeof heard, "%s", message);
}

/* Another process holds the CPU for a while: it is waited for and named, whichever cache either
 * has. */
TEST(timing_names_whom_it_waits_for) {
    kg_error err = {0};
    int ends[2];
    char want[64], word;
    CHECK_INT(pipe(ends), 0);
    kg_log_set_sink(hear, NULL);
    pid_t pid = fork();
    if (pid == 0) {
        int fd;
        setenv("KGEN_CACHE", test_path("another"), 1);
        word = kg_lock_device("cpu", 0, &fd, NULL) == KG_OK ? 'y' : 'n';
        (void)!write(ends[1], &word, 1);
        nanosleep(&(struct timespec){.tv_sec = 1, .tv_nsec = 500000000}, NULL);
        _exit(0);
    }
    CHECK_INT(read(ends[0], &word, 1), 1);
    CHECK_INT(word, 'y');
    CHECK_OK(kg_timing_begin(&err), err);
    int status;
    CHECK_INT(waitpid(pid, &status, WNOHANG) == pid || kill(pid, 0) == 0, 1);
    kg_timing_end();
    snprintf(want, sizeof want, "is held by process %ld (kgen-ctests)", (long)pid);
    CHECK_HAS(heard, want);
    CHECK_HAS(heard, "; waiting for it");
    CHECK_INT(strstr(heard, "gave up") == NULL, 1);
    kg_log_set_sink(NULL, NULL);
}

/* The folder that KGEN_LOCKS names is made whole, for everybody. */
TEST(the_folder_of_locks_is_made_with_its_parents) {
    kg_error err = {0};
    struct stat st;
    int fd = -1;
    setenv("KGEN_LOCKS", test_path("of/a/user/locks"), 1);
    CHECK_OK(kg_lock_device("cpu", 0, &fd, &err), err);
    kg_unlock_file(fd);
    CHECK_INT(stat(test_path("of/a/user/locks"), &st), 0);
    CHECK_INT(st.st_mode & 07777, 01777);
    setenv("KGEN_LOCKS", test_path("locks"), 1);
}

/* What lies in the lock's place may be another user's, or no folder at all. */
TEST(timing_goes_on_without_a_place_for_locks) {
    kg_error err = {0};
    int fd = 7;
    CHECK_INT(symlink("/tmp", test_path("locks")), 0);
    CHECK_ERR(kg_lock_device("cpu", 0, &fd, &err), err, KG_EIO, "is no folder");
    kg_log_set_sink(hear, NULL);
    CHECK_OK(kg_timing_begin(&err), err);
    kg_timing_end();
    kg_log_set_sink(NULL, NULL);
    CHECK_HAS(heard, "KGEN_LOCKS; other processes that time are not waited for");
    CHECK_INT(unlink(test_path("locks")), 0);
    /* A lock that is a link leads nowhere. */
    CHECK_INT(mkdir(test_path("locks"), 0777), 0);
    CHECK_INT(symlink(test_path("victim"), test_path("locks/cpu")), 0);
    CHECK_ERR(kg_lock_device("cpu", 0, &fd, &err), err, KG_EIO, "open the lock");
    CHECK_INT(access(test_path("victim"), F_OK), -1);
}

TEST(timing_locks_are_for_every_user) {
    kg_error err = {0};
    struct stat st;
    int fd;
    umask(077);
    CHECK_OK(kg_lock_device("cpu", 0, &fd, &err), err);
    kg_unlock_file(fd);
    CHECK_INT(stat(test_path("locks"), &st), 0);
    CHECK_INT(st.st_mode & 07777, 01777);
    CHECK_INT(stat(test_path("locks/cpu"), &st), 0);
    CHECK_INT(st.st_mode & 07777, 0666);
    /* One that may only be read can be held. */
    CHECK_INT(chmod(test_path("locks/cpu"), 0444), 0);
    CHECK_OK(kg_lock_device("cpu", 0, &fd, &err), err);
    int other;
    CHECK_ERR(kg_lock_device("cpu", 0, &other, &err), err, KG_EBUSY, "is held by process");
    kg_unlock_file(fd);
}
