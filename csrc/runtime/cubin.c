/* Reads cubins: ELF files of machine 190 whose sections .nv.info.NAME describe the kernels (records
 * of a byte form, a byte attribute and a half word, which for form 4 is the size of what follows).
 * Like the inspection of CPU objects it refuses state and foreign functions, whatever the source
 * looked like. */
#include "runtime/cubin.h"

#include <string.h>

#include "runtime/elf_view.h"
#include "runtime/ptx_state.h"

enum {
    MACHINE_CUDA = 190,
    ABI_NEW_FLAGS = 8, /* EI_ABIVERSION from CUDA 12.8 on: the architecture moved by 8 bits */
    FORM_SIZED = 4,
    ATTR_PARAM_BANK = 0x0a, /* u32 symbol, u16 offset, u16 bytes of all parameters */
    ATTR_PARAM = 0x17       /* u32 index, u16 ordinal, u16 offset, u32: size from bit 18 on */
};

static bool starts(const char *text, const char *with) {
    return strncmp(text, with, strlen(with)) == 0;
}

static int open_cubin(kg_elf_view *e, const void *cubin, size_t n, kg_buf *complaint,
                      kg_error *err) {
    return kg_elf_open(e, cubin, n, MACHINE_CUDA, ET_EXEC, ET_REL, complaint, err);
}

int kg_cubin_arch(const void *cubin, size_t n) {
    kg_elf_view e;
    kg_buf complaint;
    kg_buf_init(&complaint, 0);
    int rc = open_cubin(&e, cubin, n, &complaint, NULL);
    kg_buf_free(&complaint);
    if (rc != KG_OK)
        return 0;
    unsigned shift = e.head.e_ident[EI_ABIVERSION] >= ABI_NEW_FLAGS ? 8 : 0;
    return (int)(e.head.e_flags >> shift & 255);
}

/* ---- what may be there ---- */

static const char STATE[] = "variables of the device (__device__, static, string literals, "
                            "constants whose address is taken "
                            "or that are no constexpr numbers) are state, which a Candidate must "
                            "not keep; use __constant__, "
                            "constexpr numbers, arguments or the workspace";

static bool is_global(const char *section) {
    return starts(section, ".nv.global");
}

static const char *section_fault(const Elf64_Shdr *s, const char *name) {
    if (!(s->sh_flags & SHF_ALLOC) || s->sh_size == 0 || is_global(name))
        return NULL;
    if ((s->sh_flags & SHF_WRITE) && !starts(name, ".nv.shared") && !starts(name, ".nv.local"))
        return "only shared and local memory may be written beside the arguments";
    return NULL;
}

static int check_state(const kg_elf_view *e, const char *ptx, kg_buf *complaint, kg_error *err) {
    char variable[128];
    for (size_t i = 0; i < e->head.e_shnum; i++) {
        Elf64_Shdr s;
        if (!kg_elf_section(e, i, &s) || s.sh_size == 0 || !is_global(kg_elf_section_name(e, &s)))
            continue;
        if (ptx == NULL)
            kg_buf_printf(complaint, "section %s: ", kg_elf_section_name(e, &s));
        else if (kg_ptx_uses_global(ptx, variable))
            kg_buf_printf(complaint, "variable %s: ", variable);
        else
            return KG_OK;
        return kg_elf_refuse(complaint, err, STATE);
    }
    return KG_OK;
}

static const char *function_fault(const char *name) {
    if (strcmp(name, "vprintf") == 0)
        return "printf is not allowed in a Candidate";
    if (strcmp(name, "malloc") == 0 || strcmp(name, "free") == 0)
        return "the device's heap is not allowed (malloc, free, new); use the workspace";
    if (strcmp(name, "__assertfail") == 0)
        return "assert is not allowed in a Candidate";
    if (starts(name, "cudaLaunch") || starts(name, "cudaGet") || starts(name, "__cudaCDP") ||
        starts(name, "cudaDevice") || starts(name, "cudaStream"))
        return "launches from the device are not allowed";
    return "an undefined function: a Candidate is one file and calls nothing outside it";
}

/* NULL when it is fine. Weak undefined objects are the compiler's own (.nv.reservedSmem...). */
static const char *symbol_fault(const Elf64_Sym *s, const char *name) {
    unsigned type = ELF64_ST_TYPE(s->st_info), bind = ELF64_ST_BIND(s->st_info);
    if (s->st_shndx == SHN_COMMON)
        return "a common symbol is state, which a Candidate must not keep";
    if (s->st_shndx != SHN_UNDEF || *name == '\0' || (bind == STB_WEAK && starts(name, ".nv.")))
        return NULL;
    return type == STT_OBJECT ? "an undefined variable" : function_fault(name);
}

static int check_section(const kg_elf_view *e, size_t i, kg_buf *complaint, kg_error *err) {
    Elf64_Shdr s;
    if (!kg_elf_section(e, i, &s))
        return kg_elf_malformed(complaint, err, "a section lies outside");
    const char *name = kg_elf_section_name(e, &s), *fault = section_fault(&s, name);
    if (fault == NULL)
        return KG_OK;
    kg_buf_printf(complaint, "section %s (%llu bytes): ", name, (unsigned long long)s.sh_size);
    return kg_elf_refuse(complaint, err, fault);
}

static int check_symbols(const kg_elf_view *e, const Elf64_Shdr *table, kg_buf *complaint,
                         kg_error *err) {
    Elf64_Sym s;
    const char *name;
    for (size_t i = 1; kg_elf_symbol(e, table, i, &s, &name); i++) {
        const char *fault = name != NULL ? symbol_fault(&s, name) : NULL;
        if (name == NULL)
            return kg_elf_malformed(complaint, err, "a symbol's name lies outside");
        if (fault == NULL)
            continue;
        kg_buf_printf(complaint, "symbol %s: ", name);
        return kg_elf_refuse(complaint, err, fault);
    }
    return KG_OK;
}

static bool find_symbols(const kg_elf_view *e, Elf64_Shdr *out) {
    for (size_t i = 0; i < e->head.e_shnum; i++)
        if (kg_elf_section(e, i, out) && out->sh_type == SHT_SYMTAB)
            return true;
    return false;
}

int kg_cubin_inspect(const void *cubin, size_t n, const char *ptx, kg_buf *complaint,
                     kg_error *err) {
    kg_elf_view e;
    Elf64_Shdr symbols;
    int rc = open_cubin(&e, cubin, n, complaint, err);
    if (rc == KG_OK && find_symbols(&e, &symbols))
        rc = check_symbols(&e, &symbols, complaint, err);
    for (size_t i = 0; rc == KG_OK && i < e.head.e_shnum; i++)
        rc = check_section(&e, i, complaint, err);
    return rc == KG_OK ? check_state(&e, ptx, complaint, err) : rc;
}

/* ---- parameters ---- */

/* Takes the next record; false at the end. A record that would pass the end is malformed. */
static bool next_record(const unsigned char **at, const unsigned char *end, unsigned *attribute,
                        const unsigned char **payload, size_t *size, bool *bad) {
    uint16_t half;
    if (end - *at < 4) {
        *bad = *bad || *at != end;
        return false;
    }
    memcpy(&half, *at + 2, sizeof(half));
    *attribute = (*at)[1];
    *payload = *at + 4;
    *size = (*at)[0] == FORM_SIZED ? half : 0;
    if (*size > (size_t)(end - *payload)) {
        *bad = true;
        return false;
    }
    *at = *payload + *size;
    return true;
}

static bool add_param(const unsigned char *payload, kg_cubin_function *f) {
    uint16_t ordinal, offset;
    uint32_t packed;
    memcpy(&ordinal, payload + 4, sizeof(ordinal));
    memcpy(&offset, payload + 6, sizeof(offset));
    memcpy(&packed, payload + 8, sizeof(packed));
    if (ordinal >= KG_CUBIN_MAX_PARAMS)
        return false;
    f->params[ordinal].offset = offset;
    f->params[ordinal].size = packed >> 18;
    f->nparams = ordinal + 1U > f->nparams ? ordinal + 1U : f->nparams;
    return true;
}

/* Each parameter must be described, and together they must be what the kernel's bank holds. */
static bool complete(const kg_cubin_function *f, size_t bank) {
    size_t end = 0;
    for (size_t i = 0; i < f->nparams; i++) {
        if (f->params[i].size == 0 || f->params[i].offset < end)
            return false;
        end = f->params[i].offset + f->params[i].size;
    }
    return bank == 0 || end == bank;
}

static int read_info(const kg_elf_view *e, const Elf64_Shdr *info, const char *name,
                     kg_cubin_function *out, kg_error *err) {
    const unsigned char *at = e->bytes + info->sh_offset, *end = at + info->sh_size, *payload;
    kg_cubin_function f = {.nparams = 0};
    unsigned attribute;
    uint16_t bank = 0;
    size_t size;
    bool bad = info->sh_type == SHT_NOBITS;
    while (!bad && next_record(&at, end, &attribute, &payload, &size, &bad)) {
        if (attribute == ATTR_PARAM && size == 12)
            bad = !add_param(payload, &f);
        else if (attribute == ATTR_PARAM_BANK && size == 8)
            memcpy(&bank, payload + 6, sizeof(bank));
    }
    if (bad || !complete(&f, bank))
        return kg_fail(err, KG_EFORMAT, "the cubin does not tell the parameters of %s", name);
    *out = f;
    return KG_OK;
}

static int no_function(const kg_elf_view *e, const char *name, kg_error *err) {
    kg_buf names;
    Elf64_Shdr s;
    kg_buf_init(&names, 300);
    for (size_t i = 0; i < e->head.e_shnum; i++)
        if (kg_elf_section(e, i, &s) && starts(kg_elf_section_name(e, &s), ".nv.info."))
            kg_buf_printf(&names, "%s%s", names.len > 0 ? ", " : "",
                          kg_elf_section_name(e, &s) + strlen(".nv.info."));
    int rc = kg_fail(err, KG_ENOTFOUND,
                     "the source has no kernel %s (extern \"C\" __global__); it has: %s", name,
                     names.len > 0 ? names.data : "none");
    kg_buf_free(&names);
    return rc;
}

int kg_cubin_function_get(const void *cubin, size_t n, const char *name, kg_cubin_function *out,
                          kg_error *err) {
    kg_elf_view e;
    kg_buf complaint;
    kg_error why = {.msg = ""};
    kg_buf_init(&complaint, 0);
    int rc = open_cubin(&e, cubin, n, &complaint, &why);
    kg_buf_free(&complaint);
    if (rc != KG_OK)
        return kg_fail(err, KG_EFORMAT, "the cubin: %.400s", why.msg);
    for (size_t i = 0; i < e.head.e_shnum; i++) {
        Elf64_Shdr s;
        if (!kg_elf_section(&e, i, &s))
            continue;
        const char *at = kg_elf_section_name(&e, &s);
        if (starts(at, ".nv.info.") && strcmp(at + strlen(".nv.info."), name) == 0)
            return read_info(&e, &s, name, out, err);
    }
    return no_function(&e, name, err);
}
