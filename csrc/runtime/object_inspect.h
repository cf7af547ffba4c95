/* The parts of the object inspection that image.c and the tests call beside kg_object_inspect
 * (image.h). */
#ifndef KG_RUNTIME_OBJECT_INSPECT_H
#define KG_RUNTIME_OBJECT_INSPECT_H

#include "runtime/elf_view.h"

/* The linked image: what its instructions are now that all distances are known, and nothing that
 * runs at load. KG_EUNSUPPORTED with the complaint, as kg_object_inspect. */
int kg_linked_inspect(const void *image, size_t n, kg_buf *complaint, kg_error *err);

/* Every instruction of an object or (linked) of an image of x86-64. KG_EUNSUPPORTED with the
 * complaint for one that no Candidate may have. */
int kg_code_inspect(const kg_elf_view *e, bool linked, kg_buf *complaint, kg_error *err);

/* Whether a Candidate may leave this symbol undefined. */
bool kg_symbol_allowed(const char *name);

#endif
