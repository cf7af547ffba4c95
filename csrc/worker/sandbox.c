/* Landlock and seccomp, by their system calls: no library is needed, and older kernel headers do.
 *
 * The first filter refuses what no loader needs (EPERM, so that libraries which probe go on); it
 * stands while the image is loaded, which runs no code of the image. The second lets through a
 * handful of calls and nothing else. A kernel without landlock leaves the first step out: nothing
 * untrusted runs before the third, which opens no file either. Refuses to go on without seccomp. */
#define _GNU_SOURCE
#include "worker/sandbox.h"

#include <errno.h>
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

/* Everything that the kernel can handle, and no rule that gives any of it back. */
static int landlock(int abi, kg_error *err) {
    static const unsigned fs_rights[] = {0, 13, 14, 15, 15, 16};
    unsigned rights = fs_rights[abi < 5 ? abi : 5];
    ruleset r = {.fs = (1ull << rights) - 1,
                 .net = abi >= 4 ? 3 : 0,     /* bind and connect of TCP */
                 .scoped = abi >= 6 ? 3 : 0}; /* abstract sockets, signals */
    size_t size = abi >= 6 ? sizeof r : abi >= 4 ? 2 * sizeof r.fs : sizeof r.fs;
    int fd = (int)syscall(SYS_landlock_create_ruleset, &r, size, 0);
    if (fd < 0)
        return kg_fail(err, KG_EENV, "landlock_create_ruleset: %s", strerror(errno));
    long rc = syscall(SYS_landlock_restrict_self, fd, 0);
    int saved = errno;
    close(fd);
    return rc == 0 ? KG_OK : kg_fail(err, KG_EENV, "landlock_restrict_self: %s", strerror(saved));
}

int kg_sandbox_files(int *abi, kg_error *err) {
    const struct rlimit none = {0, 0};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return kg_fail(err, KG_EENV, "prctl(PR_SET_NO_NEW_PRIVS): %s", strerror(errno));
    setrlimit(RLIMIT_CORE, &none);
    setrlimit(RLIMIT_FSIZE, &none);
    *abi = landlock_abi();
    return *abi > 0 ? landlock(*abi, err) : KG_OK;
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

int kg_sandbox_system(kg_error *err) {
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
        SYS_clone,
        SYS_clone3,
        SYS_ptrace,
        SYS_process_vm_readv,
        SYS_process_vm_writev,
        SYS_kill,
        SYS_tkill,
        SYS_tgkill,
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
        SYS_sched_setaffinity,
        SYS_unlinkat,
        SYS_renameat2,
        SYS_linkat,
        SYS_symlinkat,
        SYS_mkdirat,
        SYS_truncate,
        SYS_prctl,
#if defined(__x86_64__)
        SYS_fork,
        SYS_vfork,
        SYS_open,
        SYS_creat,
#endif
    };
    program p;
    begin(&p);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        on(&p, refused[i], SECCOMP_RET_ERRNO | EPERM);
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
