/* The worker's side of protocol.h for CUDA Candidates. */
#ifndef KG_WORKER_CUDA_WORKER_H
#define KG_WORKER_CUDA_WORKER_H

/* Answers requests on the socket until it is closed; the process's exit code. */
int kg_cuda_worker(int socket);

#endif
