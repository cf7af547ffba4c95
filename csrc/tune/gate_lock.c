/* The lock of the gate's process, where a Candidate runs beside torch: the second line behind the
 * inspection of its object. It closes in two steps around the load, after everything that compiles
 * and before anything of the Candidate runs. What violates it ends the process with one line to
 * whoever judges, so that it is a reason there and no riddle. Keeps nobody from spoiling this
 * process itself: what comes out of it is compared elsewhere, by a clock that is elsewhere. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kgen_judge.h"
#include "runtime/types.h"
#include "sys/sandbox.h"

enum stage { OPEN, ARMED, CLOSING, LOCKED };

static int report_to = -1;
static enum stage stage = OPEN;
static kg_protections in_force;
static atomic_flag reported = ATOMIC_FLAG_INIT;

/* ---- what violates it ---- */

static const char *name_of(int number) {
    static const struct {
        long number;
        const char *name;
    } names[] = {
        {SYS_socket, "socket"},
        {SYS_socketpair, "socketpair"},
        {SYS_connect, "connect"},
        {SYS_bind, "bind"},
        {SYS_execve, "execve"},
        {SYS_execveat, "execveat"},
        {SYS_clone, "clone"},
        {SYS_ptrace, "ptrace"},
        {SYS_process_vm_readv, "process_vm_readv"},
        {SYS_process_vm_writev, "process_vm_writev"},
        {SYS_kill, "kill"},
        {SYS_tkill, "tkill"},
        {SYS_tgkill, "tgkill"},
        {SYS_rt_sigqueueinfo, "rt_sigqueueinfo"},
        {SYS_openat, "openat, for writing"},
        {SYS_unlinkat, "unlinkat"},
        {SYS_renameat2, "renameat2"},
        {SYS_mkdirat, "mkdirat"},
        {SYS_truncate, "truncate"},
#if defined(__x86_64__)
        {SYS_fork, "fork"},
        {SYS_vfork, "vfork"},
        {SYS_open, "open, for writing"},
        {SYS_creat, "creat"},
        {SYS_unlink, "unlink"},
        {SYS_rename, "rename"},
        {SYS_mkdir, "mkdir"},
#endif
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].number == number)
            return names[i].name;
    return NULL;
}

static void put(char **at, const char *text) {
    size_t n = strlen(text);
    memcpy(*at, text, n);
    *at += n;
}

static void put_number(char **at, unsigned value) {
    char digits[12];
    size_t n = sizeof digits;
    for (; value > 0 || n == sizeof digits; value /= 10)
        digits[--n] = (char)('0' + value % 10);
    memcpy(*at, digits + n, sizeof digits - n);
    *at += sizeof digits - n;
}

/* Async-signal-safe. The socket has room: whoever reads it waits for a line. */
static void on_violation(int signal_number, siginfo_t *info, void *context) {
    char line[256], *at = line;
    const char *name = name_of(info->si_syscall);
    (void)context;
    while (atomic_flag_test_and_set(&reported))
        ; /* another thread was first, and ends us all */
    put(&at, "{\"error\": \"made system call ");
    put_number(&at, (unsigned)info->si_syscall);
    if (name) {
        put(&at, " (");
        put(&at, name);
        put(&at, ")");
    }
    put(&at, ", which the gate's process may not with a Candidate in it\", \"lost\": true}\n");
    ssize_t done = write(report_to, line, (size_t)(at - line));
    _exit(done > 0 ? 128 + signal_number : 1);
}

/* ---- the two steps ---- */

/* What an image names as needed is here before the files are locked away. */
static void preload(void) {
    static const char *const names[] = {"libm.so.6", "libmvec.so.1"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        dlopen(names[i], RTLD_NOW | RTLD_GLOBAL);
}

static int before_cpu(kg_error *err) {
    preload();
    int rc = kg_sandbox_gate_files(&in_force.landlock, err);
    return rc == KG_OK && in_force.seccomp ? kg_sandbox_gate_system(err) : rc;
}

static int before_gpu(kg_error *err) {
    int rc = kg_sandbox_device_files(&in_force.landlock, err);
    return rc == KG_OK && in_force.seccomp ? kg_sandbox_device_system(err) : rc;
}

static int before(int device, kg_error *err) {
    /* A GPU's process may load another image; a CPU's has no way to build or to read one any more.
     */
    if (stage == LOCKED && device == KG_CUDA)
        return KG_OK;
    if (stage == OPEN)
        return kg_fail(err, KG_EUNSUPPORTED, "nobody armed its lock");
    if (stage != ARMED)
        return kg_fail(err, KG_EUNSUPPORTED, "it has a Candidate in it, and takes no other");
    stage = CLOSING;
    kg_sandbox_has(&in_force);
    return device == KG_CUDA ? before_gpu(err) : before_cpu(err);
}

static int after(int device, kg_error *err) {
    if (stage == LOCKED && device == KG_CUDA)
        return KG_OK;
    if (stage != CLOSING)
        return kg_fail(err, KG_EUNSUPPORTED, "it was not locked");
    int rc = device == KG_CPU && in_force.seccomp ? kg_sandbox_gate_last(report_to, err) : KG_OK;
    if (rc == KG_OK)
        stage = LOCKED;
    return rc;
}

int kgen_gate_on_load(int loaded, int device, char *err, size_t nerr) {
    kg_error why = {0}, e = {0};
    int rc = loaded ? after(device, &why) : before(device, &why);
    if (rc == KG_OK)
        return KG_OK;
    kg_fail(&e, KG_EUNSUPPORTED, "locking the gate's process: %.400s", why.msg);
    return kg_give(KG_EUNSUPPORTED, &e, err, nerr);
}

int kgen_gate_lock(int socket, char *err, size_t nerr) {
    kg_error e = {0};
    struct sigaction action = {.sa_sigaction = on_violation, .sa_flags = SA_SIGINFO};
    sigfillset(&action.sa_mask);
    if (stage != OPEN)
        return kg_give(kg_fail(&e, KG_EEXIST, "the gate's lock is armed already"), &e, err, nerr);
    if (sigaction(SIGSYS, &action, NULL) != 0)
        return kg_give(kg_fail(&e, KG_EENV, "sigaction: %s", strerror(errno)), &e, err, nerr);
    report_to = socket;
    stage = ARMED;
    return KG_OK;
}

/* ---- what is in force ---- */

static int give_protections(const kg_protections *p, char **json, char *err, size_t nerr) {
    char text[64], *copy;
    kg_error e = {0};
    snprintf(text, sizeof text, "{\"landlock\": %d, \"seccomp\": %s}", p->landlock,
             p->seccomp ? "true" : "false");
    copy = strdup(p == &in_force && stage != LOCKED ? "null" : text);
    if (!copy)
        return kg_give(kg_fail(&e, KG_ENOMEM, "protections: out of memory"), &e, err, nerr);
    *json = copy;
    return KG_OK;
}

int kgen_gate_locked(char **json, char *err, size_t nerr) {
    return give_protections(&in_force, json, err, nerr);
}

int kgen_protections(char **json, char *err, size_t nerr) {
    kg_protections p;
    kg_sandbox_has(&p);
    return give_protections(&p, json, err, nerr);
}
