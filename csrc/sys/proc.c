/* Child processes. Until exec the child runs in the parent's memory, on a stack of its own: to copy
 * the page tables of a process that holds gigabytes of tensors, and to drop them again, takes
 * longer than the program that is started. It calls what is async-signal-safe and nothing else: the
 * parent may have threads that hold locks. What fails there comes back as a step and an errno
 * through a pipe that exec closes. Refuses shells, inherited descriptors, and to leave a child's
 * group behind. */
#include "sys/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/stop.h"
#include "sys/sandbox.h"

#define OUTPUT_DEFAULT ((int64_t)1 << 20)
/* Two megabytes: more than a pipe of the largest unprivileged size holds. */
#define DRAIN_ROUNDS 128
/* A wish to stop may arrive in another thread, which does not wake this one. */
#define SLICE_MS 100
/* The child's calls are a few frames deep, and one of them has an array of a system call's size. */
enum { CHILD_STACK = 32 << 10 };

/* The child's stack is none that the sanitizer knows, so what ends the child must not tell it of a
 * stack that is left. */
#define ON_CHILD_STACK __attribute__((noreturn, no_sanitize("address")))

extern char **environ;

/* X(name, text): where a child failed before it became another program. */
#define STEPS(X)                                                                                   \
    X(LOCK, "landlock_restrict_self")                                                              \
    X(SIGNALS, "reset signals")                                                                    \
    X(GROUP, "setpgid")                                                                            \
    X(DEATH, "prctl(PR_SET_PDEATHSIG)")                                                            \
    X(LIMITS, "setrlimit")                                                                         \
    X(DESCRIPTORS, "dup2")                                                                         \
    X(FOLDER, "chdir")                                                                             \
    X(EXEC, "execve")

typedef enum step {
#define X(name, text) STEP_##name,
    STEPS(X)
#undef X
} step;

static const char *const step_text[] = {
#define X(name, text) text,
    STEPS(X)
#undef X
};

typedef struct failure {
    int step, error;
} failure;

/* All that a child needs, laid out before it is there. The parent sees what the child changes. */
typedef struct plan {
    const char *path, *cwd;
    char *const *argv, *const *env;
    const int *keep;
    size_t nkeep;
    int *moved; /* nkeep + 3 numbers above those that the child gets */
    int null_fd, out_fd, report_fd;
    pid_t parent;
    const kg_limits *limits;
    rlim_t max_files;
} plan;

int64_t kg_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ENOMEM or a full table is this machine's state, not the program's. */
static int fail_errno(kg_error *err, const char *call, const char *program) {
    int e = errno;
    int code = e == ENOMEM                                  ? KG_ENOMEM
               : e == ENOENT || e == EACCES || e == ENOEXEC ? KG_EENV
                                                            : KG_EIO;
    return kg_fail(err, code, "%s for %s: %s", call, program, strerror(e));
}

ON_CHILD_STACK static void give_up(const plan *p, step at) {
    failure f = {.step = (int)at, .error = errno};
    ssize_t put = write(p->report_fd, &f, sizeof f);
    _exit(put == (ssize_t)sizeof f ? 127 : 126);
}

static int set_limit(int resource, int64_t soft, int64_t hard) {
    struct rlimit now;
    if (soft <= 0)
        return 0;
    if (getrlimit((__rlimit_resource_t)resource, &now) < 0)
        return -1;
    struct rlimit want = {.rlim_cur = (rlim_t)soft, .rlim_max = (rlim_t)hard};
    if (now.rlim_max != RLIM_INFINITY && want.rlim_max > now.rlim_max)
        want.rlim_max = now.rlim_max;
    if (want.rlim_cur > want.rlim_max)
        want.rlim_cur = want.rlim_max;
    return setrlimit((__rlimit_resource_t)resource, &want);
}

static int set_limits(const kg_limits *l) {
    struct rlimit no_core = {0};
    if (setrlimit(RLIMIT_CORE, &no_core) < 0)
        return -1;
    if (!l)
        return 0;
    /* A second more before SIGKILL, for a program that reports SIGXCPU. */
    return set_limit(RLIMIT_CPU, l->cpu_s, l->cpu_s + 1) < 0 ||
                   set_limit(RLIMIT_AS, l->memory, l->memory) < 0 ||
                   set_limit(RLIMIT_FSIZE, l->file_size, l->file_size) < 0
               ? -1
               : 0;
}

static void close_from(unsigned first, rlim_t max_files) {
#ifdef SYS_close_range
    if (syscall(SYS_close_range, first, ~0U, 0U) == 0)
        return;
#endif
    /* A kernel before 5.9. */
    for (unsigned fd = first; fd < max_files && fd < 65536; fd++)
        close((int)fd);
}

/* Everything moves up first, so that no dup2 overwrites what a later one needs. */
static int place_descriptors(plan *p) {
    int top = (int)p->nkeep + 4;
    int sources[] = {p->null_fd, p->out_fd, p->report_fd};
    for (size_t i = 0; i < p->nkeep + 3; i++) {
        p->moved[i] = fcntl(i < 3 ? sources[i] : p->keep[i - 3], F_DUPFD_CLOEXEC, top);
        if (p->moved[i] < 0)
            return -1;
    }
    p->report_fd = p->moved[2];
    if (dup2(p->moved[0], 0) < 0 || dup2(p->moved[1], 1) < 0 || dup2(p->moved[1], 2) < 0)
        return -1;
    for (size_t i = 0; i < p->nkeep; i++)
        if (dup2(p->moved[i + 3], (int)i + 3) < 0)
            return -1;
    int report = top - 1;
    if (dup3(p->report_fd, report, O_CLOEXEC) < 0)
        return -1;
    p->report_fd = report;
    close_from((unsigned)top, p->max_files);
    return 0;
}

/* What the parent ignores or catches (an interpreter ignores SIGPIPE) is not the program's
 * business. All signals are blocked until the handlers of the parent are gone. To ignore one first
 * forgets it: Ctrl-C may have reached this process before it left the parent's group. */
static int reset_signals(void) {
    struct sigaction forget = {.sa_handler = SIG_IGN}, plain = {.sa_handler = SIG_DFL};
    for (int s = 1; s < NSIG; s++)
        if (s != SIGKILL && s != SIGSTOP) {
            (void)sigaction(s, &forget, NULL);
            (void)sigaction(s, &plain, NULL);
        }
    sigset_t none;
    sigemptyset(&none);
    return sigprocmask(SIG_SETMASK, &none, NULL);
}

ON_CHILD_STACK static void become(plan *p) {
    if (setpgid(0, 0) < 0)
        give_up(p, STEP_GROUP);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        give_up(p, STEP_DEATH);
    if (getppid() != p->parent)
        _exit(126);
    /* While the ruleset has its number. */
    if (p->limits && p->limits->ruleset && *p->limits->ruleset >= 0 &&
        kg_sandbox_enter(*p->limits->ruleset) < 0)
        give_up(p, STEP_LOCK);
    if (place_descriptors(p) < 0)
        give_up(p, STEP_DESCRIPTORS);
    if (p->cwd && chdir(p->cwd) < 0)
        give_up(p, STEP_FOLDER);
    if (set_limits(p->limits) < 0)
        give_up(p, STEP_LIMITS);
    if (reset_signals() < 0)
        give_up(p, STEP_SIGNALS);
    execve(p->path, p->argv, p->env);
    give_up(p, STEP_EXEC);
}

static bool is_program(const char *path) {
    return kg_is_file(path) && access(path, X_OK) == 0;
}

static const char *search_path(const char *const env[]) {
    for (size_t i = 0; env && env[i]; i++)
        if (strncmp(env[i], "PATH=", 5) == 0)
            return env[i] + 5;
    const char *ours = env ? NULL : getenv("PATH");
    return ours ? ours : "/usr/local/bin:/usr/bin:/bin";
}

/* Along PATH, by absolute entries alone: nothing is found through the working directory. */
static int find_program(const char *name, const char *const env[], char **out, kg_error *err) {
    if (strchr(name, '/')) {
        *out = strdup(name);
        return *out ? KG_OK : kg_fail(err, KG_ENOMEM, "start %s: out of memory", name);
    }
    const char *path = search_path(env);
    for (const char *at = path; *name && *at;) {
        size_t n = strcspn(at, ":");
        char *dir = strndup(at, n);
        char *candidate = dir && *dir == '/' ? kg_path_join(dir, name) : NULL;
        free(dir);
        if (candidate && is_program(candidate)) {
            *out = candidate;
            return KG_OK;
        }
        free(candidate);
        at += n + (at[n] == ':');
    }
    return kg_fail(err, KG_EENV, "\"%s\" is not in PATH (%s)", name, path);
}

/* The child has become the program, or has written why not and ended; then it is reaped here. The
 * pipe must not be waited for: a process forked elsewhere in between may hold its other end for
 * long. */
static int read_report(int report, pid_t pid, const plan *p, kg_error *err) {
    failure f;
    ssize_t got = read(report, &f, sizeof f);
    if (got <= 0)
        return KG_OK;
    waitpid(pid, NULL, 0);
    const char *program = p->argv[0];
    if (got != (ssize_t)sizeof f || f.step < 0 || f.step > STEP_EXEC)
        return kg_fail(err, KG_EIO, "start %s: no answer from the child", program);
    errno = f.error;
    if (f.step == STEP_FOLDER)
        return kg_fail(err, KG_EIO, "start %s: chdir %s: %s", program, p->cwd, strerror(f.error));
    return fail_errno(err, step_text[f.step], program);
}

static void close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

ON_CHILD_STACK static int child_main(void *plan_) {
    become(plan_);
}

/* Returns in the parent once the child has become another program or ended, and runs no
 * pthread_atfork handlers, which are other libraries' and for children that go on. Signals stay
 * blocked: a handler of the parent must not run in the child. */
static pid_t fork_quietly(plan *p) {
    _Alignas(16) char stack[CHILD_STACK];
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t pid = clone(child_main, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, p);
    int e = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = e;
    return pid;
}

static int fork_exec(plan *p, kg_proc *out, kg_error *err) {
    int report[2];
    const char *program = p->argv[0];
    if (pipe2(report, O_CLOEXEC | O_NONBLOCK) < 0)
        return fail_errno(err, "pipe", program);
    p->report_fd = report[1];
    int64_t start = kg_now_ns();
    pid_t pid = fork_quietly(p);
    int status = pid < 0 ? fail_errno(err, "fork", program) : KG_OK;
    close_fd(&report[1]);
    if (status == KG_OK)
        status = read_report(report[0], pid, p, err);
    close_fd(&report[0]);
    if (status < 0)
        return status;
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0U);
    if (pidfd < 0) {
        status =
            kg_fail(err, KG_EENV, "pidfd_open: %s (Linux 5.3 or newer is needed)", strerror(errno));
        kill(-pid, SIGKILL);
        waitpid(pid, NULL, 0);
        return status;
    }
    int64_t wall = p->limits ? p->limits->wall_ms : 0;
    *out = (kg_proc){.pid = pid,
                     .pidfd = pidfd,
                     .start_ns = start,
                     .deadline_ns = wall > 0 ? start + wall * 1000000 : 0};
    return KG_OK;
}

static int start(const char *const argv[], const char *const env[], const char *cwd,
                 const int *keep, size_t nkeep, int out_fd, const kg_limits *limits, kg_proc *out,
                 kg_error *err) {
    if (!argv || !argv[0])
        return kg_fail(err, KG_EINVAL, "start a program: argv is empty");
    struct rlimit files = {.rlim_cur = 1024};
    getrlimit(RLIMIT_NOFILE, &files);
    char *path = NULL;
    int status = find_program(argv[0], env, &path, err);
    int null_fd = status == KG_OK ? open("/dev/null", O_RDWR | O_CLOEXEC) : -1;
    if (status == KG_OK && null_fd < 0)
        status = fail_errno(err, "open /dev/null", argv[0]);
    int *moved = calloc(nkeep + 3, sizeof *moved);
    if (status == KG_OK && !moved)
        status = kg_fail(err, KG_ENOMEM, "start %s: out of memory", argv[0]);
    if (status == KG_OK) {
        /* execve takes char *const: it does not write to them. */
        plan p = {.path = path,
                  .cwd = cwd,
                  .argv = (char *const *)(uintptr_t)argv,
                  .env = env ? (char *const *)(uintptr_t)env : environ,
                  .keep = keep,
                  .nkeep = nkeep,
                  .moved = moved,
                  .null_fd = null_fd,
                  .out_fd = out_fd >= 0 ? out_fd : null_fd,
                  .parent = getpid(),
                  .limits = limits,
                  .max_files = files.rlim_cur};
        status = fork_exec(&p, out, err);
    }
    free(moved);
    close_fd(&null_fd);
    free(path);
    return status;
}

int kg_proc_start(const char *const argv[], const char *const env[], const int *keep, size_t nkeep,
                  int log_fd, const kg_limits *limits, kg_proc *p, kg_error *err) {
    return start(argv, env, NULL, keep, nkeep, log_fd, limits, p, err);
}

/* The leader has ended and is not reaped, so its number still names its group and no other. */
static void reap(kg_proc *p, bool timed_out, kg_exit *ex) {
    int how = 0;
    pid_t got;
    kill(-p->pid, SIGKILL);
    do
        got = waitpid(p->pid, &how, 0);
    while (got < 0 && errno == EINTR);
    kg_exit e = {.timed_out = timed_out,
                 .code = got == p->pid && WIFEXITED(how) ? WEXITSTATUS(how) : -1,
                 .signal = got == p->pid && WIFSIGNALED(how) ? WTERMSIG(how) : 0,
                 .wall_ms = (kg_now_ns() - p->start_ns) / 1000000};
    close_fd(&p->pidfd);
    p->pid = 0;
    if (ex)
        *ex = e;
}

/* Milliseconds until t, rounded up, at most a slice; 0 when it is over. */
static int slice_until(int64_t t_ns) {
    if (t_ns == 0)
        return SLICE_MS;
    int64_t left = t_ns - kg_now_ns();
    if (left <= 0)
        return 0;
    int64_t ms = (left + 999999) / 1000000;
    return ms < SLICE_MS ? (int)ms : SLICE_MS;
}

static bool is_over(int64_t t_ns) {
    return t_ns != 0 && kg_now_ns() >= t_ns;
}

int kg_proc_wait(kg_proc *p, int64_t wait_ms, kg_exit *ex, kg_error *err) {
    if (p->pid <= 0)
        return kg_fail(err, KG_EINVAL, "wait for a process: it is not running");
    int64_t until = wait_ms < 0 ? 0 : kg_now_ns() + wait_ms * 1000000;
    for (;;) {
        int ms = slice_until(until), wall = slice_until(p->deadline_ns);
        struct pollfd fd = {.fd = p->pidfd, .events = POLLIN};
        int n = poll(&fd, 1, wall < ms ? wall : ms);
        if (n < 0 && errno != EINTR)
            return kg_fail(err, KG_EIO, "poll: %s", strerror(errno));
        bool ended = n > 0, timed_out = !ended && is_over(p->deadline_ns);
        if (ended || timed_out) {
            reap(p, timed_out, ex);
            return KG_OK;
        }
        if (wait_ms >= 0 && kg_now_ns() >= until)
            return kg_fail(err, KG_ETIMEOUT, "process %ld still runs after %lld ms", (long)p->pid,
                           (long long)wait_ms);
        if (kg_stop_wanted())
            return kg_fail(err, KG_EINTR, "interrupted while process %ld runs", (long)p->pid);
    }
}

void kg_proc_kill(kg_proc *p, kg_exit *ex) {
    if (p->pid > 0)
        reap(p, false, ex);
    else if (ex)
        *ex = (kg_exit){.code = -1};
}

/* What a child writes: kept up to a limit, read beyond it so that the child is not held up. */
typedef struct capture {
    int fd; /* -1 after its end */
    kg_buf *out;
    size_t left;
} capture;

/* Reads what is there now, but ends also when the child writes as fast as it is read. */
static void drain(capture *c) {
    char chunk[16384];
    for (int rounds = 0; c->fd >= 0 && rounds < DRAIN_ROUNDS; rounds++) {
        ssize_t got = read(c->fd, chunk, sizeof chunk);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0) {
            close_fd(&c->fd);
            return;
        }
        size_t n = (size_t)got < c->left ? (size_t)got : c->left;
        kg_buf_add(c->out, chunk, n);
        c->left -= n;
    }
}

static int watch(kg_proc *p, capture *c, kg_exit *ex, kg_error *err) {
    for (;;) {
        struct pollfd fds[] = {{.fd = p->pidfd, .events = POLLIN}, {.fd = c->fd, .events = POLLIN}};
        int n = poll(fds, 2, slice_until(p->deadline_ns));
        if (n < 0 && errno != EINTR)
            return kg_fail(err, KG_EIO, "poll: %s", strerror(errno));
        if (n > 0 && fds[1].revents)
            drain(c);
        bool ended = n > 0 && fds[0].revents, timed_out = !ended && is_over(p->deadline_ns);
        if (ended || timed_out) {
            reap(p, timed_out, ex);
            drain(c);
            return KG_OK;
        }
        if (kg_stop_wanted())
            return kg_fail(err, KG_EINTR, "interrupted");
    }
}

int kg_proc_run(const char *const argv[], const char *const env[], const char *cwd,
                const kg_limits *limits, kg_buf *out, kg_exit *ex, kg_error *err) {
    int ends[2] = {-1, -1};
    if (out && pipe2(ends, O_CLOEXEC) < 0)
        return kg_fail(err, KG_EIO, "pipe: %s", strerror(errno));
    int64_t limit = limits && limits->output_bytes > 0 ? limits->output_bytes : OUTPUT_DEFAULT;
    kg_proc p = {.pidfd = -1};
    kg_exit end = {.code = -1};
    int status = start(argv, env, cwd, NULL, 0, ends[1], limits, &p, err);
    close_fd(&ends[1]);
    capture c = {.fd = ends[0], .out = out, .left = (size_t)limit};
    if (status == KG_OK && out && fcntl(c.fd, F_SETFL, O_NONBLOCK) < 0)
        status = kg_fail(err, KG_EIO, "fcntl: %s", strerror(errno));
    if (status == KG_OK)
        status = watch(&p, &c, &end, err);
    kg_proc_kill(&p, NULL);
    close_fd(&c.fd);
    if (status == KG_OK && out)
        status = kg_buf_check(out, "output of a program", err);
    if (status < 0)
        return status;
    *ex = end;
    return KG_OK;
}
