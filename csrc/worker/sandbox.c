/* Landlock and seccomp, by their system calls: no library is needed, and older kernel headers do.
 *
 * The first filter refuses what no loader needs (EPERM, so that libraries which probe go on); it
 * stands while the image is loaded, which runs no code of the image. The second lets through a
 * handful of calls and nothing else. A kernel without landlock leaves the first step out: nothing
 * untrusted runs before the third, which opens no file either. Refuses to go on without seccomp.
 *
 * A GPU's worker gets two weaker locks: a driver opens its devices, starts threads and maps memory
 * at any time, and a Candidate there is code of the device, which makes no system call. */
#define _GNU_SOURCE
#include "worker/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
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
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

/* struct landlock_ruleset_attr as of ABI 6; older kernels take its beginning. */
typedef struct ruleset {
    uint64_t fs, net, scoped;
} ruleset;

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

static long give_back(int ruleset_fd, const char *folder, uint64_t rights) {
    enum { PATH_BENEATH = 1 };
    beneath b = {.rights = rights, .folder = open(folder, O_PATH | O_CLOEXEC | O_DIRECTORY)};
    if (b.folder < 0)
        return -1;
    long rc = syscall(SYS_landlock_add_rule, ruleset_fd, PATH_BENEATH, &b, 0);
    int saved = errno;
    close(b.folder);
    errno = saved;
    return rc;
}

/* Handles these rights of files (bits that the kernel does not know are left out) and the whole
 * network, and gives `given` of them back below each of the folders. */
static int landlock(int abi, uint64_t handled, const char *const *folders, uint64_t given,
                    kg_error *err) {
    static const unsigned fs_rights[] = {0, 13, 14, 15, 15, 16};
    unsigned rights = fs_rights[abi < 5 ? abi : 5];
    uint64_t known = (1ull << rights) - 1;
    ruleset r = {.fs = handled & known,
                 .net = abi >= 4 ? 3 : 0, /* bind and connect of TCP */
                 .scoped = abi >= 6 ? (folders ? 2 : 3)
                                    : 0}; /* abstract sockets (a driver may), signals */
    size_t size = abi >= 6 ? sizeof r : abi >= 4 ? 2 * sizeof r.fs : sizeof r.fs;
    int fd = (int)syscall(SYS_landlock_create_ruleset, &r, size, 0);
    if (fd < 0)
        return kg_fail(err, KG_EENV, "landlock_create_ruleset: %s", strerror(errno));
    long rc = 0;
    for (; rc == 0 && folders && *folders; folders++)
        rc = give_back(fd, *folders, given & known);
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

static int install(struct sock_filter *filter, size_t n, kg_error *err) {
    struct sock_fprog program = {.len = (unsigned short)n, .filter = filter};
    long rc = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
    if (rc == 0)
        return KG_OK;
    if (rc > 0)
        return kg_fail(err, KG_EENV, "seccomp: thread %ld cannot take the filter", rc);
    return kg_fail(err, KG_EENV, "seccomp: %s", strerror(errno));
}

#define LOAD(field)                                                                                \
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offsetof(struct seccomp_data, field))
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, (what))
/* The next instruction is skipped unless A == value. */
#define IF(value) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), 0, 1)
#define IF_NOT(value) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), 1, 0)
#define IF_AT_LEAST(value) BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, (uint32_t)(value), 0, 1)

enum { MAX_FILTER = 160 };

typedef struct program {
    struct sock_filter code[MAX_FILTER];
    size_t n;
} program;

static void emit(program *p, struct sock_filter one) {
    if (p->n < MAX_FILTER)
        p->code[p->n++] = one;
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

/* What a driver needs beside it: threads of its own, and its devices. */
static const long refused_without_driver[] = {
    SYS_clone, SYS_clone3, SYS_sched_setaffinity, SYS_prctl, SYS_unlinkat, SYS_tgkill,
#if defined(__x86_64__)
    SYS_open,  SYS_creat,
#endif
};

static void refuse(program *p, const long *calls, size_t n) {
    for (size_t i = 0; i < n; i++)
        on(p, calls[i], SECCOMP_RET_ERRNO | EPERM);
}

int kg_sandbox_system(kg_error *err) {
    program p;
    begin(&p);
    refuse(&p, refused, sizeof refused / sizeof *refused);
    refuse(&p, refused_without_driver,
           sizeof refused_without_driver / sizeof *refused_without_driver);
    emit(&p, (struct sock_filter)RETURN(SECCOMP_RET_ALLOW));
    return install(p.code, p.n, err);
}

int kg_sandbox_device_system(kg_error *err) {
    program p;
    begin(&p);
    refuse(&p, refused, sizeof refused / sizeof *refused);
    emit(&p, (struct sock_filter)RETURN(SECCOMP_RET_ALLOW));
    return install(p.code, p.n, err);
}

/* The call `nr` goes through if its first argument is fd. */
static void on_socket(program *p, long nr, int fd) {
    emit(p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 4));
    emit(p, (struct sock_filter)LOAD(args[0]));
    emit(p, (struct sock_filter)IF(fd));
    emit(p, (struct sock_filter)RETURN(SECCOMP_RET_ALLOW));
    emit(p, (struct sock_filter)RETURN(SECCOMP_RET_TRAP));
}

int kg_sandbox_last(int socket, kg_error *err) {
    static const long allowed[] = {SYS_futex,           SYS_sched_yield, SYS_rt_sigreturn,
                                   SYS_clock_gettime,   SYS_exit,        SYS_exit_group,
                                   SYS_restart_syscall, SYS_getpid,      SYS_gettid};
    program p;
    begin(&p);
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++)
        on(&p, allowed[i], SECCOMP_RET_ALLOW);
    on_socket(&p, SYS_sendmsg, socket);
    on_socket(&p, SYS_recvmsg, socket);
    emit(&p, (struct sock_filter)RETURN(SECCOMP_RET_TRAP));
    return install(p.code, p.n, err);
}
