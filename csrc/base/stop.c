/* One flag for the process. It decides nothing: whoever sees it winds down by itself. */
#include "base/stop.h"

#include <stdatomic.h>

static atomic_bool wanted;

void kg_stop_set(bool stop) {
    atomic_store(&wanted, stop);
}

bool kg_stop_wanted(void) {
    return atomic_load(&wanted);
}
