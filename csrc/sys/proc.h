/* Child processes: the only place that forks and execs.
 *
 * argv is a vector, never a shell string. A child is started in a process group of its own with
 * stdin from /dev/null, its environment replaced when env is given, and every descriptor closed but
 * those in `keep` (which reach the child under the numbers 3, 4, ... in order). It dies with its
 * parent (PR_SET_PDEATHSIG): with the thread that started it, so that thread must outlive it. When
 * the child ends, what it left in its group is killed. Waits end with KG_EINTR once
 * kg_stop_wanted() (base/stop.h). */
#ifndef KG_SYS_PROC_H
#define KG_SYS_PROC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/buf.h"
#include "base/error.h"

typedef struct kg_limits {
    int64_t wall_ms;      /* 0: none; the whole group gets SIGKILL when it is over. Of a child that
                             kg_proc_start started this happens in kg_proc_wait */
    int64_t cpu_s;        /* RLIMIT_CPU; 0: none */
    int64_t memory;       /* RLIMIT_AS in bytes; 0: none */
    int64_t file_size;    /* RLIMIT_FSIZE in bytes; 0: none */
    int64_t output_bytes; /* captured stdout+stderr are cut here; 0: 1 MiB */
    const int *ruleset;   /* of kg_sandbox_program, which the child enters; NULL or -1: none */
} kg_limits;

typedef struct kg_exit {
    bool timed_out; /* the wall limit ended it */
    int code;       /* exit code, or -1 */
    int signal;     /* the signal that ended it, or 0 */
    int64_t wall_ms;
} kg_exit;

/* Runs to the end. stdout and stderr go to out together when it is not NULL. A program that is not
 * there is KG_EENV. A child that fails is not an error of this call: read *ex. */
int kg_proc_run(const char *const argv[], const char *const env[], const char *cwd,
                const kg_limits *limits, kg_buf *out, kg_exit *ex, kg_error *err);

typedef struct kg_proc {
    pid_t pid;                     /* 0 once it is reaped */
    int pidfd;                     /* becomes readable when the child ends; -1 once it is reaped */
    int64_t start_ns, deadline_ns; /* kg_now_ns; no deadline: 0 */
} kg_proc;

/* Starts and returns; stdout and stderr are /dev/null unless log_fd >= 0. */
int kg_proc_start(const char *const argv[], const char *const env[], const int *keep, size_t nkeep,
                  int log_fd, const kg_limits *limits, kg_proc *p, kg_error *err);
/* Waits up to wait_ms (-1: for ever). KG_ETIMEOUT when it still runs. */
int kg_proc_wait(kg_proc *p, int64_t wait_ms, kg_exit *ex, kg_error *err);
/* SIGKILL to the group, then reaps it. Safe on one that has ended. */
void kg_proc_kill(kg_proc *p, kg_exit *ex);

/* CLOCK_MONOTONIC. */
int64_t kg_now_ns(void);

#endif
