/* Bounded reading of ELF files. It follows nothing: a malformed file is refused. */
#include "runtime/elf_view.h"

#include <string.h>

static bool inside(const kg_elf_view *e, uint64_t offset, uint64_t size) {
    return offset <= e->n && size <= e->n - offset;
}

/* A string of a string table; NULL when it is not wholly inside. */
static const char *string_at(const char *table, size_t n, uint64_t offset) {
    if (offset >= n || !memchr(table + offset, '\0', n - offset))
        return NULL;
    return table + offset;
}

int kg_elf_refuse(kg_buf *complaint, kg_error *err, const char *what) {
    kg_buf_puts(complaint, what);
    return kg_fail(err, KG_EUNSUPPORTED, "%.480s", complaint->data ? complaint->data : what);
}

int kg_elf_malformed(kg_buf *complaint, kg_error *err, const char *what) {
    kg_buf_printf(complaint, "the object is malformed: ");
    return kg_elf_refuse(complaint, err, what);
}

bool kg_elf_section(const kg_elf_view *e, size_t i, Elf64_Shdr *out) {
    if (i >= e->head.e_shnum)
        return false;
    memcpy(out, e->bytes + e->head.e_shoff + i * sizeof *out, sizeof *out);
    return out->sh_type == SHT_NOBITS || inside(e, out->sh_offset, out->sh_size);
}

const char *kg_elf_section_name(const kg_elf_view *e, const Elf64_Shdr *s) {
    const char *name = string_at(e->names, e->names_n, s->sh_name);
    return name ? name : "?";
}

bool kg_elf_symbol(const kg_elf_view *e, const Elf64_Shdr *table, size_t i, Elf64_Sym *out,
                   const char **name) {
    Elf64_Shdr strings;
    *name = NULL;
    if (table->sh_type == SHT_NOBITS || i >= table->sh_size / sizeof *out)
        return false;
    memcpy(out, e->bytes + table->sh_offset + i * sizeof *out, sizeof *out);
    if (kg_elf_section(e, table->sh_link, &strings) && strings.sh_type == SHT_STRTAB)
        *name =
            string_at((const char *)e->bytes + strings.sh_offset, strings.sh_size, out->st_name);
    return true;
}

static bool magic_fits(const Elf64_Ehdr *h, int machine) {
    return memcmp(h->e_ident, ELFMAG, SELFMAG) == 0 && h->e_ident[EI_CLASS] == ELFCLASS64 &&
           h->e_ident[EI_DATA] == ELFDATA2LSB && h->e_machine == machine;
}

int kg_elf_open(kg_elf_view *e, const void *bytes, size_t n, int machine, int type, int or_type,
                kg_buf *complaint, kg_error *err) {
    *e = (kg_elf_view){.bytes = bytes, .n = n};
    if (n < sizeof e->head)
        return kg_elf_malformed(complaint, err, "it is shorter than an ELF header");
    memcpy(&e->head, bytes, sizeof e->head);
    if (!magic_fits(&e->head, machine) || (e->head.e_type != type && e->head.e_type != or_type))
        return kg_elf_malformed(complaint, err, "it is no ELF file of this machine and kind");
    if (e->head.e_shnum == 0 || e->head.e_shentsize != sizeof(Elf64_Shdr) ||
        !inside(e, e->head.e_shoff, (uint64_t)e->head.e_shnum * sizeof(Elf64_Shdr)))
        return kg_elf_malformed(complaint, err, "its section table lies outside");
    Elf64_Shdr s;
    if (!kg_elf_section(e, e->head.e_shstrndx, &s) || s.sh_type != SHT_STRTAB)
        return kg_elf_malformed(complaint, err, "its section names lie outside");
    e->names = (const char *)e->bytes + s.sh_offset;
    e->names_n = s.sh_size;
    return KG_OK;
}
