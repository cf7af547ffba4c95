/* The parts of the object inspection that image.c and the tests call beside kg_object_inspect
 * (image.h). */
#ifndef KG_RUNTIME_OBJECT_INSPECT_H
#define KG_RUNTIME_OBJECT_INSPECT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "base/error.h"

/* In every complaint about bytes that look like a system call, and in no other. */
#define KG_BYTES_COMPLAINT "holds the bytes of"

/* The linked image: no byte sequence of a system call in its code, and nothing that runs at load.
 * KG_EUNSUPPORTED with the complaint, as kg_object_inspect. */
int kg_linked_inspect(const void *image, size_t n, kg_buf *complaint, kg_error *err);

/* Whether a Candidate may leave this symbol undefined. */
bool kg_symbol_allowed(const char *name);

/* The first instruction bytes of a system call, and where; NULL when there are none. */
const char *kg_opcode_fault(const unsigned char *code, size_t n, size_t *offset);

#endif
