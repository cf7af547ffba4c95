/* Turns a fault into one frame (KG_W_FAULT) with its address, so that the judge can name the buffer
 * that was left, and ends the process. Only async-signal-safe calls, and only those that the last
 * filter allows. A Candidate that spoils this process can forge or suppress the frame; either way
 * it does not pass. */
#define _GNU_SOURCE
#include "worker/faults.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "sys/frames.h"
#include "worker/protocol.h"

/* The kernel saves the vector registers here: 11 KiB with AMX. */
enum { SIGNAL_STACK = 128 << 10 };

static int report_to;
static const kg_pool *_Atomic guarded;
static atomic_flag reported = ATOMIC_FLAG_INIT;

static uint32_t access_of(const ucontext_t *context) {
#if defined(__x86_64__)
    long long bits = context->uc_mcontext.gregs[REG_ERR];
    if (context->uc_mcontext.gregs[REG_TRAPNO] != 14)
        return KG_ACCESS_UNKNOWN; /* no page fault: a general protection fault has no address */
    return bits & 16 ? KG_ACCESS_EXECUTE : bits & 2 ? KG_ACCESS_WRITE : KG_ACCESS_READ;
#else
    (void)context;
    return KG_ACCESS_UNKNOWN;
#endif
}

static void put32(unsigned char **at, uint32_t value) {
    memcpy(*at, &value, sizeof value);
    *at += sizeof value;
}

static void on_fault(int signal_number, siginfo_t *info, void *context) {
    while (atomic_flag_test_and_set(&reported))
        sched_yield(); /* another thread was first, and ends us all */
    unsigned char frame[64], *at = frame;
    uint64_t address = signal_number == SIGSYS ? 0 : (uint64_t)(uintptr_t)info->si_addr;
    put32(&at, KG_W_FAULT);
    put32(&at, 0);
    put32(&at, (uint32_t)signal_number);
    put32(&at, (uint32_t)info->si_code);
    memcpy(at, &address, sizeof address);
    at += sizeof address;
    put32(&at, signal_number == SIGSEGV ? access_of(context) : KG_ACCESS_UNKNOWN);
    put32(&at, signal_number == SIGSEGV && kg_pool_guards(atomic_load(&guarded), address));
    put32(&at, signal_number == SIGSYS ? (uint32_t)info->si_syscall : 0);
    kg_frame_send(report_to, frame, (size_t)(at - frame), NULL, 0, NULL);
    _exit(128 + signal_number);
}

int kg_faults_install(int socket, kg_error *err) {
    static const int caught[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    report_to = socket;
    sigfillset(&action.sa_mask);
    for (size_t i = 0; i < sizeof caught / sizeof *caught; i++)
        if (sigaction(caught[i], &action, NULL) != 0)
            return kg_fail(err, KG_EENV, "sigaction: %s", strerror(errno));
    return KG_OK;
}

void kg_faults_pool(const kg_pool *pool) {
    atomic_store(&guarded, pool);
}

void kg_faults_thread(void) {
    void *stack =
        mmap(NULL, SIGNAL_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t alt = {.ss_sp = stack, .ss_size = SIGNAL_STACK};
    if (stack != MAP_FAILED)
        sigaltstack(&alt, NULL);
}
