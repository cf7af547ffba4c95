/* Children: what they say, how they end, what they inherit, and that nothing of them stays. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/stop.h"
#include "sys/proc.h"
#include "test.h"

static const kg_limits in_10_s = {.wall_ms = 10000};

/* Runs `sh -c script`; the output is kept until the test ends. */
static const char *shell(const char *script, const kg_limits *limits, kg_exit *ex) {
    static kg_buf out;
    kg_error err = {0};
    kg_buf_init(&out, 0);
    const char *argv[] = {"/bin/sh", "-c", script, NULL};
    CHECK_OK(kg_proc_run(argv, NULL, NULL, limits, &out, ex, &err), err);
    static char text[65536];
    snprintf(text, sizeof text, "%s", out.data ? out.data : "");
    kg_buf_free(&out);
    return text;
}

static bool exists(pid_t pid) {
    return kill(pid, 0) == 0 || errno == EPERM;
}

/* A killed process is gone for us once it is a zombie or reaped; init reaps at leisure. */
static bool runs(pid_t pid) {
    char path[64];
    kg_buf text;
    kg_buf_init(&text, 0);
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
    bool alive = exists(pid) && kg_read_file(path, 65536, &text, NULL) == KG_OK &&
                 !strstr(text.data, ") Z ") && !strstr(text.data, ") X ");
    kg_buf_free(&text);
    return alive;
}

static bool ends_within(pid_t pid, int ms) {
    for (int i = 0; i < ms / 5 && runs(pid); i++)
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    return !runs(pid);
}

/* Waits for a file that a child writes a number to, and reads it. */
static long number_in(const char *path) {
    for (int i = 0; i < 1000; i++) {
        kg_buf text;
        kg_buf_init(&text, 0);
        long n =
            kg_read_file(path, 100, &text, NULL) == KG_OK && text.len && strchr(text.data, '\n')
                ? strtol(text.data, NULL, 10)
                : 0;
        kg_buf_free(&text);
        if (n)
            return n;
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
    FAIL("%s never held a number", path);
}

static size_t open_descriptors(void) {
    char **names;
    size_t n;
    kg_error err = {0};
    CHECK_OK(kg_list_dir("/proc/self/fd", &names, &n, &err), err);
    kg_free_names(names, n);
    return n;
}

TEST(proc_captures_both_streams_and_the_code) {
    kg_exit ex;
    CHECK_STR(shell("echo out; echo err >&2; exit 3", &in_10_s, &ex), "out\nerr\n");
    CHECK_INT(ex.code, 3);
    CHECK_INT(ex.signal, 0);
    CHECK(!ex.timed_out);
}

TEST(proc_appends_to_what_the_buffer_holds) {
    kg_error err = {0};
    kg_exit ex;
    kg_buf out;
    kg_buf_init(&out, 0);
    kg_buf_puts(&out, "before ");
    const char *argv[] = {"echo", "after", NULL};
    CHECK_OK(kg_proc_run(argv, NULL, NULL, &in_10_s, &out, &ex, &err), err);
    CHECK_STR(out.data, "before after\n");
    kg_buf_free(&out);
}

TEST(proc_passes_arguments_as_they_are) {
    kg_error err = {0};
    kg_exit ex;
    kg_buf out;
    kg_buf_init(&out, 0);
    const char *argv[] = {"printf", "[%s]", "$HOME", "a b", "", "`id`", "*", NULL};
    CHECK_OK(kg_proc_run(argv, NULL, NULL, &in_10_s, &out, &ex, &err), err);
    CHECK_STR(out.data, "[$HOME][a b][][`id`][*]");
    kg_buf_free(&out);
}

TEST(proc_stdin_is_empty) {
    kg_exit ex;
    CHECK_STR(shell("cat; echo end", &in_10_s, &ex), "end\n");
}

TEST(proc_replaces_the_environment_and_the_folder) {
    kg_error err = {0};
    kg_exit ex;
    kg_buf out;
    kg_buf_init(&out, 0);
    const char *argv[] = {"/bin/sh", "-c", "echo $ONE-$HOME; pwd", NULL};
    const char *env[] = {"ONE=1", "PATH=/usr/bin:/bin", NULL};
    CHECK_OK(kg_proc_run(argv, env, "/", &in_10_s, &out, &ex, &err), err);
    CHECK_STR(out.data, "1-\n/\n");
    kg_buf_free(&out);
}

TEST(proc_without_a_buffer_writes_to_nothing) {
    kg_error err = {0};
    kg_exit ex;
    const char *argv[] = {"/bin/sh", "-c", "readlink /proc/self/fd/1 | grep -qx /dev/null", NULL};
    CHECK_OK(kg_proc_run(argv, NULL, NULL, &in_10_s, NULL, &ex, &err), err);
    CHECK_INT(ex.code, 1);
    const char *direct[] = {"/bin/sh", "-c", "test /dev/fd/1 -ef /dev/null", NULL};
    CHECK_OK(kg_proc_run(direct, NULL, NULL, &in_10_s, NULL, &ex, &err), err);
    CHECK_INT(ex.code, 0);
}

TEST(proc_missing_program_is_the_environment) {
    kg_error err = {0};
    kg_exit ex = {.code = 99};
    const char *argv[] = {"kgen-no-such-program", NULL};
    CHECK_ERR(kg_proc_run(argv, NULL, NULL, NULL, NULL, &ex, &err), err, KG_EENV,
              "\"kgen-no-such-program\" is not in PATH");
    const char *full[] = {"/no/such/program", NULL};
    CHECK_ERR(kg_proc_run(full, NULL, NULL, NULL, NULL, &ex, &err), err, KG_EENV,
              "execve for /no/such/program: No such file");
    CHECK_INT(ex.code, 99);
}

TEST(proc_what_is_no_program_is_refused) {
    kg_error err = {0};
    kg_exit ex;
    const char *path = test_path("plain.txt");
    CHECK_OK(kg_write_atomic(path, "hello", 5, &err), err);
    const char *argv[] = {path, NULL};
    CHECK_ERR(kg_proc_run(argv, NULL, NULL, NULL, NULL, &ex, &err), err, KG_EENV,
              "Permission denied");
    CHECK_INT(chmod(path, 0755), 0);
    CHECK_ERR(kg_proc_run(argv, NULL, NULL, NULL, NULL, &ex, &err), err, KG_EENV,
              "Exec format error");
    const char *none[] = {NULL};
    CHECK_ERR(kg_proc_run(none, NULL, NULL, NULL, NULL, &ex, &err), err, KG_EINVAL,
              "argv is empty");
}

TEST(proc_missing_folder_is_named) {
    kg_error err = {0};
    kg_exit ex;
    const char *argv[] = {"true", NULL};
    CHECK_ERR(kg_proc_run(argv, NULL, "/no/such/folder", NULL, NULL, &ex, &err), err, KG_EIO,
              "chdir /no/such/folder: No such file");
}

TEST(proc_is_not_found_through_the_working_folder) {
    kg_error err = {0};
    kg_exit ex;
    const char *path = test_path("here");
    CHECK_OK(kg_write_atomic(path, "#!/bin/sh\nexit 0\n", 17, &err), err);
    CHECK_INT(chmod(path, 0755), 0);
    CHECK_INT(chdir(test_dir()), 0);
    const char *argv[] = {"here", NULL}, *env[] = {"PATH=.::/usr/bin:/bin", NULL};
    CHECK_ERR(kg_proc_run(argv, env, NULL, NULL, NULL, &ex, &err), err, KG_EENV, "not in PATH");
    char absolute[512];
    snprintf(absolute, sizeof absolute, "PATH=%s", test_dir());
    const char *with[] = {absolute, NULL};
    CHECK_OK(kg_proc_run(argv, with, NULL, NULL, NULL, &ex, &err), err);
    CHECK_INT(ex.code, 0);
}

TEST(proc_wall_limit_kills_the_group) {
    kg_limits limits = {.wall_ms = 200};
    kg_exit ex;
    char script[512];
    snprintf(script, sizeof script, "sleep 100 & echo $! > %s; wait", test_path("pid"));
    shell(script, &limits, &ex);
    CHECK(ex.timed_out);
    CHECK_INT(ex.signal, SIGKILL);
    CHECK(ex.wall_ms >= 200 && ex.wall_ms < 5000);
    CHECK(ends_within((pid_t)number_in(test_path("pid")), 2000));
}

TEST(proc_what_a_child_leaves_behind_is_killed) {
    kg_exit ex;
    char script[512];
    snprintf(script, sizeof script, "sleep 100 & echo $! > %s; exit 0", test_path("pid"));
    int64_t from = kg_now_ns();
    shell(script, &in_10_s, &ex);
    CHECK_INT(ex.code, 0);
    CHECK(kg_now_ns() - from < INT64_C(5000000000));
    CHECK(ends_within((pid_t)number_in(test_path("pid")), 2000));
}

TEST(proc_one_that_floods_is_cut_and_timed) {
    kg_limits limits = {.wall_ms = 300, .output_bytes = 1000};
    kg_exit ex;
    const char *text = shell("exec yes", &limits, &ex);
    CHECK_UINT(strlen(text), 1000);
    CHECK(ex.timed_out);
    CHECK(ex.wall_ms < 5000);
}

TEST(proc_output_beyond_the_limit_does_not_block) {
    kg_limits limits = {.wall_ms = 10000, .output_bytes = 10};
    kg_exit ex;
    CHECK_STR(shell("head -c 300000 /dev/zero | tr '\\0' x; exit 5", &limits, &ex), "xxxxxxxxxx");
    CHECK_INT(ex.code, 5);
}

TEST(proc_cpu_limit) {
    kg_limits limits = {.wall_ms = 20000, .cpu_s = 1};
    kg_exit ex;
    shell("while :; do :; done", &limits, &ex);
    CHECK_INT(ex.signal, SIGXCPU);
    CHECK(!ex.timed_out);
}

TEST(proc_file_size_and_memory_limits) {
    kg_limits limits = {.wall_ms = 10000, .file_size = 4096, .memory = 64 << 20};
    kg_exit ex;
    char script[512];
    snprintf(script, sizeof script, "exec head -c 100000 /dev/zero > %s", test_path("big"));
    shell(script, &limits, &ex);
    CHECK_INT(ex.signal, SIGXFSZ);
    CHECK_STR(shell("ulimit -v; ulimit -c", &limits, &ex), "65536\n0\n");
}

TEST(proc_killed_child_tells_its_signal) {
    kg_exit ex;
    shell("kill -SEGV $$", &in_10_s, &ex);
    CHECK_INT(ex.signal, SIGSEGV);
    CHECK_INT(ex.code, -1);
}

TEST(proc_resets_ignored_and_blocked_signals) {
    kg_exit ex;
    signal(SIGPIPE, SIG_IGN);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    const char *status = shell("grep -E 'Sig(Blk|Ign)' /proc/self/status", &in_10_s, &ex);
    unsigned long long blocked = ~0ULL, ignored = ~0ULL;
    CHECK_INT(sscanf(status, "SigBlk: %llx SigIgn: %llx", &blocked, &ignored), 2);
    CHECK_UINT(blocked, 0);
    /* Signals 32 and 33 are glibc's own: what its posix_spawn starts (make does) ignores them. */
    CHECK_UINT(ignored & ~(3ULL << 31), 0);
    sigprocmask(SIG_BLOCK, NULL, &set);
    CHECK(sigismember(&set, SIGTERM) == 1);
}

TEST(proc_inherits_what_is_kept_and_nothing_else) {
    kg_error err = {0};
    int open_ones[3], pipe_ends[2];
    for (int i = 0; i < 3; i++)
        CHECK((open_ones[i] = open("/dev/zero", O_RDONLY)) >= 0); /* not CLOEXEC on purpose */
    CHECK_INT(pipe(pipe_ends), 0);
    const char *log = test_path("log");
    int log_fd = open(log, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    /* 3 and 4 are given in the order that swaps low numbers. */
    int keep[] = {pipe_ends[1], open_ones[0]};
    const char *argv[] = {
        "/bin/sh", "-c",
        "echo hello >&3; test /dev/fd/4 -ef /dev/zero && echo zero; ls -1 /proc/$$/fd", NULL};
    kg_proc p;
    kg_exit ex;
    CHECK_OK(kg_proc_start(argv, NULL, keep, 2, log_fd, NULL, &p, &err), err);
    CHECK_OK(kg_proc_wait(&p, 10000, &ex, &err), err);
    CHECK_INT(ex.code, 0);
    char word[16] = "";
    CHECK_INT(read(pipe_ends[0], word, sizeof word - 1), 6);
    CHECK_STR(word, "hello\n");
    kg_buf text;
    kg_buf_init(&text, 0);
    CHECK_OK(kg_read_file(log, 1000, &text, &err), err);
    CHECK_STR(text.data, "zero\n0\n1\n2\n3\n4\n");
    kg_buf_free(&text);
}

TEST(proc_kept_descriptor_that_is_not_open) {
    kg_error err = {0};
    kg_proc p;
    int keep[] = {999};
    const char *argv[] = {"true", NULL};
    CHECK_ERR(kg_proc_start(argv, NULL, keep, 1, -1, NULL, &p, &err), err, KG_EIO,
              "Bad file descriptor");
}

TEST(proc_wait_times_out_then_kill_ends_it) {
    kg_error err = {0};
    kg_proc p;
    kg_exit ex = {.code = 99};
    char script[512];
    snprintf(script, sizeof script, "sleep 100 & echo $! > %s; wait", test_path("pid"));
    const char *argv[] = {"/bin/sh", "-c", script, NULL};
    CHECK_OK(kg_proc_start(argv, NULL, NULL, 0, -1, NULL, &p, &err), err);
    pid_t leader = p.pid, other = (pid_t)number_in(test_path("pid"));
    CHECK_INT(getpgid(leader), leader);
    CHECK_INT(getpgid(other), leader);
    CHECK_ERR(kg_proc_wait(&p, 50, &ex, &err), err, KG_ETIMEOUT, "still runs after 50 ms");
    CHECK_INT(ex.code, 99);
    kg_proc_kill(&p, &ex);
    CHECK_INT(ex.signal, SIGKILL);
    CHECK(!exists(leader));
    CHECK(ends_within(other, 2000));
    kg_proc_kill(&p, &ex);
    CHECK_INT(ex.code, -1);
    CHECK_ERR(kg_proc_wait(&p, 0, &ex, &err), err, KG_EINVAL, "not running");
}

TEST(proc_kill_of_one_that_ended_keeps_its_code) {
    kg_error err = {0};
    kg_proc p;
    kg_exit ex;
    const char *argv[] = {"/bin/sh", "-c", "exit 7", NULL};
    CHECK_OK(kg_proc_start(argv, NULL, NULL, 0, -1, NULL, &p, &err), err);
    CHECK(ends_within(p.pid, 5000));
    kg_proc_kill(&p, &ex);
    CHECK_INT(ex.code, 7);
}

TEST(proc_wait_enforces_the_wall_limit) {
    kg_error err = {0};
    kg_proc p;
    kg_exit ex;
    const char *argv[] = {"sleep", "100", NULL};
    kg_limits limits = {.wall_ms = 150};
    CHECK_OK(kg_proc_start(argv, NULL, NULL, 0, -1, &limits, &p, &err), err);
    CHECK_OK(kg_proc_wait(&p, -1, &ex, &err), err);
    CHECK(ex.timed_out);
    CHECK_INT(ex.signal, SIGKILL);
}

static void *stop_soon(void *unused) {
    (void)unused;
    nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
    kg_stop_set(true);
    return NULL;
}

TEST(proc_a_wish_to_stop_ends_the_run) {
    kg_error err = {0};
    kg_exit ex;
    kg_buf out;
    kg_buf_init(&out, 0);
    pthread_t thread;
    CHECK_INT(pthread_create(&thread, NULL, stop_soon, NULL), 0);
    char script[512];
    snprintf(script, sizeof script, "echo $$ > %s; exec sleep 100", test_path("pid"));
    const char *argv[] = {"/bin/sh", "-c", script, NULL};
    int64_t from = kg_now_ns();
    CHECK_ERR(kg_proc_run(argv, NULL, NULL, NULL, &out, &ex, &err), err, KG_EINTR, "interrupted");
    CHECK(kg_now_ns() - from < INT64_C(5000000000));
    pthread_join(thread, NULL);
    CHECK(!exists((pid_t)number_in(test_path("pid"))));
    kg_stop_set(false);
    kg_buf_free(&out);
}

/* The parent is killed; its child must follow. */
TEST(proc_dies_with_its_parent) {
    const char *path = test_path("pid");
    pid_t parent = fork();
    if (parent == 0) {
        kg_proc p;
        char script[512];
        snprintf(script, sizeof script, "echo $$ > %s; exec sleep 100", path);
        const char *argv[] = {"/bin/sh", "-c", script, NULL};
        kg_proc_start(argv, NULL, NULL, 0, -1, NULL, &p, NULL);
        pause();
        _exit(0);
    }
    pid_t child = (pid_t)number_in(path);
    CHECK(runs(child));
    kill(parent, SIGKILL);
    waitpid(parent, NULL, 0);
    CHECK(ends_within(child, 2000));
}

TEST(proc_leaks_no_descriptor) {
    kg_error err = {0};
    kg_exit ex;
    kg_proc p;
    const char *good[] = {"true", NULL}, *bad[] = {"/no/such/program", NULL};
    shell("true", &in_10_s, &ex);
    size_t before = open_descriptors();
    for (int i = 0; i < 20; i++) {
        shell("echo x", &in_10_s, &ex);
        CHECK_INT(kg_proc_run(bad, NULL, NULL, NULL, NULL, &ex, NULL), KG_EENV);
        CHECK_INT(kg_proc_run(good, NULL, "/no/such", NULL, NULL, &ex, NULL), KG_EIO);
        CHECK_OK(kg_proc_start(good, NULL, NULL, 0, -1, NULL, &p, &err), err);
        kg_proc_kill(&p, NULL);
    }
    CHECK_UINT(open_descriptors(), before);
    CHECK_INT(waitpid(-1, NULL, WNOHANG), -1);
}

static void *run_many(void *failed) {
    for (int i = 0; i < 20; i++) {
        kg_exit ex;
        kg_buf out;
        kg_buf_init(&out, 0);
        char text[32];
        snprintf(text, sizeof text, "%d", i);
        const char *argv[] = {"printf", "%s", text, NULL};
        if (kg_proc_run(argv, NULL, NULL, &in_10_s, &out, &ex, NULL) != KG_OK || ex.code != 0 ||
            strcmp(out.data, text) != 0)
            *(int *)failed += 1;
        kg_buf_free(&out);
    }
    return NULL;
}

TEST(proc_runs_from_many_threads) {
    pthread_t threads[8];
    int failed[8] = {0};
    for (int i = 0; i < 8; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, run_many, &failed[i]), 0);
    for (int i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
        CHECK_INT(failed[i], 0);
    }
}
