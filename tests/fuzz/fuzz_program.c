/* Programs: what parses must lower, and its canonical text must be a fixed point with the same
 * hash. */
#include <stdlib.h>
#include <string.h>

#include "runtime/program.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    kg_program *first, *second;
    kg_error err;
    if (kg_program_parse((const char *)data, size, &first, &err) != KG_OK)
        return 0;
    const char *text = kg_program_text(first);
    if (kg_program_parse(text, strlen(text), &second, &err) != KG_OK)
        __builtin_trap();
    if (strcmp(text, kg_program_text(second)) != 0)
        __builtin_trap();
    if (strcmp(kg_program_hash(first), kg_program_hash(second)) != 0)
        __builtin_trap();
    kg_buf out;
    kg_buf_init(&out, 0);
    if (kg_program_lower(first, KG_CPU, &out, &err) != KG_OK)
        __builtin_trap();
    kg_buf_free(&out);
    kg_program_free(first);
    kg_program_free(second);
    return 0;
}
