/* Runs the tests: each in a child process, started in the order of their files and lines.
 *
 *     kgen-ctests [--list] [--here] [--beside=N] [part of a name or file]...
 *
 * --here runs in this process, for a debugger; --beside runs up to N at once (1). What a test says
 * is printed when it has ended, above its name. The last line is `N passed, N failed`, with `, N
 * skipped` when any is; those are named above it. No test run is a failure, too. */
#include "test.h"

#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SKIPPED = 77, MOST = 64 };

static kg_test *tests;
static char folder[64]; /* of the test that this process is */

/* A test that runs. */
typedef struct {
    const kg_test *test; /* NULL: none */
    pid_t child;
    double end;
    bool late; /* its limit ended it */
    char folder[64];
    FILE *said; /* its stdout and stderr */
} job;

static job jobs[MOST];
static struct { int good, bad, skipped; } count;

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

static bool passed(const job *j, int status) {
    if (j->late) {
        printf("  it ran longer than %d s\n", j->test->seconds);
    } else if (WIFSIGNALED(status)) {
        printf("  signal %d (%s)\n", WTERMSIG(status), strsignal(WTERMSIG(status)));
    }
    return !j->late && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool make_folder(char *path, size_t size) {
    const char *tmp = getenv("TMPDIR");
    int n = snprintf(path, size, "%s/kgen-test-XXXXXX", tmp ? tmp : "/tmp");
    return n > 0 && (size_t)n < size && mkdtemp(path);
}

static void remove_folder(const char *path) {
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void repeat(FILE *said) {
    char part[4096];
    rewind(said);
    for (size_t n; (n = fread(part, 1, sizeof part, said)) > 0;)
        fwrite(part, 1, n, stdout);
    fclose(said);
}

/* Runs the test and does not return, but for here. */
static void be(const job *j, bool here) {
    memcpy(folder, j->folder, sizeof folder);
    if (!here) {
        setpgid(0, 0);
        if (dup2(fileno(j->said), STDOUT_FILENO) < 0 || dup2(fileno(j->said), STDERR_FILENO) < 0)
            _exit(1);
        for (int i = 0; i < MOST; i++)
            if (jobs[i].test && jobs[i].said)
                fclose(jobs[i].said); /* a test has no descriptor but its own */
    }
    setenv("KGEN_LOCKS", test_path("locks"), 1); /* not those of who works on this machine */
    j->test->run();
    if (!here)
        exit(0); /* the leak check runs at exit */
}

static void not_started(job *j, const char *call) {
    printf("FAIL %s: %s: %s\n", j->test->name, call, strerror(errno));
    count.bad++;
    j->test = NULL;
}

static void start(job *j, const kg_test *test, bool here) {
    *j = (job){.test = test, .end = seconds_now() + test->seconds};
    if (!make_folder(j->folder, sizeof j->folder)) {
        not_started(j, "mkdtemp");
        return;
    }
    j->said = here ? NULL : tmpfile();
    fflush(NULL);
    j->child = here ? 0 : j->said ? fork() : -1;
    if (j->child < 0) {
        not_started(j, "fork");
    } else if (here) {
        be(j, true);
        remove_folder(j->folder);
        count.good++;
        j->test = NULL;
    } else if (j->child == 0) {
        be(j, false);
    }
}

static void ended(job *j, int status) {
    kill(-j->child, SIGKILL); /* what a failed test left running */
    remove_folder(j->folder);
    repeat(j->said);
    if (!j->late && WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED) {
        printf("skipped %s\n", j->test->name);
        count.skipped++;
    } else if (passed(j, status)) {
        count.good++;
    } else {
        printf("FAIL %s (%s)\n", j->test->name, j->test->file);
        count.bad++;
    }
    fflush(stdout);
    j->test = NULL;
}

static void look_after(job *j) {
    int status;
    if (waitpid(j->child, &status, WNOHANG) == j->child) {
        ended(j, status);
    } else if (!j->late && seconds_now() > j->end) {
        j->late = true;
        kill(-j->child, SIGKILL);
        kill(j->child, SIGKILL);
    }
}

/* A free place among the first n; waits for one. */
static job *place(int n) {
    for (;;) {
        for (int i = 0; i < n; i++) {
            if (jobs[i].test)
                look_after(&jobs[i]);
            if (!jobs[i].test)
                return &jobs[i];
        }
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
    }
}

static void finish(int n) {
    for (int i = 0; i < n; i++) {
        while (jobs[i].test) {
            look_after(&jobs[i]);
            nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
        }
    }
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

/* N of --beside=N, 1 without, 0 for a number that is none. */
static int beside(int argc, char **argv) {
    int n = 1;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--beside=", 9) == 0) {
            char *end;
            long given = strtol(argv[i] + 9, &end, 10);
            n = *end || given < 1 ? 0 : given > MOST ? MOST : (int)given;
        }
    }
    return n;
}

static void list(int argc, char **argv) {
    for (const kg_test *test = tests; test; test = test->next)
        if (wanted(test, argc, argv))
            printf("%s (%s)\n", test->name, test->file);
}

int main(int argc, char **argv) {
    bool here = flag("--here", argc, argv);
    int n = here ? 1 : beside(argc, argv);
    if (n == 0) {
        fprintf(stderr, "--beside: give a number of tests, 1 and more\n");
        return 2;
    }
    if (flag("--list", argc, argv)) {
        list(argc, argv);
        return 0;
    }
    for (const kg_test *test = tests; test; test = test->next)
        if (wanted(test, argc, argv))
            start(place(n), test, here);
    finish(n);
    printf("%d passed, %d failed", count.good, count.bad);
    if (count.skipped)
        printf(", %d skipped", count.skipped);
    printf("\n");
    return count.bad || !count.good;
}
