/* Files: what stands after success, and that the old bytes stand after each failure that can be
 * made. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/stop.h"
#include "test.h"

/* The file's bytes, kept until the next call. */
static const char *bytes_of(const char *path) {
    static kg_buf b;
    kg_error err = {0};
    kg_buf_free(&b);
    CHECK_OK(kg_read_file(path, 1 << 24, &b, &err), err);
    return b.data;
}

static void write_text(const char *path, const char *text) {
    kg_error err = {0};
    CHECK_OK(kg_write_atomic(path, text, strlen(text), &err), err);
}

/* Names in the test's folder, temporary ones included. */
static size_t entries(void) {
    char command[600];
    size_t n = 0;
    snprintf(command, sizeof command, "%s/.", test_dir());
    kg_error err = {0};
    char **names;
    CHECK_OK(kg_list_dir(command, &names, &n, &err), err);
    kg_free_names(names, n);
    return n;
}

/* How many names are left behind by a write that failed: list_dir hides them, stat does not. */
static size_t links_of_everything(void) {
    size_t n = 0;
    int ends[2];
    CHECK_INT(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], 1);
        close(ends[0]);
        execlp("ls", "ls", "-A1", test_dir(), (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    char c;
    while (read(ends[0], &c, 1) == 1)
        n += c == '\n';
    close(ends[0]);
    waitpid(pid, NULL, 0);
    return n;
}

static void limit_file_size(rlim_t bytes) {
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit l;
    CHECK_INT(getrlimit(RLIMIT_FSIZE, &l), 0);
    l.rlim_cur = bytes;
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &l), 0);
}

TEST(fs_joins_paths) {
    static const char *const cases[][3] = {
        {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"/", "b", "/b"}, {"", "b", "b"}, {"a", "", "a/"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *path = kg_path_join(cases[i][0], cases[i][1]);
        CHECK_STR(path, cases[i][2]);
        free(path);
    }
}

TEST(fs_reads_what_was_written) {
    const char *path = test_path("f");
    write_text(path, "one");
    CHECK_STR(bytes_of(path), "one");
    write_text(path, "");
    CHECK_STR(bytes_of(path), "");
    kg_buf b;
    kg_error err = {0};
    kg_buf_init(&b, 0);
    CHECK_OK(kg_write_atomic(path, "a\0b", 3, &err), err);
    kg_buf_puts(&b, "x");
    CHECK_OK(kg_read_file(path, 3, &b, &err), err);
    CHECK_UINT(b.len, 4);
    CHECK_MEM(b.data, "xa\0b", 5);
    kg_buf_free(&b);
    CHECK_UINT(links_of_everything(), 1);
    CHECK(kg_is_file(path) && !kg_is_dir(path));
    CHECK(kg_is_dir(test_dir()) && !kg_is_file(test_dir()));
}

TEST(fs_reads_large_and_sizeless_files) {
    size_t n = 300000;
    char *big = malloc(n);
    kg_error err = {0};
    kg_buf b;
    CHECK(big != NULL);
    for (size_t i = 0; i < n; i++)
        big[i] = (char)(i * 7);
    const char *path = test_path("big");
    CHECK_OK(kg_write_atomic(path, big, n, &err), err);
    kg_buf_init(&b, 0);
    CHECK_OK(kg_read_file(path, n, &b, &err), err);
    CHECK_UINT(b.len, n);
    CHECK_MEM(b.data, big, n);
    kg_buf_clear(&b);
    CHECK_OK(kg_read_file("/proc/self/status", 1 << 20, &b, &err), err);
    CHECK_HAS(b.data, "Name:");
    kg_buf_free(&b);
    free(big);
}

TEST(fs_read_failures_leave_the_buffer) {
    kg_error err = {0};
    kg_buf b;
    kg_buf_init(&b, 0);
    kg_buf_puts(&b, "kept");
    const char *path = test_path("f"), *pipe_path = test_path("fifo");
    write_text(path, "12345678");
    CHECK_INT(mkfifo(pipe_path, 0600), 0);
    CHECK_ERR(kg_read_file(path, 7, &b, &err), err, KG_EOVERFLOW, "larger than 7 bytes");
    CHECK_ERR(kg_read_file(test_path("none"), 7, &b, &err), err, KG_ENOTFOUND,
              "none: No such file");
    CHECK_ERR(kg_read_file(test_path("f/none"), 7, &b, &err), err, KG_ENOTFOUND, "Not a directory");
    CHECK_ERR(kg_read_file(test_dir(), 7, &b, &err), err, KG_EINVAL, "it is a folder");
    CHECK_ERR(kg_read_file(pipe_path, 7, &b, &err), err, KG_EINVAL, "a device or a pipe");
    CHECK_ERR(kg_read_file("/dev/zero", 7, &b, &err), err, KG_EINVAL, "a device or a pipe");
    CHECK_ERR(kg_read_file("/proc/self/status", 10, &b, &err), err, KG_EOVERFLOW, "larger than 10");
    CHECK_STR(b.data, "kept");
    CHECK_UINT(b.len, 4);
    CHECK_INT(b.status, KG_OK);
    kg_buf_free(&b);
}

TEST(fs_full_disk_keeps_the_old_bytes) {
    kg_error err = {0};
    char big[10000];
    memset(big, 'x', sizeof big);
    const char *path = test_path("f");
    write_text(path, "old");
    limit_file_size(5000);
    CHECK_ERR(kg_write_atomic(path, big, sizeof big, &err), err, KG_EIO, "File too large");
    CHECK_HAS(err.msg, path);
    CHECK_STR(bytes_of(path), "old");
    CHECK_UINT(links_of_everything(), 1);
    CHECK_OK(kg_write_atomic(path, big, 5000, &err), err);
    CHECK_UINT(strlen(bytes_of(path)), 5000);
}

TEST(fs_writes_fail_clearly) {
    kg_error err = {0};
    CHECK_ERR(kg_write_atomic(test_path("no/f"), "x", 1, &err), err, KG_ENOTFOUND, "no/f: No such");
    CHECK_OK(kg_mkdirs(test_path("folder"), &err), err);
    CHECK_ERR(kg_write_atomic(test_path("folder"), "x", 1, &err), err, KG_EIO, "rename to");
    CHECK_UINT(links_of_everything(), 1);
    char name[400];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    CHECK_ERR(kg_write_atomic(test_path(name), "x", 1, &err), err, KG_EIO, "name too long");
    CHECK_UINT(links_of_everything(), 1);
}

/* Root passes over mode bits, so the folder is one that takes no file from anyone. */
TEST(fs_read_only_folder) {
    kg_error err = {0};
    const char *path = test_path("ro");
    CHECK_OK(kg_mkdirs(path, &err), err);
    CHECK_INT(chmod(path, 0555), 0);
    if (geteuid() == 0)
        path = "/proc";
    char *file = kg_path_join(path, "kgen-test");
    int status = kg_write_atomic(file, "x", 1, &err);
    CHECK(status == KG_EIO || status == KG_ENOTFOUND);
    CHECK_HAS(err.msg, file);
    CHECK(!kg_is_file(file));
    CHECK(kg_mkdirs(file, &err) < 0);
    int fd = -1;
    CHECK(kg_lock_file(file, 0, &fd, &err) < 0);
    CHECK_INT(fd, -1);
    free(file);
}

TEST(fs_append_adds_whole_records) {
    kg_error err = {0};
    const char *path = test_path("journal");
    int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK_OK(kg_append_sync(fd, "one\n", 4, path, &err), err);
    CHECK_OK(kg_append_sync(fd, "two\n", 4, path, &err), err);
    CHECK_STR(bytes_of(path), "one\ntwo\n");
    char big[5000];
    memset(big, 'x', sizeof big);
    limit_file_size(4096);
    CHECK_ERR(kg_append_sync(fd, big, sizeof big, path, &err), err, KG_EIO, "append to");
    CHECK_STR(bytes_of(path), "one\ntwo\n");
    CHECK_OK(kg_append_sync(fd, "three\n", 6, path, &err), err);
    CHECK_STR(bytes_of(path), "one\ntwo\nthree\n");
    close(fd);
    fd = open(path, O_RDONLY);
    CHECK_ERR(kg_append_sync(fd, "x", 1, path, &err), err, KG_EIO, "Bad file descriptor");
    close(fd);
}

TEST(fs_append_to_a_full_device) {
    kg_error err = {0};
    int fd = open("/dev/full", O_WRONLY);
    if (fd < 0)
        test_skip("there is no /dev/full");
    CHECK_ERR(kg_append_sync(fd, "x", 1, "/dev/full", &err), err, KG_EIO,
              "No space left on device");
    CHECK_HAS(err.msg, "a partial record may stand at byte 0");
    close(fd);
}

TEST(fs_makes_folders) {
    kg_error err = {0};
    CHECK_OK(kg_mkdirs(test_path("a/b//c/"), &err), err);
    CHECK(kg_is_dir(test_path("a/b/c")));
    CHECK_OK(kg_mkdirs(test_path("a/b/c"), &err), err);
    CHECK_OK(kg_mkdirs("/", &err), err);
    CHECK_ERR(kg_mkdirs("", &err), err, KG_EINVAL, "empty");
    write_text(test_path("a/file"), "x");
    CHECK_ERR(kg_mkdirs(test_path("a/file"), &err), err, KG_EEXIST, "a file is in the way");
    CHECK_ERR(kg_mkdirs(test_path("a/file/b"), &err), err, KG_EEXIST, "a file is in the way");
    CHECK_INT(chdir(test_dir()), 0);
    CHECK_OK(kg_mkdirs("rel/x", &err), err);
    CHECK(kg_is_dir(test_path("rel/x")));
    write_text("rel/f", "relative");
    write_text("plain", "in .");
    CHECK_STR(bytes_of(test_path("plain")), "in .");
    CHECK_OK(kg_sync_dir("rel", &err), err);
    CHECK_ERR(kg_sync_dir("plain", &err), err, KG_ENOTFOUND, "Not a directory");
}

TEST(fs_lists_sorted_without_temporaries) {
    kg_error err = {0};
    static const char *const made[] = {"b", "a", "B", ".hidden", ".tmp-1-2-3", "a.b", "\xC3\xA9"};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++)
        write_text(test_path(made[i]), "");
    char **names;
    size_t n;
    CHECK_OK(kg_list_dir(test_dir(), &names, &n, &err), err);
    static const char *const want[] = {".hidden", "B", "a", "a.b", "b", "\xC3\xA9"};
    CHECK_UINT(n, sizeof want / sizeof *want);
    for (size_t i = 0; i < n; i++)
        CHECK_STR(names[i], want[i]);
    kg_free_names(names, n);
    CHECK_OK(kg_mkdirs(test_path("empty"), &err), err);
    CHECK_OK(kg_list_dir(test_path("empty"), &names, &n, &err), err);
    CHECK_UINT(n, 0);
    kg_free_names(names, n);
    n = 99;
    CHECK_ERR(kg_list_dir(test_path("none"), &names, &n, &err), err, KG_ENOTFOUND, "list");
    CHECK_UINT(n, 99);
}

TEST(fs_removes_trees_and_follows_no_link) {
    kg_error err = {0};
    CHECK_OK(kg_mkdirs(test_path("out"), &err), err);
    write_text(test_path("out/kept"), "kept");
    CHECK_OK(kg_mkdirs(test_path("t/a/b"), &err), err);
    for (int i = 0; i < 300; i++) {
        char name[32];
        snprintf(name, sizeof name, "t/a/f%d", i);
        write_text(test_path(name), "x");
    }
    CHECK_INT(symlink("../../out", test_path("t/a/link")), 0);
    CHECK_INT(symlink("none", test_path("t/dangling")), 0);
    CHECK_OK(kg_remove_tree(test_path("t"), &err), err);
    CHECK(!kg_is_dir(test_path("t")));
    CHECK_STR(bytes_of(test_path("out/kept")), "kept");
    CHECK_INT(symlink("out", test_path("l")), 0);
    CHECK_OK(kg_remove_tree(test_path("l/"), &err), err);
    CHECK_STR(bytes_of(test_path("out/kept")), "kept");
    CHECK_OK(kg_remove_tree(test_path("out/kept"), &err), err);
    CHECK_UINT(entries(), 1);
    CHECK_OK(kg_remove_tree(test_path("none"), &err), err);
    CHECK_OK(kg_remove_tree(test_path("none/x"), &err), err);
}

TEST(fs_remove_refuses_what_is_no_folder_of_its_own) {
    kg_error err = {0};
    static const char *const bad[] = {"", "/", "//", ".", "..", "/tmp/..", "x/."};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_ERR(kg_remove_tree(bad[i], &err), err, KG_EINVAL, "no folder of its own");
    CHECK_INT(chdir(test_dir()), 0);
    for (int i = 0; i < 70; i++) {
        CHECK_INT(mkdir("d", 0700), 0);
        CHECK_INT(chdir("d"), 0);
    }
    CHECK_ERR(kg_remove_tree(test_path("d"), &err), err, KG_EINVAL, "nested deeper than 64");
}

/* A process that takes the lock, says so, and holds it until it is killed. */
static pid_t holder_of(const char *path) {
    int ends[2];
    CHECK_INT(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        int fd;
        char word = kg_lock_file(path, 0, &fd, NULL) == KG_OK ? 'y' : 'n';
        (void)!write(ends[1], &word, 1);
        pause();
        _exit(0);
    }
    char word = 0;
    CHECK_INT(read(ends[0], &word, 1), 1);
    CHECK_INT(word, 'y');
    close(ends[0]);
    close(ends[1]);
    return pid;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

TEST(fs_lock_names_its_holder) {
    kg_error err = {0};
    const char *path = test_path("lock");
    pid_t pid = holder_of(path);
    char want[64];
    snprintf(want, sizeof want, "is held by process %ld", (long)pid);
    int fd = -1;
    CHECK_ERR(kg_lock_file(path, 0, &fd, &err), err, KG_EBUSY, want);
    CHECK_HAS(err.msg, path);
    double from = seconds();
    CHECK_ERR(kg_lock_file(path, 100, &fd, &err), err, KG_EBUSY, "gave up after 100 ms");
    CHECK(seconds() - from >= 0.1);
    CHECK_INT(fd, -1);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    CHECK_OK(kg_lock_file(path, 0, &fd, &err), err);
    kg_unlock_file(fd);
    CHECK(kg_is_file(path));
    CHECK_STR(bytes_of(path), "");
}

TEST(fs_lock_waits_for_its_turn) {
    kg_error err = {0};
    const char *path = test_path("lock");
    pid_t pid = holder_of(path);
    pid_t killer = fork();
    if (killer == 0) {
        nanosleep(&(struct timespec){.tv_nsec = 150000000}, NULL);
        kill(pid, SIGKILL);
        _exit(0);
    }
    int fd;
    CHECK_OK(kg_lock_file(path, -1, &fd, &err), err);
    int second = -1;
    CHECK_ERR(kg_lock_file(path, 0, &second, &err), err, KG_EBUSY, "held by process");
    kg_unlock_file(fd);
    kg_unlock_file(-1);
    waitpid(pid, NULL, 0);
    waitpid(killer, NULL, 0);
}

static void want_stop(int unused) {
    (void)unused;
    kg_stop_set(true);
}

TEST(fs_lock_wait_ends_with_a_wish_to_stop) {
    kg_error err = {0};
    const char *path = test_path("lock");
    pid_t pid = holder_of(path);
    signal(SIGALRM, want_stop);
    struct itimerspec soon = {.it_value = {.tv_nsec = 100000000}};
    timer_t timer;
    CHECK_INT(timer_create(CLOCK_MONOTONIC, NULL, &timer), 0);
    CHECK_INT(timer_settime(timer, 0, &soon, NULL), 0);
    int fd = -1;
    double from = seconds();
    CHECK_ERR(kg_lock_file(path, -1, &fd, &err), err, KG_EINTR, "interrupted while waiting");
    CHECK(seconds() - from < 5);
    timer_delete(timer);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* Eight processes add one to a number under the lock, 25 times each. */
TEST(fs_lock_excludes) {
    const char *lock = test_path("lock"), *path = test_path("number");
    write_text(path, "0");
    for (int i = 0; i < 8; i++) {
        if (fork() != 0)
            continue;
        for (int k = 0; k < 25; k++) {
            int fd, got = kg_lock_file(lock, -1, &fd, NULL);
            char text[32];
            int n = snprintf(text, sizeof text, "%ld", strtol(bytes_of(path), NULL, 10) + 1);
            if (got < 0 || kg_write_atomic(path, text, (size_t)n, NULL) < 0)
                _exit(1);
            kg_unlock_file(fd);
        }
        _exit(0);
    }
    int how;
    while (wait(&how) > 0)
        CHECK_INT(how, 0);
    CHECK_STR(bytes_of(path), "200");
}

/* Writers and a reader at once: each read is one of the two whole texts. */
TEST(fs_readers_see_whole_files) {
    const char *path = test_path("f");
    static char a[40000], b[30000];
    memset(a, 'a', sizeof a);
    memset(b, 'b', sizeof b);
    kg_error err = {0};
    CHECK_OK(kg_write_atomic(path, a, sizeof a, &err), err);
    pid_t pids[2];
    for (int i = 0; i < 2; i++)
        if ((pids[i] = fork()) == 0) {
            for (int k = 0; k < 60; k++)
                if (kg_write_atomic(path, i ? a : b, i ? sizeof a : sizeof b, NULL) < 0)
                    _exit(1);
            _exit(0);
        }
    int how, left = 2;
    while (left > 0) {
        kg_buf got;
        kg_buf_init(&got, 0);
        CHECK_OK(kg_read_file(path, 1 << 20, &got, &err), err);
        bool is_a = got.len == sizeof a && memcmp(got.data, a, sizeof a) == 0;
        bool is_b = got.len == sizeof b && memcmp(got.data, b, sizeof b) == 0;
        CHECK(is_a || is_b);
        kg_buf_free(&got);
        while (left > 0 && waitpid(-1, &how, WNOHANG) > 0) {
            CHECK_INT(how, 0);
            left--;
        }
    }
    CHECK_UINT(links_of_everything(), 1);
}

static void check_place(char *got, const char *want) {
    CHECK_STR(got, want);
    free(got);
}

TEST(fs_places_of_the_user) {
    setenv("HOME", "/home/x", 1);
    unsetenv("KGEN_CACHE");
    unsetenv("XDG_CACHE_HOME");
    unsetenv("XDG_DATA_HOME");
    check_place(kg_cache_dir(), "/home/x/.cache/kgen");
    check_place(kg_user_registry(), "/home/x/.local/share/kgen/generated");
    setenv("XDG_CACHE_HOME", "relative", 1);
    setenv("XDG_DATA_HOME", "", 1);
    check_place(kg_cache_dir(), "/home/x/.cache/kgen");
    check_place(kg_user_registry(), "/home/x/.local/share/kgen/generated");
    setenv("XDG_CACHE_HOME", "/c", 1);
    setenv("XDG_DATA_HOME", "/d/", 1);
    check_place(kg_cache_dir(), "/c/kgen");
    check_place(kg_user_registry(), "/d/kgen/generated");
    setenv("KGEN_CACHE", "/k", 1);
    check_place(kg_cache_dir(), "/k");
    setenv("KGEN_CACHE", "", 1);
    check_place(kg_cache_dir(), "/c/kgen");
    unsetenv("HOME");
    unsetenv("XDG_DATA_HOME");
    char *path = kg_user_registry();
    CHECK_HAS(path, "/.local/share/kgen/generated");
    free(path);
}
