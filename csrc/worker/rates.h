/* How fast this machine moves bytes, by the size of what is moved: the floor under a Case's time.
 */
#ifndef KG_WORKER_RATES_H
#define KG_WORKER_RATES_H

#include <stddef.h>

#include "base/error.h"
#include "worker/pool.h"

typedef struct kg_rate {
    double read, write, copy; /* bytes a second over all threads; a copy counts both ways */
} kg_rate;

/* bytes: the whole working set, shared out over the pool's threads. The best of several passes. */
int kg_rate_measure(kg_pool *pool, size_t bytes, kg_rate *out, kg_error *err);

#endif
