/* The loop of a worker: a request comes in, one answer goes out. What a request means is the
 * device's (cpu_worker.c, cuda_worker.c). */
#ifndef KG_WORKER_SERVE_H
#define KG_WORKER_SERVE_H

#include <stdbool.h>

#include "base/buf.h"
#include "base/error.h"
#include "sys/frames.h"

typedef struct kg_talk {
    int socket;
    kg_reader in; /* the fields of the request */
    int fds[KG_FRAME_FDS];
    size_t nfds;
    bool sealed;  /* the last lock forbids to close a descriptor */
    kg_buf reply; /* the fields of the answer, while the request succeeds */
    char request[KG_FRAME_MAX];
} kg_talk;

/* Answers a request of `kind`. Descriptors that it does not take are closed after it. */
typedef int (*kg_answer)(void *worker, kg_talk *t, uint32_t kind, kg_error *err);

void kg_talk_init(kg_talk *t, int socket);
/* Until the socket is closed. */
void kg_talk_serve(kg_talk *t, kg_answer answer, void *worker);
/* KG_EFORMAT unless the whole request was read. */
int kg_talk_finish(const kg_talk *t, const char *what, kg_error *err);

#endif
