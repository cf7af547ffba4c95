/* A loop on several threads that live as long as it: the judge has no threads of its own between
 * loops, so that nothing of it runs while a Candidate is timed. */
#ifndef KG_TUNE_PARALLEL_H
#define KG_TUNE_PARALLEL_H

#include <stddef.h>

/* body over parts of [0, n), each a multiple of `unit` but the last; part numbers count from 0 and
 * are below KG_MAX_PARTS. A thread that cannot be started is done without. */
#define KG_MAX_PARTS 64
typedef void (*kg_part)(size_t part, size_t begin, size_t end, void *ctx);
void kg_parallel(size_t n, size_t unit, size_t threads, kg_part body, void *ctx);

#endif
