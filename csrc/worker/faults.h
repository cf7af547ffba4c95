/* What a worker says when a Candidate faults, before it dies. */
#ifndef KG_WORKER_FAULTS_H
#define KG_WORKER_FAULTS_H

#include "base/error.h"
#include "worker/pool.h"

/* Catches the signals of a fault in all threads. pool may still be NULL. */
int kg_faults_install(int socket, kg_error *err);
void kg_faults_pool(const kg_pool *pool);
/* An alternate signal stack for the calling thread: a full stack must be reported too. */
void kg_faults_thread(void);

#endif
