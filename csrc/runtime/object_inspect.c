/* Reads a compiled Candidate's ELF file and says whether it is what a Candidate may be: code and
 * constants.
 *
 * State between calls, code that runs at load, foreign functions and their addresses all show in
 * the object, whatever the source looked like; what its instructions are is code_inspect.c's.
 * Everything is bounded by the bytes given: a
 * malformed object is refused, never followed. Refuses nothing that a plain loop over arrays
 * compiles to. */
#include "runtime/object_inspect.h"

#include <string.h>

#include "runtime/elf_view.h"
#include "runtime/image.h"

#if defined(__aarch64__)
enum { MACHINE = EM_AARCH64 };
#else
enum { MACHINE = EM_X86_64 };
#endif

/* name is `base` or goes on after it with a dot (or, for the names that end so, anything). */
static bool is_kind(const char *name, const char *base) {
    size_t n = strlen(base);
    return strncmp(name, base, n) == 0 && (name[n] == '\0' || name[n] == '.' || name[n] == '_');
}

static bool loaded_name_allowed(const char *name) {
    static const char *const allowed[] = {".text", ".rodata", ".eh_frame", ".note", ".comment"};
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++)
        if (is_kind(name, allowed[i]))
            return true;
    return false;
}

static const char *section_fault(const Elf64_Shdr *s, const char *name) {
    bool code = is_kind(name, ".text");
    if (strcmp(name, ".note.GNU-stack") == 0 && (s->sh_flags & SHF_EXECINSTR))
        return "an executable stack is asked for";
    if (s->sh_type == SHT_INIT_ARRAY || s->sh_type == SHT_FINI_ARRAY ||
        s->sh_type == SHT_PREINIT_ARRAY)
        return "code that runs when the image is loaded is not allowed (constructor, destructor)";
    if (!(s->sh_flags & SHF_ALLOC) || s->sh_size == 0)
        return NULL;
    if (s->sh_flags & SHF_TLS)
        return "thread-local variables are state, which a Candidate must not keep";
    if (s->sh_flags & SHF_WRITE)
        return "writable globals and static variables are state, which a Candidate must not keep "
               "(tables of pointers count too); use constants, arguments or the workspace";
    if (!loaded_name_allowed(name))
        return "only .text, .rodata, .eh_frame, .note and .comment may be loaded";
    if (code != ((s->sh_flags & SHF_EXECINSTR) != 0))
        return "code lies in .text alone, and nothing else does";
    if (s->sh_type == SHT_NOBITS)
        return "a loaded section without bytes";
    return NULL;
}

static int check_sections(const kg_elf_view *e, kg_buf *complaint, kg_error *err) {
    for (size_t i = 0; i < e->head.e_shnum; i++) {
        Elf64_Shdr s;
        if (!kg_elf_section(e, i, &s))
            return kg_elf_malformed(complaint, err, "a section lies outside");
        const char *name = kg_elf_section_name(e, &s), *fault = section_fault(&s, name);
        if (fault) {
            kg_buf_printf(complaint, "section %s (%llu bytes): %s", name,
                          (unsigned long long)s.sh_size, fault);
            return kg_elf_refuse(complaint, err, "");
        }
    }
    return KG_OK;
}

static const char *symbol_fault(const kg_elf_view *e, const Elf64_Sym *s, const char *name) {
    unsigned type = ELF64_ST_TYPE(s->st_info), bind = ELF64_ST_BIND(s->st_info);
    if (type == STT_GNU_IFUNC)
        return "code that chooses a function at load is not allowed (ifunc, target_clones)";
    if (type == STT_TLS)
        return "thread-local variables are state, which a Candidate must not keep";
    if (s->st_shndx == SHN_COMMON || type == STT_COMMON)
        return "a common symbol is state, which a Candidate must not keep";
    if (s->st_shndx == SHN_UNDEF)
        return kg_symbol_allowed(name)
                   ? NULL
                   : "only memcpy, memmove, memset, memcmp and the functions of libm may be called";
    if (bind == STB_WEAK || bind == STB_GNU_UNIQUE)
        return "weak and unique symbols are not allowed";
    if (s->st_shndx == SHN_ABS)
        return type == STT_FILE ? NULL : "absolute symbols are not allowed";
    Elf64_Shdr in;
    if (s->st_shndx >= SHN_LORESERVE || !kg_elf_section(e, s->st_shndx, &in))
        return "it lies in no section";
    if (type == STT_OBJECT && (in.sh_flags & SHF_EXECINSTR))
        return "data in an executable section is not allowed";
    return NULL;
}

static int check_symbols(const kg_elf_view *e, const Elf64_Shdr *table, kg_buf *complaint,
                         kg_error *err) {
    Elf64_Shdr strings;
    Elf64_Sym s;
    const char *name;
    if (table->sh_entsize != sizeof(Elf64_Sym) || !kg_elf_section(e, table->sh_link, &strings) ||
        strings.sh_type != SHT_STRTAB)
        return kg_elf_malformed(complaint, err, "its symbol table has no names");
    for (size_t i = 1; kg_elf_symbol(e, table, i, &s, &name); i++) {
        if (!name)
            return kg_elf_malformed(complaint, err, "a symbol's name lies outside");
        const char *fault = symbol_fault(e, &s, name);
        if (fault) {
            kg_buf_printf(complaint, "symbol %s: %s", name, fault);
            return kg_elf_refuse(complaint, err, "");
        }
    }
    return KG_OK;
}

/* A function of somebody else's may be called, and nothing else: its address leads to all of libc.
 */
static int check_relocations(const kg_elf_view *e, const Elf64_Shdr *table, kg_buf *complaint,
                             kg_error *err) {
    Elf64_Shdr symbols, target;
    if (table->sh_entsize != sizeof(Elf64_Rela) || !kg_elf_section(e, table->sh_link, &symbols) ||
        symbols.sh_type != SHT_SYMTAB || !kg_elf_section(e, table->sh_info, &target))
        return kg_elf_malformed(complaint, err, "its relocations have no symbols");
    if (!(target.sh_flags & SHF_ALLOC) || MACHINE != EM_X86_64)
        return KG_OK;
    for (size_t i = 0; i < table->sh_size / sizeof(Elf64_Rela); i++) {
        Elf64_Rela r;
        Elf64_Sym s;
        const char *name;
        memcpy(&r, e->bytes + table->sh_offset + i * sizeof r, sizeof r);
        if (!kg_elf_symbol(e, &symbols, ELF64_R_SYM(r.r_info), &s, &name) || !name)
            return kg_elf_malformed(complaint, err, "a relocation has no symbol");
        if (s.st_shndx != SHN_UNDEF || ELF64_R_TYPE(r.r_info) == R_X86_64_PLT32 || !*name)
            continue;
        kg_buf_printf(complaint,
                      "symbol %s: a function of the C library may be called, but its address must "
                      "not be taken",
                      name);
        return kg_elf_refuse(complaint, err, "");
    }
    return KG_OK;
}

int kg_object_inspect(const void *object, size_t n, kg_buf *complaint, kg_error *err) {
    kg_elf_view e;
    int rc = kg_elf_open(&e, object, n, MACHINE, ET_REL, ET_REL, complaint, err);
    if (rc == KG_OK)
        rc = check_sections(&e, complaint, err);
    for (size_t i = 0; rc == KG_OK && i < e.head.e_shnum; i++) {
        Elf64_Shdr s;
        if (kg_elf_section(&e, i, &s) && s.sh_type == SHT_SYMTAB)
            rc = check_symbols(&e, &s, complaint, err);
        else if (kg_elf_section(&e, i, &s) && s.sh_type == SHT_RELA)
            rc = check_relocations(&e, &s, complaint, err);
    }
    if (rc == KG_OK && MACHINE == EM_X86_64)
        rc = kg_code_inspect(&e, false, complaint, err);
    return rc;
}

/* Displacements get their values when the object is linked, and these are the author's to choose.
 */
int kg_linked_inspect(const void *image, size_t n, kg_buf *complaint, kg_error *err) {
    kg_elf_view e;
    int rc = kg_elf_open(&e, image, n, MACHINE, ET_DYN, ET_DYN, complaint, err);
    for (size_t i = 0; rc == KG_OK && i < e.head.e_shnum; i++) {
        Elf64_Shdr s;
        if (!kg_elf_section(&e, i, &s))
            return kg_elf_malformed(complaint, err, "a section lies outside");
        if (s.sh_type == SHT_INIT_ARRAY || s.sh_type == SHT_PREINIT_ARRAY)
            return kg_elf_refuse(complaint, err, "the image has code that runs when it is loaded");
    }
    if (rc == KG_OK && MACHINE == EM_X86_64)
        rc = kg_code_inspect(&e, true, complaint, err);
    return rc;
}
