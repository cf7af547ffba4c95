/* Reading an ELF file of 64 bits, little endian, that nobody vouches for: every look is bounded by
 * the bytes given. What the inspections of CPU objects and of cubins share. */
#ifndef KG_RUNTIME_ELF_VIEW_H
#define KG_RUNTIME_ELF_VIEW_H

#include <elf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

typedef struct kg_elf_view {
    const unsigned char *bytes;
    size_t n;
    Elf64_Ehdr head;
    const char *names; /* of sections */
    size_t names_n;
} kg_elf_view;

/* The file must be of that machine and of one of the kinds, e_type (the second may be the first).
 * After KG_OK the section table lies inside. KG_EUNSUPPORTED with a complaint otherwise. */
int kg_elf_open(kg_elf_view *e, const void *bytes, size_t n, int machine, int type, int or_type,
                kg_buf *complaint, kg_error *err);
/* Section i; false when there is none, or its bytes lie outside. */
bool kg_elf_section(const kg_elf_view *e, size_t i, Elf64_Shdr *out);
const char *kg_elf_section_name(const kg_elf_view *e, const Elf64_Shdr *s); /* "?": outside */
/* Symbol i of a SHT_SYMTAB section and its name; false past the last one. *name is NULL when it
 * lies outside. */
bool kg_elf_symbol(const kg_elf_view *e, const Elf64_Shdr *table, size_t i, Elf64_Sym *out,
                   const char **name);

/* Adds the text to the complaint, which goes into err, too. Returns KG_EUNSUPPORTED. */
int kg_elf_refuse(kg_buf *complaint, kg_error *err, const char *what);
int kg_elf_malformed(kg_buf *complaint, kg_error *err, const char *what);

#endif
