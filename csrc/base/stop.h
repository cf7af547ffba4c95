/* The wish to stop: a front's signal handler sets it, long waits look at it (at least every 100 ms)
 * and return KG_EINTR. Async-signal-safe and thread-safe. Nothing in the library sets or clears it.
 */
#ifndef KG_BASE_STOP_H
#define KG_BASE_STOP_H

#include <stdbool.h>

void kg_stop_set(bool stop);
bool kg_stop_wanted(void);

#endif
