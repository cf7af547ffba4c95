/* Goes through a Candidate's code instruction by instruction.
 *
 * Why not by bytes: 0f 05 inside a constant or a distance is no system call, and AVX-512 code has
 * enough of both that honest kernels were refused. Why this is as good: code is decoded from the
 * begin of each section on; every jump and call of a fixed distance must meet the begin of an
 * instruction that was decoded; and jumps and calls to computed addresses are refused, so nothing
 * else is ever begun. What is left to an author is to overwrite a return address. That reaches any
 * byte of the process, libc's own system calls among them, so no inspection of this image could
 * stop it: the worker's last filter does (sys/sandbox.c), under which an instruction that asks the
 * kernel for something ends the process.
 *
 * Besides system calls it refuses what keeps state where no inspection of memory finds it (segment
 * bases, MMX, saved blocks of registers), what changes how the caller's code runs afterwards
 * (flags, rounding, exceptions), and what tells a test from real use (clocks, random numbers, the
 * processor's identity). A compiler emits none of that for plain loops. */
#include <stdlib.h>
#include <string.h>

#include "runtime/object_inspect.h"
#include "runtime/x86_decode.h"

/* An executable section and a bit for each byte at which an instruction begins. */
typedef struct code {
    const unsigned char *bytes;
    size_t n;
    uint64_t address;
    const char *name;
    bool linkage; /* the linker's own table of jumps to other libraries */
    unsigned char *begins;
} code;

enum { MAX_SECTIONS = 64 };

typedef struct walk {
    code sections[MAX_SECTIONS];
    size_t n;
    bool linked;
    kg_buf *complaint;
    kg_error *err;
} walk;

static int refuse(walk *w, const code *c, size_t at, const char *what) {
    kg_buf_printf(w->complaint, "%s at offset 0x%zx: %s is not allowed in a Candidate", c->name, at,
                  what);
    return kg_elf_refuse(w->complaint, w->err, "");
}

static int add_section(walk *w, const kg_elf_view *e, const Elf64_Shdr *s) {
    if (w->n == MAX_SECTIONS)
        return kg_elf_refuse(w->complaint, w->err, "it has more than 64 sections of code");
    code *c = &w->sections[w->n++];
    *c = (code){.bytes = e->bytes + s->sh_offset,
                .n = s->sh_size,
                .address = s->sh_addr,
                .name = kg_elf_section_name(e, s)};
    c->linkage = w->linked && strncmp(c->name, ".plt", 4) == 0;
    c->begins = calloc(c->n / 8 + 1, 1);
    return c->begins ? KG_OK : kg_fail(w->err, KG_ENOMEM, "an inspection: out of memory");
}

static int check_kind(walk *w, const code *c, size_t at, const kg_x86_insn *i) {
    if (i->length == 0)
        return refuse(w, c, at, i->refused);
    /* In an image the compiler's own helpers are there, too; the author's code was seen before. */
    if (i->refused && !(w->linked && i->environment))
        return refuse(w, c, at, i->refused);
    if (i->indirect && !(c->linkage && i->through_slot))
        return refuse(w, c, at, "a jump or call to an address that is computed");
    return KG_OK;
}

static int sweep(walk *w, code *c) {
    int rc = KG_OK;
    for (size_t at = 0; rc == KG_OK && at < c->n;) {
        kg_x86_insn i = kg_x86_decode(c->bytes + at, c->n - at);
        rc = check_kind(w, c, at, &i);
        c->begins[at / 8] |= (unsigned char)(1u << at % 8);
        at += i.length;
    }
    return rc;
}

static bool begins(const walk *w, uint64_t address) {
    for (size_t i = 0; i < w->n; i++) {
        const code *c = &w->sections[i];
        uint64_t at = address - c->address;
        if (at < c->n)
            return c->begins[at / 8] >> at % 8 & 1;
    }
    return false;
}

static int check_branches(walk *w, const code *c) {
    for (size_t at = 0; at < c->n;) {
        kg_x86_insn i = kg_x86_decode(c->bytes + at, c->n - at);
        uint64_t next = c->address + at + i.length;
        if (i.branch && !begins(w, next + (uint64_t)i.distance))
            return refuse(w, c, at, "a jump into the middle of an instruction or out of the code");
        at += i.length;
    }
    return KG_OK;
}

int kg_code_inspect(const kg_elf_view *e, bool linked, kg_buf *complaint, kg_error *err) {
    walk *w = calloc(1, sizeof *w);
    int rc = KG_OK;
    if (!w)
        return kg_fail(err, KG_ENOMEM, "an inspection: out of memory");
    w->linked = linked;
    w->complaint = complaint;
    w->err = err;
    for (size_t i = 0; rc == KG_OK && i < e->head.e_shnum; i++) {
        Elf64_Shdr s;
        if (kg_elf_section(e, i, &s) && (s.sh_flags & SHF_EXECINSTR) && s.sh_type != SHT_NOBITS)
            rc = add_section(w, e, &s);
    }
    for (size_t i = 0; rc == KG_OK && i < w->n; i++)
        rc = sweep(w, &w->sections[i]);
    /* In an object they have no distance yet. */
    for (size_t i = 0; rc == KG_OK && linked && i < w->n; i++)
        rc = check_branches(w, &w->sections[i]);
    for (size_t i = 0; i < w->n; i++)
        free(w->sections[i].begins);
    free(w);
    return rc;
}
