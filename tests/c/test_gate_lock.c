/* The lock of the gate's process, tried by what would be in it if nothing had been inspected: each
 * attempt in a process of its own, which locks itself as the gate's does and then does it. */
#define _GNU_SOURCE
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kgen_judge.h"
#include "runtime/types.h"

enum { SIGSYS_EXIT = 128 + SIGSYS };

typedef struct end {
    char said[512]; /* all that came over the socket */
    int code;       /* the exit code, or minus the signal */
} end;

/* What it is done in: a process armed, or locked before the load, or locked altogether. */
typedef enum when { ARMED, LOADING, LOADED } when;

typedef struct scene {
    int socket, file; /* where the gate's process talks; a file that was open before */
    pid_t parent;
} scene;

static void say(const scene *s, const char *text) {
    if (write(s->socket, text, strlen(text)) < 0)
        _exit(99);
}

static void must(const scene *s, bool holds, const char *what) {
    if (!holds) {
        say(s, what);
        _exit(98);
    }
}

static void lock(const scene *s, when upto, int device) {
    char err[512] = "";
    for (int loaded = 0; loaded < (int)upto; loaded++)
        if (kgen_gate_on_load(loaded, device, err, sizeof err) != 0) {
            say(s, err);
            _exit(97);
        }
}

static end run(void (*what)(const scene *), when upto, int device) {
    int ends[2];
    end out = {.code = 0};
    scene s = {.parent = getpid(), .file = open(test_path("open"), O_RDWR | O_CREAT, 0600)};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 && s.file >= 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(ends[0]);
        s.socket = ends[1];
        if (kgen_gate_lock(s.socket, NULL, 0) != 0)
            _exit(96);
        lock(&s, upto, device);
        what(&s);
        say(&s, "done");
        _exit(0);
    }
    close(ends[1]);
    size_t n = 0;
    ssize_t got;
    while ((got = read(ends[0], out.said + n, sizeof out.said - 1 - n)) > 0)
        n += (size_t)got;
    close(ends[0]);
    close(s.file);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    out.code = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
    return out;
}

/* ---- what is the end of it ---- */

static void writes_a_file(const scene *s) {
    (void)s;
    open(test_path("written"), O_WRONLY | O_CREAT, 0600);
}
static void appends_to_a_file(const scene *s) {
    (void)s;
    open(test_path("open"), O_RDWR | O_APPEND);
}
static void removes_a_file(const scene *s) {
    (void)s;
    unlink(test_path("open"));
}
static void renames_a_file(const scene *s) {
    (void)s;
    rename(test_path("open"), test_path("other"));
}
static void makes_a_folder(const scene *s) {
    (void)s;
    mkdir(test_path("folder"), 0700);
}
static void makes_a_file_another_way(const scene *s) {
    (void)s;
    mknod(test_path("node"), S_IFREG | 0600, 0);
}
static void opens_a_socket(const scene *s) {
    (void)s;
    socket(AF_INET, SOCK_STREAM, 0);
}
static void connects(const scene *s) {
    connect(s->socket, NULL, 0);
}
static void runs_a_program(const scene *s) {
    char *argv[] = {"/bin/true", NULL};
    (void)s;
    execve(argv[0], argv, NULL);
}
static void forks(const scene *s) {
    (void)s;
    if (fork() == 0)
        _exit(0);
}
static void forks_by_its_number(const scene *s) {
    (void)s;
#if defined(SYS_fork)
    if (syscall(SYS_fork) == 0)
#else
    if (syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0) == 0)
#endif
        _exit(0);
}
static void kills_the_judge(const scene *s) {
    kill(s->parent, SIGKILL);
}
static void kills_the_judge_by_thread(const scene *s) {
    syscall(SYS_tgkill, s->parent, s->parent, SIGKILL);
}
static void traces_the_judge(const scene *s) {
    ptrace(PTRACE_ATTACH, s->parent, NULL, NULL);
}
static void reads_the_judge(const scene *s) {
    char here[8];
    struct iovec to = {here, sizeof here}, from = {(void *)(uintptr_t)s, sizeof here};
    process_vm_readv(s->parent, &to, 1, &from, 1, 0);
}
static void writes_to_the_judge(const scene *s) {
    char here[8] = "";
    struct iovec from = {here, sizeof here}, to = {(void *)(uintptr_t)s, sizeof here};
    process_vm_writev(s->parent, &from, 1, &to, 1, 0);
}
static void takes_the_judges_files(const scene *s) {
    syscall(SYS_pidfd_open, s->parent, 0);
}

static const struct {
    const char *call; /* as the answer names it; "" when it has a number alone */
    void (*what)(const scene *);
} violations[] = {
    {"for writing", writes_a_file},
    {"for writing", appends_to_a_file},
    {"unlink", removes_a_file},
    {"rename", renames_a_file},
    {"mkdir", makes_a_folder},
    {"", makes_a_file_another_way},
    {"(socket)", opens_a_socket},
    {"(connect)", connects},
    {"(execve)", runs_a_program},
    {"(clone)", forks},
    {"", forks_by_its_number},
    {"(kill)", kills_the_judge},
    {"(tgkill)", kills_the_judge_by_thread},
    {"(ptrace)", traces_the_judge},
    {"(process_vm_readv)", reads_the_judge},
    {"(process_vm_writev)", writes_to_the_judge},
    {"", takes_the_judges_files},
};

static void every_violation(when upto) {
    for (size_t i = 0; i < sizeof violations / sizeof *violations; i++) {
        end e = run(violations[i].what, upto, KG_CPU);
        if (e.code != SIGSYS_EXIT || !strstr(e.said, "{\"error\": \"made system call ") ||
            !strstr(e.said, violations[i].call) || !strstr(e.said, "\"lost\": true}\n"))
            FAIL("violation %zu (%s): exit %d, said %s", i, violations[i].call, e.code, e.said);
    }
    struct stat st;
    CHECK(stat(test_path("open"), &st) == 0 && st.st_size == 0);
    CHECK(stat(test_path("written"), &st) != 0 && stat(test_path("other"), &st) != 0 &&
          stat(test_path("folder"), &st) != 0 && stat(test_path("node"), &st) != 0);
}

TEST(gate_lock_ends_what_violates_it) {
    every_violation(LOADED);
}

/* A constructor of the image runs between the two steps. */
TEST(gate_lock_holds_while_the_image_is_loaded) {
    every_violation(LOADING);
}

/* Each of them works before: the lock refuses it, and not this machine. */
TEST(gate_lock_is_what_refuses) {
    static void (*const harmless[])(const scene *) = {writes_a_file, opens_a_socket, forks,
                                                      makes_a_folder};
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++) {
        end e = run(harmless[i], ARMED, KG_CPU);
        CHECK_STR(e.said, "done");
        CHECK_INT(e.code, 0);
    }
    struct stat st;
    CHECK(stat(test_path("written"), &st) == 0 && stat(test_path("folder"), &st) == 0);
}

/* ---- threads that were there before ---- */

static sem_t locked;

static void *waits_and_writes(void *unused) {
    (void)unused;
    sem_wait(&locked);
    open(test_path("written"), O_WRONLY | O_CREAT, 0600);
    return NULL;
}

static void locks_beside_a_thread(const scene *s) {
    pthread_t thread;
    must(s, pthread_create(&thread, NULL, waits_and_writes, NULL) == 0, "no thread");
    lock(s, LOADED, KG_CPU);
    sem_post(&locked);
    pthread_join(thread, NULL);
}

TEST(gate_lock_binds_threads_that_are_there) {
    struct stat st;
    CHECK(sem_init(&locked, 0, 0) == 0);
    end e = run(locks_beside_a_thread, ARMED, KG_CPU);
    CHECK_HAS(e.said, "for writing");
    CHECK_INT(e.code, SIGSYS_EXIT);
    CHECK(stat(test_path("written"), &st) != 0);
}

/* ---- what is refused without a word ---- */

static bool refused(long result) {
    return result < 0 && errno == EPERM;
}

static void tries_what_is_left(const scene *s) {
    struct rlimit none = {0, 0};
    struct sigaction act = {.sa_handler = SIG_IGN};
    cpu_set_t set = {0};
    must(s, refused(open("/etc/passwd", O_RDONLY)), "a file is read");
    must(s, refused(open("/proc/self/mem", O_RDONLY)), "/proc is read");
    must(s, refused((long)syscall(SYS_memfd_create, "x", 0)), "memfd_create");
    must(s, refused(write(s->file, "x", 1)), "a file that was open is written");
    must(s, refused(pwrite(s->file, "x", 1, 0)), "pwrite");
    must(s, refused(ftruncate(s->file, 1)), "ftruncate");
    must(s, refused(syscall(SYS_prlimit64, s->parent, RLIMIT_CPU, &none, NULL)), "prlimit");
    must(s, refused(fcntl(s->file, F_SETOWN, s->parent)), "fcntl");
    must(s, refused(sched_setaffinity(s->parent, sizeof set, &set)), "sched_setaffinity");
    must(s, refused(syscall(SYS_rt_sigaction, SIGSYS, &act, NULL, 8)), "a handler is replaced");
    must(s, refused(setpriority(PRIO_PROCESS, (id_t)s->parent, 19)), "setpriority");
    void *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(s, code != MAP_FAILED, "no memory");
    must(s, refused(mprotect(code, 4096, PROT_READ | PROT_EXEC)), "memory becomes code");
    code = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(s, code == MAP_FAILED && errno == EPERM, "memory is code");
}

TEST(gate_lock_refuses_the_rest) {
    end e = run(tries_what_is_left, LOADED, KG_CPU);
    CHECK_STR(e.said, "done");
    CHECK_INT(e.code, 0);
}

/* ---- what goes on ---- */

static void *answers(void *number) {
    return number;
}

static void works_on(const scene *s) {
    int number = 7;
    pthread_t thread;
    void *back = NULL;
    struct timespec now;
    char *memory = malloc(64 << 20), heard[8] = "";
    must(s, memory != NULL, "no memory");
    memset(memory, 1, 64 << 20);
    free(memory);
    must(s, pthread_create(&thread, NULL, answers, &number) == 0, "no thread");
    must(s, pthread_join(thread, &back) == 0 && back == &number, "a thread gives nothing back");
    must(s, clock_gettime(CLOCK_MONOTONIC, &now) == 0, "no clock");
    must(s, sched_yield() == 0 && getpid() > 0, "no scheduler");
    must(s, send(s->socket, "", 0, 0) == 0, "no socket");
    must(s, recv(s->socket, heard, sizeof heard, MSG_DONTWAIT) < 0 && errno == EAGAIN, "no recv");
    must(s, write(STDERR_FILENO, "", 0) == 0, "no stderr");
}

TEST(gate_lock_lets_torch_work) {
    end e = run(works_on, LOADED, KG_CPU);
    CHECK_STR(e.said, "done");
    CHECK_INT(e.code, 0);
}

static void aborts(const scene *s) {
    (void)s;
    raise(SIGABRT);
}

TEST(gate_lock_lets_it_end_itself) {
    CHECK_INT(run(aborts, LOADED, KG_CPU).code, -SIGABRT);
}

/* ---- a GPU's, whose driver needs more ---- */

static void works_with_a_driver(const scene *s) {
    pthread_t thread;
    int fd = open("/dev/null", O_RDWR);
    must(s, fd >= 0, "/dev is not written");
    close(fd);
    must(s, open("/proc/self/maps", O_RDONLY) >= 0, "/proc is not read");
    must(s, open(test_path("written"), O_WRONLY | O_CREAT, 0600) < 0, "a file is written");
    must(s, mkdir(test_path("folder"), 0700) < 0, "a folder is made");
    must(s, refused(socket(AF_INET, SOCK_STREAM, 0)), "a socket is opened");
    must(s, refused(kill(s->parent, 0)), "the judge gets a signal");
    must(s, refused(ptrace(PTRACE_ATTACH, s->parent, NULL, NULL)), "the judge is traced");
    must(s, pthread_create(&thread, NULL, answers, NULL) == 0, "no thread");
    pthread_join(thread, NULL);
    lock(s, LOADED, KG_CUDA); /* it may load another image */
}

TEST(gate_lock_of_a_gpu_leaves_the_driver_its_own) {
    end e = run(works_with_a_driver, LOADED, KG_CUDA);
    CHECK_STR(e.said, "done");
    CHECK_INT(e.code, 0);
}

/* ---- what it says of itself ---- */

static void tells(const scene *s) {
    char *json = NULL;
    must(s, kgen_gate_locked(&json, NULL, 0) == 0, "kgen_gate_locked");
    say(s, json);
    free(json);
    lock(s, LOADED, KG_CPU);
    must(s, kgen_gate_locked(&json, NULL, 0) == 0, "kgen_gate_locked");
    say(s, json);
    free(json);
}

TEST(gate_lock_tells_what_is_in_force) {
    char *have = NULL, want[128];
    CHECK_INT(kgen_protections(&have, NULL, 0), 0);
    CHECK_HAS(have, "\"seccomp\": true");
    snprintf(want, sizeof want, "null%sdone", have);
    free(have);
    CHECK_STR(run(tells, ARMED, KG_CPU).said, want);
}

TEST(gate_lock_closes_once_and_in_order) {
    char err[512] = "";
    CHECK(kgen_gate_on_load(1, KG_CPU, err, sizeof err) != 0);
    CHECK_HAS(err, "was not locked");
    CHECK(kgen_gate_on_load(0, KG_CPU, err, sizeof err) != 0);
    CHECK_HAS(err, "nobody armed");
    CHECK_INT(kgen_gate_lock(1, err, sizeof err), 0);
    CHECK_INT(kgen_gate_lock(1, err, sizeof err), KG_EEXIST);
    CHECK_HAS(err, "armed already");
}

static void takes_another(const scene *s) {
    char err[512] = "";
    must(s, kgen_gate_on_load(0, KG_CPU, err, sizeof err) == KG_EUNSUPPORTED, "another is taken");
    say(s, err);
}

TEST(gate_lock_takes_one_candidate) {
    CHECK_HAS(run(takes_another, LOADED, KG_CPU).said, "takes no other");
}
