/* Runs the tests: each in a child process, one after the other, in the order of their files and
 * lines.
 *
 *     kgen-ctests [--list] [--here] [part of a name or file]...
 *
 * --here runs in this process, for a debugger. The last line is `N passed, N failed`, with
 * `, N skipped` when any is; those are named above it. No test run is a failure, too. */
#include "test.h"

#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SKIPPED = 77 };

static kg_test *tests;
static char folder[64];

void kg_test_add(kg_test *test) {
    kg_test **at = &tests;
    while (*at && strcmp((*at)->file, test->file) <= 0)
        at = &(*at)->next;
    test->next = *at;
    *at = test;
}

const char *test_dir(void) {
    return folder;
}

const char *test_path(const char *name) {
    static char paths[16][512];
    static unsigned next;
    char *path = paths[next++ % 16];
    int n = snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    if (n < 0 || (size_t)n >= sizeof paths[0])
        FAIL("the name is too long: %s", name);
    return path;
}

static void say(const char *what, const char *where, const char *fmt, va_list ap) {
    printf("  %s%s", what, where);
    vprintf(fmt, ap);
    printf("\n");
    fflush(NULL);
}

void test_fail(const char *file, int line, const char *fmt, ...) {
    char where[256];
    va_list ap;
    snprintf(where, sizeof where, "%s:%d: ", file, line);
    va_start(ap, fmt);
    say("", where, fmt, ap);
    va_end(ap);
    _exit(1); /* not exit: what the test holds is no leak */
}

void test_skip(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    say("skipped: ", "", fmt, ap);
    va_end(ap);
    _exit(SKIPPED);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at) {
    (void)st, (void)type, (void)at;
    return remove(path);
}

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The wait status; *late when the limit ended it. */
static int wait_for(pid_t child, int limit, bool *late) {
    double end = seconds_now() + limit;
    for (int status;;) {
        pid_t got = waitpid(child, &status, WNOHANG);
        if (got == child) {
            kill(-child, SIGKILL); /* what a failed test left running */
            return status;
        }
        if (got < 0 && errno != EINTR)
            return -1;
        if (!*late && seconds_now() > end) {
            *late = true;
            kill(-child, SIGKILL);
            kill(child, SIGKILL);
        }
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
    }
}

static bool passed(const kg_test *test, int status, bool late) {
    if (late) {
        printf("  it ran longer than %d s\n", test->seconds);
    } else if (status != -1 && WIFSIGNALED(status)) {
        printf("  signal %d (%s)\n", WTERMSIG(status), strsignal(WTERMSIG(status)));
    }
    return !late && status != -1 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool make_folder(void) {
    const char *tmp = getenv("TMPDIR");
    int n = snprintf(folder, sizeof folder, "%s/kgen-test-XXXXXX", tmp ? tmp : "/tmp");
    return n > 0 && (size_t)n < sizeof folder && mkdtemp(folder);
}

/* 0 passed, 1 failed, SKIPPED. */
static int run(const kg_test *test, bool here) {
    if (!make_folder()) {
        printf("FAIL %s: mkdtemp %s: %s\n", test->name, folder, strerror(errno));
        return 1;
    }
    fflush(NULL);
    pid_t child = here ? 0 : fork();
    if (child == 0) {
        if (!here)
            setpgid(0, 0);
        setenv("KGEN_LOCKS", test_path("locks"), 1); /* not those of who works on this machine */
        test->run();
        if (!here)
            exit(0); /* the leak check runs at exit */
    }
    bool late = false;
    int status = here ? 0 : child < 0 ? -1 : wait_for(child, test->seconds, &late);
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    if (status != -1 && !late && WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED) {
        printf("skipped %s\n", test->name);
        return SKIPPED;
    }
    bool good = passed(test, status, late);
    if (!good)
        printf("FAIL %s (%s)\n", test->name, test->file);
    return good ? 0 : 1;
}

static bool wanted(const kg_test *test, int argc, char **argv) {
    bool any = false;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] == '-')
            continue;
        any = true;
        if (strstr(test->name, argv[i]) || strstr(test->file, argv[i]))
            return true;
    }
    return !any;
}

static bool flag(const char *name, int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return true;
    return false;
}

int main(int argc, char **argv) {
    bool list = flag("--list", argc, argv), here = flag("--here", argc, argv);
    int good = 0, bad = 0, skipped = 0;
    for (const kg_test *test = tests; test; test = test->next) {
        if (!wanted(test, argc, argv))
            continue;
        if (list) {
            printf("%s (%s)\n", test->name, test->file);
            continue;
        }
        int result = run(test, here);
        good += result == 0;
        bad += result == 1;
        skipped += result == SKIPPED;
    }
    if (list)
        return 0;
    printf("%d passed, %d failed", good, bad);
    if (skipped)
        printf(", %d skipped", skipped);
    printf("\n");
    return bad || !good;
}
