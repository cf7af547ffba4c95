/* The worker's side of protocol.h for CPU Candidates. */
#ifndef KG_WORKER_CPU_WORKER_H
#define KG_WORKER_CPU_WORKER_H

/* Answers requests on the socket until it is closed; the process's exit code. */
int kg_cpu_worker(int socket);

#endif
