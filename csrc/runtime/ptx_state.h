/* Which variables of the device a compiled source really uses, told from its PTX. */
#ifndef KG_RUNTIME_PTX_STATE_H
#define KG_RUNTIME_PTX_STATE_H

#include <stdbool.h>
#include <stddef.h>

/* NVRTC makes a variable of every constant of a file (constexpr int N = 4), though code that uses
 * the number does not refer to it. True when some code refers to a variable in global memory, with
 * its name in `name`. Inline assembly is part of the text and counts. Reads to the NUL. */
bool kg_ptx_uses_global(const char *ptx, char name[128]);

#endif
