/* What a worker may not do, in three steps, each for good. A Candidate's code runs after the third.
 */
#ifndef KG_WORKER_SANDBOX_H
#define KG_WORKER_SANDBOX_H

#include "base/error.h"

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

/* --- a GPU's worker, whose driver needs its devices, threads and more memory all the time --- */

/* No new privileges, no core files; nothing is written, made or removed in any folder but /dev and
 * /proc, no network (landlock). Binds this thread and what it starts, so it comes before the
 * driver. */
int kg_sandbox_device_files(int *abi, kg_error *err);
/* For all threads, once the driver has its context: no socket, program, process, tracing, no
 * looking into others. */
int kg_sandbox_device_system(kg_error *err);

#endif
