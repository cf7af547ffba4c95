/* The machine code of an image as people and models read it: a disassembler's words, cut down to
 * the innermost loops, the largest first, which is where time goes.
 *
 * The disassembler is the machine's own: objdump for CPU code; for a GPU's nvdisasm, else
 * cuobjdump, from PATH, CUDA_HOME, CUDA_PATH or /usr/local/cuda. It runs in a process of its own,
 * with limits. */
#ifndef KG_TUNE_LISTING_H
#define KG_TUNE_LISTING_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"

typedef struct kg_listing_options {
    size_t bytes; /* the most that is appended; 0: KG_LISTING_BYTES */
    bool whole;   /* all functions from their beginning, not loops alone */
} kg_listing_options;

enum { KG_LISTING_BYTES = 9000 }; /* 3000 tokens by kgen's count */

/* Appends the listing of an ELF image, a CPU's or a cubin. KG_EENV: no disassembler, and which
 * would do; KG_EFORMAT: it is no image, or the disassembler fails on it. */
int kg_listing(const void *image, size_t n, const kg_listing_options *o, kg_buf *out,
               kg_error *err);
/* The same from a disassembler's words; sass: of nvdisasm -c or cuobjdump -sass, else of objdump
 * -d --no-show-raw-insn. Does not write beyond what o->bytes leaves. */
int kg_listing_text(const char *text, size_t n, bool sass, const kg_listing_options *o, kg_buf *out,
                    kg_error *err);

#endif
