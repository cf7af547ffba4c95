/* JSON: what parses must print, and its canonical text must be a fixed point. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    kg_json *first, *second;
    kg_error err;
    if (kg_json_parse((const char *)data, size, "input", &first, &err) != KG_OK)
        return 0;
    kg_buf a, b;
    kg_buf_init(&a, 0);
    kg_buf_init(&b, 0);
    if (kg_json_canonical(first, &a) != KG_OK)
        __builtin_trap();
    if (kg_json_parse(a.data, a.len, "canonical", &second, &err) != KG_OK)
        __builtin_trap();
    if (kg_json_canonical(second, &b) != KG_OK)
        __builtin_trap();
    if (a.len != b.len || memcmp(a.data, b.data, a.len) != 0)
        __builtin_trap();
    kg_json_pretty(first, &b);
    kg_json_free(first);
    kg_json_free(second);
    kg_buf_free(&a);
    kg_buf_free(&b);
    return 0;
}
