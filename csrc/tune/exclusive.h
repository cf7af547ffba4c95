/* One timed job on a device at a time: while a Candidate is timed on the CPU, no other thread of
 * this process compiles and no other process of kgen times. */
#ifndef KG_TUNE_EXCLUSIVE_H
#define KG_TUNE_EXCLUSIVE_H

#include "base/error.h"

/* Around what loads the CPU and is not timed; several at once. Never within the other pair. */
void kg_busy_begin(void);
void kg_busy_end(void);

/* Waits until nothing of kgen is busy or timed, on this machine. KG_EINTR: kg_stop_wanted. */
int kg_timing_begin(kg_error *err);
void kg_timing_end(void);

#endif
