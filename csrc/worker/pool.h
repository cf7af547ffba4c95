/* The worker's threads: pinned, on stacks of a stated size with a wide guard below, started once
 * and before anything untrusted is in the process. */
#ifndef KG_WORKER_POOL_H
#define KG_WORKER_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

typedef struct kg_pool kg_pool;
typedef void (*kg_pool_body)(int64_t begin, int64_t end, void *ctx);

/* threads: 1 to 256, pinned to the allowed CPUs in turn (pinned counts those that could be).
 * on_start runs in each thread first. The pool lives as long as the process. */
int kg_pool_start(size_t threads, size_t stack, void (*on_start)(void), kg_pool **out,
                  size_t *pinned, kg_error *err);
size_t kg_pool_threads(const kg_pool *p);

/* Runs fn on the first thread of the pool while the calling thread sleeps. */
void kg_pool_lead(kg_pool *p, void (*fn)(kg_pool *p, void *ctx), void *ctx);
/* Only within kg_pool_lead: body over chunks of [0, range), cut as `split` says (protocol.h), on
 * all threads. */
void kg_pool_for(kg_pool *p, int64_t range, int64_t grain, int split, kg_pool_body body, void *ctx);

/* Only within kg_pool_lead: every thread cleans itself (clean.h). */
void kg_pool_clean(kg_pool *p, uint64_t pattern);

/* Async-signal-safe: whether the address lies in the guard below a thread's stack. */
bool kg_pool_guards(const kg_pool *p, uintptr_t address);

#endif
