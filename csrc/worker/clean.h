/* Between two calls of a Candidate: nothing that the first left in a thread is there for the
 * second.
 */
#ifndef KG_WORKER_CLEAN_H
#define KG_WORKER_CLEAN_H

#include <stddef.h>
#include <stdint.h>

/* Frames of ours below which a Candidate runs, so that all of its own are cleaned. */
enum { KG_CLEAN_DEPTH = 1024 };

/* Once, before any thread starts. */
void kg_clean_init(void);

/* The calling thread's vector, mask, tile and x87 registers as a new process has them, and its
 * stack from `low` up to the caller's frame filled with a NaN of every floating type: a Candidate
 * that reads what it did not write meets neither zeros nor what it left there. pattern: bits to
 * vary it by. */
void kg_clean_thread(char *low, uint64_t pattern);

/* n bytes of a frame of the caller's. */
void kg_clean_bytes(void *at, size_t n, uint64_t pattern);

#endif
