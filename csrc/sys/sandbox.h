/* What a process that runs Candidates may not do: a worker in three steps, the gate's process in
 * two around the load of an image, each for good. A Candidate's code runs after the last. And which
 * files the compiler may open, whose input is a Candidate's text. */
#ifndef KG_SYS_SANDBOX_H
#define KG_SYS_SANDBOX_H

#include <stdbool.h>

#include "base/error.h"

/* What this kernel has of it. landlock: its version, 0 when there is none. */
typedef struct kg_protections {
    int landlock;
    bool seccomp;
} kg_protections;
void kg_sandbox_has(kg_protections *out);

/* --- a worker of a CPU --- */

/* No new privileges, no core files, no file of any folder (landlock): binds this thread and those
 * it starts later, so it comes before the pool. abi: landlock's version, 0 when the kernel has
 * none. */
int kg_sandbox_files(int *abi, kg_error *err);
/* For all threads: no socket, program, process, tracing, no looking into others; loading an image
 * still works. */
int kg_sandbox_system(kg_error *err);
/* For all threads: what is left is to talk on the socket, to wait, and to end. Anything else is
 * SIGSYS. */
int kg_sandbox_last(int socket, kg_error *err);

/* --- a program that reads a Candidate's text: the compiler --- */

/* A ruleset of landlock: no file but what lies in, or is, one of `readable` (those that are not
 * there are passed over), nothing written but below `writable`; no TCP, no signals to others. Both
 * lists end with NULL. *ruleset: a descriptor, the caller's; -1: the kernel has no landlock. */
int kg_sandbox_program(const char *const *readable, const char *const *writable, int *ruleset,
                       kg_error *err);
/* Binds this thread, for good. Async-signal-safe; negative: errno. */
int kg_sandbox_enter(int ruleset);

/* --- a GPU's worker, whose driver needs its devices, threads and more memory all the time --- */

/* No new privileges, no core files; nothing is written, made or removed in any folder but /dev and
 * /proc, no network (landlock). Binds this thread and what it starts, so it comes before the
 * driver. */
int kg_sandbox_device_files(int *abi, kg_error *err);
/* For all threads, once the driver has its context: no socket, program, process, tracing, no
 * looking into others. */
int kg_sandbox_device_system(kg_error *err);

/* --- the gate's process, in which torch and its threads are at work already --- */

/* As kg_sandbox_files, for this thread and what it starts; those that are there are left to
 * seccomp. */
int kg_sandbox_gate_files(int *abi, kg_error *err);
/* For all threads, before an image is loaded: no file is opened for writing, made, renamed or
 * removed, no socket, program, process, tracing, no signal to others. Each of these is SIGSYS. */
int kg_sandbox_gate_system(kg_error *err);
/* For all threads, once it is loaded: memory, threads, clocks, the socket, a last MiB on stderr,
 * and to end. What kg_sandbox_gate_system refuses is still SIGSYS, anything else EPERM. */
int kg_sandbox_gate_last(int socket, kg_error *err);

#endif
