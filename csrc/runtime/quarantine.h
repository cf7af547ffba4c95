/* Kernels that ended in a lost device: written down for the user, so that no later process serves
 * them on a device of that name until the entry is removed. Nothing but the files is shared. */
#ifndef KG_RUNTIME_QUARANTINE_H
#define KG_RUNTIME_QUARANTINE_H

#include <stdbool.h>

#include "base/error.h"

/* Whether the Kernel (its id) is quarantined on a device of that name; says why and how to lift it
 * (the entry's path) in why. */
bool kg_quarantined(const char *kernel_id, const char *device, char why[512]);
/* Writes the entry down; path gets where. An entry that cannot be written is KG_EIO: the Kernel
 * then is served again by the next process. */
int kg_quarantine(const char *kernel_id, const char *kernel, const char *device, const char *error,
                  char path[512], kg_error *err);

#endif
