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

#endif
