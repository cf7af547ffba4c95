/* Where one x86-64 instruction ends and the next begins, and whether a Candidate may have it.
 *
 * Knows the encodings of 64-bit mode up to AVX-512, FP16 and AMX. What it does not know it calls
 * refused, so that a CPU's future instructions are let in by name and never by chance. */
#ifndef KG_RUNTIME_X86_DECODE_H
#define KG_RUNTIME_X86_DECODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kg_x86_insn {
    size_t length;     /* 1 to 15; 0: no instruction that is known */
    bool branch;       /* a jump or call of a fixed distance */
    bool indirect;     /* a jump or call to an address that is computed */
    bool through_slot; /* an indirect one through memory at a fixed distance (a linkage table's) */
    int64_t distance;  /* of a branch, from the end of the instruction */
    const char *refused; /* what it is, when no Candidate may have it; NULL */
    bool environment;    /* refused for the floating-point environment, which the compiler's own
                            helpers look at */
} kg_x86_insn;

/* The instruction that begins at code[0]; at most n bytes are looked at. */
kg_x86_insn kg_x86_decode(const unsigned char *code, size_t n);

#endif
