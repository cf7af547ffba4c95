/* Landlock and seccomp, by their system calls: no library is needed, and older kernel headers do.
 *
 * The worker's first filter refuses what no loader needs (EPERM, so that libraries which probe go
 * on); it stands while the image is loaded, which runs no code of the image. The second lets
 * through a handful of calls and nothing else. A kernel without landlock leaves the first step out:
 * nothing untrusted runs before the third, which opens no file either. Refuses to go on without
 * seccomp.
 *
 * A GPU's worker gets two weaker locks: a driver opens its devices, starts threads and maps memory
 * at any time, and a Candidate there is code of the device, which makes no system call.
 *
 * The gate's process has torch in it, which takes memory and starts threads at any time; landlock
 * comes too late for its threads, so that the filters alone must keep them from files. */
#define _GNU_SOURCE
#include "sys/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#define FIRST_FOREIGN 0x40000000u /* x32's numbers */
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#define FIRST_FOREIGN 0x40000000u
#else
#error "kgen-worker knows the system calls of x86-64 and aarch64"
#endif

/* The same on every architecture. */
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

/* struct landlock_ruleset_attr as of ABI 6; older kernels take its beginning. */
typedef struct ruleset_attr {
    uint64_t fs, net, scoped;
} ruleset_attr;

static int landlock_abi(void) {
    enum { VERSION = 1 };
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, VERSION);
    return abi > 0 ? (int)abi : 0;
}

/* struct landlock_path_beneath_attr, which is packed. */
typedef struct __attribute__((packed)) beneath {
    uint64_t rights;
    int32_t folder;
} beneath;

/* Rights that a file has, and not its folder alone: EXECUTE, WRITE_FILE, READ_FILE, TRUNCATE,
 * IOCTL_DEV. */
#define OF_A_FILE (1u | 1u << 1 | 1u << 2 | 1u << 14 | 1u << 15)

static long give_back(int ruleset_fd, const char *path, uint64_t rights) {
    enum { PATH_BENEATH = 1 };
    struct stat st;
    beneath b = {.rights = rights, .folder = open(path, O_PATH | O_CLOEXEC)};
    if (b.folder < 0)
        return -1;
    long rc = fstat(b.folder, &st);
    if (rc == 0 && !S_ISDIR(st.st_mode))
        b.rights &= OF_A_FILE;
    if (rc == 0)
        rc = syscall(SYS_landlock_add_rule, ruleset_fd, PATH_BENEATH, &b, 0);
    int saved = errno;
    close(b.folder);
    errno = saved;
    return rc;
}

static uint64_t known_rights(int abi) {
    static const unsigned fs_rights[] = {0, 13, 14, 15, 15, 16};
    return (1ull << fs_rights[abi < 5 ? abi : 5]) - 1;
}

/* Handles these rights of files (bits that the kernel does not know are left out), the whole
 * network and signals to others; abstract: abstract sockets, too. Negative: errno. */
static int open_ruleset(int abi, uint64_t handled, bool abstract) {
    ruleset_attr r = {.fs = handled & known_rights(abi),
                      .net = abi >= 4 ? 3 : 0, /* bind and connect of TCP */
                      .scoped = abi >= 6 ? (abstract ? 3 : 2) : 0};
    size_t size = abi >= 6 ? sizeof r : abi >= 4 ? 2 * sizeof r.fs : sizeof r.fs;
    return (int)syscall(SYS_landlock_create_ruleset, &r, size, 0);
}

/* The same for this thread and what it starts, with `given` of them back below each of the folders,
 * one of which is a driver's, who may use abstract sockets. */
static int landlock(int abi, uint64_t handled, const char *const *folders, uint64_t given,
                    kg_error *err) {
    int fd = open_ruleset(abi, handled, folders == NULL);
    if (fd < 0)
        return kg_fail(err, KG_EENV, "landlock_create_ruleset: %s", strerror(errno));
    long rc = 0;
    for (; rc == 0 && folders && *folders; folders++)
        rc = give_back(fd, *folders, given & known_rights(abi));
    if (rc == 0)
        rc = syscall(SYS_landlock_restrict_self, fd, 0);
    int saved = errno;
    close(fd);
    return rc == 0 ? KG_OK : kg_fail(err, KG_EENV, "landlock: %s", strerror(saved));
}

static int no_privileges(kg_error *err) {
    const struct rlimit none = {0, 0};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return kg_fail(err, KG_EENV, "prctl(PR_SET_NO_NEW_PRIVS): %s", strerror(errno));
    setrlimit(RLIMIT_CORE, &none);
    return KG_OK;
}

void kg_sandbox_has(kg_protections *out) {
    const uint32_t trap = SECCOMP_RET_TRAP;
    out->landlock = landlock_abi();
    out->seccomp = syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &trap) == 0;
}

int kg_sandbox_files(int *abi, kg_error *err) {
    const struct rlimit none = {0, 0};
    int rc = no_privileges(err);
    if (rc != KG_OK)
        return rc;
    setrlimit(RLIMIT_FSIZE, &none);
    *abi = landlock_abi();
    return *abi > 0 ? landlock(*abi, UINT64_MAX, NULL, 0, err) : KG_OK;
}

int kg_sandbox_device_files(int *abi, kg_error *err) {
    /* WRITE_FILE, REMOVE_* and MAKE_*, REFER, TRUNCATE. Reading and running are the driver's own
     * affair, and so are ioctls. */
    const uint64_t writes = 1u << 1 | 0x1ff0u | 1u << 13 | 1u << 14;
    static const char *const folders[] = {"/dev", "/proc", NULL};
    int rc = no_privileges(err);
    if (rc != KG_OK)
        return rc;
    *abi = landlock_abi();
    return *abi > 0 ? landlock(*abi, writes, folders, writes, err) : KG_OK;
}

int kg_sandbox_program(const char *const *readable, const char *const *writable, int *ruleset,
                       kg_error *err) {
    const uint64_t reads = 1u | 1u << 2 | 1u << 3; /* EXECUTE, READ_FILE, READ_DIR */
    int abi = landlock_abi();
    *ruleset = -1;
    if (abi == 0)
        return KG_OK;
    int fd = open_ruleset(abi, UINT64_MAX, true);
    if (fd < 0)
        return kg_fail(err, KG_EENV, "landlock_create_ruleset: %s", strerror(errno));
    long rc = 0;
    for (; rc == 0 && *writable; writable++)
        rc = give_back(fd, *writable, known_rights(abi));
    for (; rc == 0 && *readable; readable++)
        if (give_back(fd, *readable, reads) != 0 && errno != ENOENT && errno != EACCES)
            rc = -1;
    if (rc != 0) {
        int saved = errno;
        close(fd);
        return kg_fail(err, KG_EENV, "landlock_add_rule: %s", strerror(saved));
    }
    *ruleset = fd;
    return KG_OK;
}

int kg_sandbox_enter(int ruleset) {
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return -1;
    return (int)syscall(SYS_landlock_restrict_self, ruleset, 0);
}

#define LOAD(field)                                                                                \
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offsetof(struct seccomp_data, field))
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, (what))
/* The next instruction is skipped unless A == value. */
#define IF(value) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), 0, 1)
#define IF_NOT(value) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), 1, 0)
#define IF_AT_LEAST(value) BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, (uint32_t)(value), 0, 1)
#define IF_ANY(bits) BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (uint32_t)(bits), 0, 1)

enum { MAX_FILTER = 320 };
/* Bytes that the gate's process may still say on stderr, which is a file of the parent's. */
enum { LAST_WORDS = 1 << 20 };

typedef struct program {
    struct sock_filter code[MAX_FILTER];
    size_t n; /* more than MAX_FILTER: it does not fit */
} program;

static void emit(program *p, struct sock_filter one) {
    if (p->n < MAX_FILTER)
        p->code[p->n] = one;
    p->n++;
}

/* For all threads. SPEC_ALLOW: older kernels would slow down what is timed, against reading this
 * very process, in which there is nothing to hide. */
static int install(program *p, kg_error *err) {
    enum { FLAGS = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_SPEC_ALLOW };
    if (p->n > MAX_FILTER)
        return kg_fail(err, KG_EOVERFLOW, "seccomp: a filter of %zu instructions", p->n);
    struct sock_fprog code = {.len = (unsigned short)p->n, .filter = p->code};
    long rc = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, FLAGS, &code);
    if (rc == 0)
        return KG_OK;
    if (rc > 0)
        return kg_fail(err, KG_EENV, "seccomp: thread %ld cannot take the filter", rc);
    return kg_fail(err, KG_EENV, "seccomp: %s", strerror(errno));
}

/* Only this machine's own numbers; then A holds the number of the call. */
static void begin(program *p) {
    p->n = 0;
    emit(p, (struct sock_filter)LOAD(arch));
    emit(p, (struct sock_filter)IF_NOT(ARCH));
    emit(p, (struct sock_filter)RETURN(SECCOMP_RET_KILL_PROCESS));
    emit(p, (struct sock_filter)LOAD(nr));
    emit(p, (struct sock_filter)IF_AT_LEAST(FIRST_FOREIGN));
    emit(p, (struct sock_filter)RETURN(SECCOMP_RET_KILL_PROCESS));
}

static void on(program *p, long nr, uint32_t action) {
    emit(p, (struct sock_filter)IF(nr));
    emit(p, (struct sock_filter)RETURN(action));
}

/* What neither a loader nor a driver needs. */
static const long refused[] = {
    SYS_socket,
    SYS_socketpair,
    SYS_connect,
    SYS_bind,
    SYS_listen,
    SYS_accept,
    SYS_accept4,
    SYS_execve,
    SYS_execveat,
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_kill,
    SYS_tkill,
    SYS_rt_sigqueueinfo,
    SYS_rt_tgsigqueueinfo,
    SYS_pidfd_open,
    SYS_pidfd_send_signal,
    SYS_pidfd_getfd,
    SYS_mount,
    SYS_umount2,
    SYS_pivot_root,
    SYS_chroot,
    SYS_setns,
    SYS_unshare,
    SYS_bpf,
    SYS_perf_event_open,
    SYS_io_uring_setup,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    SYS_keyctl,
    SYS_add_key,
    SYS_request_key,
    SYS_userfaultfd,
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_kexec_load,
    SYS_reboot,
    SYS_swapon,
    SYS_swapoff,
    SYS_open_by_handle_at,
    SYS_name_to_handle_at,
    SYS_setuid,
    SYS_setgid,
    SYS_personality,
    SYS_shmget,
    SYS_shmat,
    SYS_msgget,
    SYS_semget,
    SYS_mq_open,
    SYS_fanotify_init,
    SYS_renameat2,
    SYS_linkat,
    SYS_symlinkat,
    SYS_mkdirat,
    SYS_truncate,
#if defined(__x86_64__)
    SYS_fork,
    SYS_vfork,
#endif
};

/* Changes of folders and of what files are, which `refused` leaves to landlock. */
static const long refused_changes[] = {
    SYS_unlinkat, SYS_mknodat, SYS_fchmodat, SYS_fchownat, SYS_setxattr, SYS_lsetxattr,
#if defined(SYS_renameat)
    SYS_renameat,
#endif
#if defined(__x86_64__)
    SYS_creat,    SYS_unlink,  SYS_rename,   SYS_link,     SYS_symlink,  SYS_mkdir,
    SYS_rmdir,    SYS_mknod,   SYS_chmod,    SYS_chown,    SYS_lchown,
#endif
};

/* What a driver needs beside it: threads of its own, and its devices. */
static const long refused_without_driver[] = {
    SYS_clone, SYS_clone3, SYS_sched_setaffinity, SYS_prctl, SYS_unlinkat, SYS_tgkill,
#if defined(__x86_64__)
    SYS_open,  SYS_creat,
#endif
};

static void on_each(program *p, const long *calls, size_t n, uint32_t action) {
    for (size_t i = 0; i < n; i++)
        on(p, calls[i], action);
}

int kg_sandbox_system(kg_error *err) {
    program p;
    begin(&p);
    on_each(&p, refused, sizeof refused / sizeof *refused, SECCOMP_RET_ERRNO | EPERM);
    on_each(&p, refused_without_driver,
            sizeof refused_without_driver / sizeof *refused_without_driver,
            SECCOMP_RET_ERRNO | EPERM);
    emit(&p, (struct sock_filter)RETURN(SECCOMP_RET_ALLOW));
    return install(&p, err);
}

int kg_sandbox_device_system(kg_error *err) {
    program p;
    begin(&p);
    on_each(&p, refused, sizeof refused / sizeof *refused, SECCOMP_RET_ERRNO | EPERM);
    emit(&p, (struct sock_filter)RETURN(SECCOMP_RET_ALLOW));
    return install(&p, err);
}

/* The call `nr`, by the lower half of an argument: `yes` when the test holds, else `no`. */
static void on_argument(program *p, long nr, struct sock_filter load, struct sock_filter test,
                        uint32_t yes, uint32_t no) {
    emit(p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 4));
    emit(p, load);
    emit(p, test);
    emit(p, (struct sock_filter)RETURN(yes));
    emit(p, (struct sock_filter)RETURN(no));
}

/* The call `nr` goes through if its first argument is fd. */
static void on_socket(program *p, long nr, int fd, uint32_t otherwise) {
    on_argument(p, nr, (struct sock_filter)LOAD(args[0]), (struct sock_filter)IF(fd),
                SECCOMP_RET_ALLOW, otherwise);
}

int kg_sandbox_last(int socket, kg_error *err) {
    static const long allowed[] = {SYS_futex,           SYS_sched_yield, SYS_rt_sigreturn,
                                   SYS_clock_gettime,   SYS_exit,        SYS_exit_group,
                                   SYS_restart_syscall, SYS_getpid,      SYS_gettid};
    program p;
    begin(&p);
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++)
        on(&p, allowed[i], SECCOMP_RET_ALLOW);
    on_socket(&p, SYS_sendmsg, socket, SECCOMP_RET_TRAP);
    on_socket(&p, SYS_recvmsg, socket, SECCOMP_RET_TRAP);
    emit(&p, (struct sock_filter)RETURN(SECCOMP_RET_TRAP));
    return install(&p, err);
}

/* ---- the gate's process ---- */

int kg_sandbox_gate_files(int *abi, kg_error *err) {
    int rc = no_privileges(err);
    if (rc != KG_OK)
        return rc;
    *abi = landlock_abi();
    return *abi > 0 ? landlock(*abi, UINT64_MAX, NULL, 0, err) : KG_OK;
}

/* A thread is started; a process is not. What clone3 is asked cannot be seen from here: libc falls
 * back to clone. */
static void threads_alone(program *p, uint32_t otherwise) {
    on_argument(p, SYS_clone, (struct sock_filter)LOAD(args[0]),
                (struct sock_filter)IF_ANY(CLONE_THREAD), SECCOMP_RET_ALLOW, otherwise);
    on(p, SYS_clone3, SECCOMP_RET_ERRNO | ENOSYS);
}

/* raise and abort, and no signal to another process. */
static void own_signals_alone(program *p) {
    on_argument(p, SYS_tgkill, (struct sock_filter)LOAD(args[0]), (struct sock_filter)IF(getpid()),
                SECCOMP_RET_ALLOW, SECCOMP_RET_TRAP);
}

int kg_sandbox_gate_system(kg_error *err) {
    enum { WRITES = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC };
    program p;
    begin(&p);
    on_each(&p, refused, sizeof refused / sizeof *refused, SECCOMP_RET_TRAP);
    on_each(&p, refused_changes, sizeof refused_changes / sizeof *refused_changes,
            SECCOMP_RET_TRAP);
    threads_alone(&p, SECCOMP_RET_TRAP);
    own_signals_alone(&p);
    on_argument(&p, SYS_openat, (struct sock_filter)LOAD(args[2]),
                (struct sock_filter)IF_ANY(WRITES), SECCOMP_RET_TRAP, SECCOMP_RET_ALLOW);
#if defined(__x86_64__)
    on_argument(&p, SYS_open, (struct sock_filter)LOAD(args[1]), (struct sock_filter)IF_ANY(WRITES),
                SECCOMP_RET_TRAP, SECCOMP_RET_ALLOW);
#endif
    on(&p, SYS_openat2, SECCOMP_RET_ERRNO | ENOSYS);
    emit(&p, (struct sock_filter)RETURN(SECCOMP_RET_ALLOW));
    return install(&p, err);
}

/* What torch needs when all of it is loaded and warm. */
static const long of_torch[] = {
    SYS_futex,
    SYS_sched_yield,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_gettimeofday,
    SYS_madvise,
    SYS_munmap,
    SYS_mremap,
    SYS_brk,
    SYS_membarrier,
    SYS_getcpu,
    SYS_getrandom,
    SYS_getrusage,
    SYS_sysinfo,
    SYS_uname,
    SYS_getpid,
    SYS_gettid,
    SYS_getppid,
    SYS_sched_getaffinity,
    SYS_set_robust_list,
    SYS_rseq,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sigaltstack,
    SYS_restart_syscall,
    SYS_ppoll,
    SYS_fstat,
    SYS_lseek,
    SYS_close,
    SYS_exit,
    SYS_exit_group,
#if defined(__x86_64__)
    SYS_poll,
    SYS_time,
#endif
};

/* Memory, but none whose contents the processor may be sent to. */
static void no_new_code(program *p, long nr) {
    on_argument(p, nr, (struct sock_filter)LOAD(args[2]), (struct sock_filter)IF_ANY(PROT_EXEC),
                SECCOMP_RET_ERRNO | EPERM, SECCOMP_RET_ALLOW);
}

/* write goes to the socket and to stderr. */
static void words_alone(program *p, int socket, uint32_t otherwise) {
    emit(p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 0, 5));
    emit(p, (struct sock_filter)LOAD(args[0]));
    emit(p, (struct sock_filter)IF_NOT(socket));
    emit(p, (struct sock_filter)IF(STDERR_FILENO));
    emit(p, (struct sock_filter)RETURN(SECCOMP_RET_ALLOW));
    emit(p, (struct sock_filter)RETURN(otherwise));
}

int kg_sandbox_gate_last(int socket, kg_error *err) {
    const uint32_t no = SECCOMP_RET_ERRNO | EPERM;
    const struct rlimit words = {LAST_WORDS, LAST_WORDS};
    setrlimit(RLIMIT_FSIZE, &words);
    program p;
    begin(&p);
    on_each(&p, of_torch, sizeof of_torch / sizeof *of_torch, SECCOMP_RET_ALLOW);
    no_new_code(&p, SYS_mmap);
    no_new_code(&p, SYS_mprotect);
    threads_alone(&p, no);
    on_argument(&p, SYS_tgkill, (struct sock_filter)LOAD(args[0]), (struct sock_filter)IF(getpid()),
                SECCOMP_RET_ALLOW, no);
    on_socket(&p, SYS_recvfrom, socket, no);
    on_socket(&p, SYS_sendto, socket, no);
    on_socket(&p, SYS_read, socket, no);
    words_alone(&p, socket, no);
    emit(&p, (struct sock_filter)RETURN(no));
    return install(&p, err);
}
